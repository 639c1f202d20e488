"""The whole demo as a person starts it: killed, told, interrupted, removed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from spanvault.demo.place import MARKER, leftovers
from tests.kit.servers import server_folder

COMMAND = str(Path(sys.executable).with_name("spanvault"))
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo lives; whatever a failed test leaves is removed."""
    with server_folder() as parent:
        try:
            yield parent / "demo"
        finally:
            demo("stop", parent / "demo")


def environment(folder: Path, **knobs: str) -> dict[str, str]:
    return {**os.environ, "DEMO_FOLDER": str(folder), "DEMO_MB": "8", **knobs}


def demo(command: str, folder: Path, **knobs: str) -> subprocess.CompletedProcess[str]:
    """Run `spanvault demo COMMAND` to its end."""
    return subprocess.run(
        [COMMAND, "demo", command],
        env=environment(folder, **knobs),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


class Running:
    """A story under way; `text` is what it has printed so far."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "demo", "start"],
            env=environment(folder),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.text += line

    def wait_for(self, text: str) -> None:
        """Wait until it has printed `text`."""
        until(lambda: text in self.text or self.process.poll() is not None, 600)
        assert text in self.text, self.text

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(60)
        self._reader.join(10)
        return code


def until(true: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes_of(folder: Path) -> list[psutil.Process]:
    """What runs with the demo's marker, and its servers."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARKER) == str(folder)
            if process.status() != psutil.STATUS_ZOMBIE and (marked or str(folder) in " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_demo_is_killed_told_on_what_is_left_and_removed(folder: Path) -> None:
    killed = Running(folder)
    killed.wait_for("Airflow runs: http")
    # The harshest end: whoever would clean up is killed, then the story; the servers live on as orphans.
    for process in processes_of(folder):
        if process.name() == "sh" or "spanvault.demo.janitor" in process.cmdline():
            process.kill()
    killed.process.kill()
    killed.end()
    assert {"airflow-scheduler", "primary", "s3", "standby_b"} <= set(leftovers(folder))

    told = Running(folder)
    told.wait_for("Ctrl-C stops everything")
    assert "Equal: all 15 restored tables" in told.text
    written = re.search(r"Written meanwhile +([\d,]+) transactions", told.text)
    assert written is not None
    assert int(written[1].replace(",", "")) > 0

    state = demo("status", folder).stdout
    assert re.search(r"Airflow +http://127\.0\.0\.1:\d+", state)
    assert "airflow-scheduler, primary, s3, standby_b, standby_us" in state.replace("airflow-metadata, ", "")
    assert demo("start", folder).returncode == 1, "a second demo is refused while one runs"

    restored_again = subprocess.run(
        ["/bin/sh", "-c", shown_commands(told.text)], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert restored_again.returncode == 0, restored_again.stderr

    told.process.send_signal(signal.SIGINT)
    assert told.end() == 0, told.text
    assert "Stopped; nothing of the demo runs any more." in told.text
    assert processes_of(folder) == []
    assert demo("stop", folder).returncode == 0
    assert not folder.exists()


def shown_commands(text: str) -> str:
    """The two lines behind `Restore it again`, made one that stops at the first failure."""
    lines = text[text.index("Restore it again") + len("Restore it again") :].strip().splitlines()[:2]
    return "set -e\n" + "\n".join(line.strip() for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_and_kill_leave_no_process(folder: Path) -> None:
    interrupted = Running(folder)
    interrupted.wait_for("SeaweedFS) run")
    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.end() == 130
    assert "Traceback" not in interrupted.text
    assert processes_of(folder) == []

    killed = Running(folder)
    killed.wait_for("standbys stream")
    killed.process.kill()
    killed.end()
    until(lambda: processes_of(folder) == [], 60)

    stopped = Running(folder)
    stopped.wait_for("SeaweedFS) run")
    assert demo("stop", folder).returncode == 0
    stopped.end()
    assert processes_of(folder) == []
    assert not folder.exists()


def test_taken_port_is_one_sentence_and_starts_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        refused = demo("start", folder, DEMO_PORT=port)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"Error: DEMO_PORT={port} cannot be used: the port is taken")
    assert len(refused.stderr.splitlines()) == 1
    assert not folder.exists()


def test_nothing_runs_and_nothing_is_stopped(folder: Path) -> None:
    assert demo("status", folder).stdout == "No demo runs.\n"
    assert demo("stop", folder).returncode == 0
