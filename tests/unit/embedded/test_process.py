from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spanvault.embedded.process import PROCESS_FILE, ServerProcess, runs, stop_leftover
from spanvault.errors import Retryable

# A server with a child in a session of its own, as PostgreSQL's are; it says the child's id when it is up.
FAMILY = """
import subprocess, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
OWNER = """
import os, sys, time
from pathlib import Path
from spanvault.embedded.process import ServerProcess
folder = Path(sys.argv[1])
server = ServerProcess.launch(["sleep", "600"], directory=folder, log=folder / "log", environment=os.environ)
print(server.pid, flush=True)
time.sleep(600)
"""


def launch(folder: Path, *arguments: str) -> ServerProcess:
    return ServerProcess.launch(arguments, directory=folder, log=folder / "log", environment=os.environ)


def wait_gone(pid: int) -> None:
    while runs(pid):
        time.sleep(0.01)


def child_of(folder: Path) -> int:
    with (folder / "log").open() as log:
        while not (text := log.readline()):
            pass
    return int(text)


def test_kill_ends_what_the_server_started_too(tmp_path: Path) -> None:
    server = launch(tmp_path, sys.executable, "-c", FAMILY)
    child = child_of(tmp_path)
    server.kill()
    assert not server.is_running()
    assert not runs(child)
    assert not (tmp_path / PROCESS_FILE).exists()


def test_terminate_kills_what_does_not_listen(tmp_path: Path) -> None:
    server = launch(tmp_path, "sh", "-c", "trap '' TERM; echo 1; while :; do sleep 1; done")
    child_of(tmp_path)
    server.terminate(signal.SIGTERM, timeout=0.2)
    assert not server.is_running()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_its_owner(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        owner.send_signal(how)
        owner.wait()
        wait_gone(pid)


def test_a_leftover_is_found_and_stopped(tmp_path: Path) -> None:
    server = launch(tmp_path, sys.executable, "-c", FAMILY)
    child = child_of(tmp_path)
    assert stop_leftover(tmp_path)
    assert not runs(child)
    assert not server.is_running()
    assert not stop_leftover(tmp_path)
    server.kill()


def test_a_process_that_got_the_same_number_later_is_left_alone(tmp_path: Path) -> None:
    other = launch(tmp_path, "sleep", "600")
    file = tmp_path / PROCESS_FILE
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "created": known["created"] - 1000}))
    assert not stop_leftover(tmp_path)
    assert other.is_running()
    other.kill()


def test_a_torn_process_file_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / PROCESS_FILE).write_text('{"pid": 1')
    assert not stop_leftover(tmp_path)


def test_a_program_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match=r"^nothing-like-it cannot be started: "):
        launch(tmp_path, "/nonexistent/nothing-like-it")
