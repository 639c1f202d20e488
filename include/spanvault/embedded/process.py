"""A server process that does not outlive its owner, and that a later run can find.

Three things see to that. The process leads a session of its own, so Ctrl-C reaches the owner only, who then stops it. A
tiny guard (a shell that waits for the end of a pipe) stops it when the owner is gone in whatever way. And a file beside
its data names the process, so that `stop_leftover` finds it even if the guard was killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from spanvault.embedded.run_as import Identity
from spanvault.errors import Retryable

PROCESS_FILE = "process.json"

_GUARD = 'read -r line; kill -s "$1" -- "-$2" 2>/dev/null; exit 0'


class ServerProcess:
    """One running server: started by `launch`, ended by `terminate` or `kill`."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, guard: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._directory = directory
        self._guard = guard

    @classmethod
    def launch(
        cls,
        arguments: Sequence[str | Path],
        *,
        directory: Path,
        log: Path,
        environment: Mapping[str, str],
        identity: Identity | None = None,
        guard_signal: signal.Signals = signal.SIGKILL,
    ) -> ServerProcess:
        """Start `arguments` with its output appended to `log`; `directory` (existing) keeps the file that names the process.

        `guard_signal` is what its process group gets when the owner is gone. Raises Retryable if it cannot be started.
        """
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(  # noqa: S603 - programs that we chose
                    [str(argument) for argument in arguments],
                    cwd=directory,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    **(identity or {}),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise Retryable(f"{Path(arguments[0]).name} cannot be started: {error}.") from None
        guard = _start_guard(process.pid, guard_signal)
        _remember(process.pid, directory)
        return cls(process, directory, guard)

    @property
    def pid(self) -> int:
        """The process's id, which is also its process group's."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def terminate(self, how: signal.Signals, timeout: float) -> None:
        """Send `how` and wait; after `timeout` seconds kill it with everything it started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """SIGKILL to the process and everything it started, at one moment; returns when all of them are gone."""
        kill_tree(self._process.pid)
        self._process.wait()
        self._forget()

    def _forget(self) -> None:
        self._guard.kill()
        self._guard.communicate()
        (self._directory / PROCESS_FILE).unlink(missing_ok=True)


def stop_leftover(directory: Path) -> bool:
    """Kill the server that a lost owner left running on `directory`; whether there was one."""
    file = directory / PROCESS_FILE
    try:
        known = json.loads(file.read_text())
        # The start time tells the process from another that was given the same number later.
        if psutil.Process(known["pid"]).create_time() == known["created"]:
            kill_tree(known["pid"])
            return True
        return False
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False
    finally:
        file.unlink(missing_ok=True)


def kill_tree(pid: int, timeout: float = 30.0) -> None:
    """SIGKILL to `pid` and its descendants at one moment; returns when none of them runs any more."""
    try:
        root = psutil.Process(pid)
        root.suspend()  # so that it starts no child that the listing would miss
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    deadline = time.monotonic() + timeout
    while any(member.is_running() and runs(member.pid) for member in family) and time.monotonic() < deadline:
        time.sleep(0.005)


def runs(pid: int) -> bool:
    """Whether a process `pid` runs; a zombie, which nobody may ever collect, does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _start_guard(pid: int, how: signal.Signals) -> subprocess.Popen[bytes]:
    # Nobody writes into the pipe: `read` returns when the last holder of its other end, the owner, is gone.
    return subprocess.Popen(  # noqa: S603 - fixed words and numbers
        ["/bin/sh", "-c", _GUARD, "sh", how.name.removeprefix("SIG"), str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _remember(pid: int, directory: Path) -> None:
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return  # it ended at once; whoever waits for it will say why
    staging = directory / f"{PROCESS_FILE}.{os.getpid()}"
    staging.write_text(json.dumps({"pid": pid, "created": created}))
    staging.replace(directory / PROCESS_FILE)
