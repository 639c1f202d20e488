"""Running a command and measuring it: wall time, CPU time and memory of all its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Measurement:
    """Wall seconds, CPU seconds of the command's processes and of the server's sessions that ended meanwhile, and the
    largest resident size in bytes that any one of the command's processes reached.

    CPU seconds are the better measure on a machine that does other work too.
    """

    seconds: float
    client_cpu: float
    server_cpu: float
    peak_memory: int

    @property
    def cpu(self) -> float:
        """CPU seconds on both sides."""
        return self.client_cpu + self.server_cpu


def run(command: Sequence[str | Path], server_pid: int, environment: Mapping[str, str] | None = None) -> Measurement:
    """Run `command` to its end; `server_pid` is PostgreSQL's postmaster. Raises RuntimeError with the command's error
    output if it fails. Linux only (/proc)."""
    _adopt_orphans()
    before, server_before, start = os.times(), _children_cpu(server_pid), time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
    )
    peak = _Peak(process.pid)
    peak.start()
    _, errors = process.communicate()
    seconds = time.monotonic() - start
    _wait_for_orphans()
    after = os.times()
    peak.ended.set()
    peak.join()
    if process.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {errors.strip()}")
    client = after.children_user + after.children_system - before.children_user - before.children_system
    return Measurement(seconds, client, _children_cpu(server_pid) - server_before, peak.bytes)


def _adopt_orphans() -> None:
    """Become the parent of what a command leaves running behind it, so that its CPU time is counted too (prctl(2),
    PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _wait_for_orphans() -> None:
    while _has_other_children():
        time.sleep(_SAMPLE_SECONDS)
        _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _has_other_children() -> bool:
    """Whether anything but the server's guard is left that belongs to a measured command. (A process that ends has no command
    line any more, and its time does not count before it is waited for.)"""
    return any("forkserver" in line or not line for line in map(_command_line, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _children_cpu(pid: int) -> float:
    # Fields cutime and cstime of proc(5), behind the name in parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


class _Peak(threading.Thread):
    """Follows a process and its descendants; `bytes` is the largest high-water mark of resident memory of one of them."""

    def __init__(self, root: int) -> None:
        super().__init__(name="peak-memory", daemon=True)
        self.bytes = 0
        self.ended = threading.Event()
        self._root = root

    def run(self) -> None:
        while not self.ended.wait(_SAMPLE_SECONDS):
            for pid in self._family():
                self.bytes = max(self.bytes, _high_water_mark(pid))

    def _family(self) -> list[int]:
        found = [self._root]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found.extend(map(int, children.read_text().split()))
                except OSError:
                    continue
        return found


def _high_water_mark(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def folder_bytes(folder: Path) -> int:
    """The sum of the sizes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
