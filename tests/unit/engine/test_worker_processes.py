"""Worker processes have what they need from the one that gives them work, and end with it, however it ends, silently."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.engine.context import Context
from spanvault.engine.worker_pool import in_processes
from spanvault.errors import BadInput
from spanvault.model.request import EncryptionOptions
from tests.kit.command_line import hear_ctrl_c

MAIN = """
import os, signal, sys, time
from multiprocessing import forkserver, popen_forkserver, util
from pathlib import Path
from spanvault.engine.context import Context
from spanvault.engine.worker_pool import in_processes

FOLDER = Path(sys.argv[1])

def begin(context):
    return work

def work(index):
    name = ("one", "two")[index]
    # Under another name first: who reads the file must find the number in it.
    (FOLDER / f"{name}.new").write_text(f"{os.getpid()} {os.getppid()}")
    (FOLDER / f"{name}.new").rename(FOLDER / f"{name}.pid")
    time.sleep(600)

if __name__ == "__main__":
    (FOLDER / "socket").write_text(util.get_temp_dir())
    if sys.argv[2] == "interrupted":
        read = forkserver.read_signed
        def interrupted(file):
            signal.raise_signal(signal.SIGINT)
            return read(file)
        popen_forkserver.forkserver.read_signed = interrupted
    try:
        in_processes(Context(), 2, begin, (), 2, lambda *_: None)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "main.py"
    path.write_text(textwrap.dedent(MAIN))
    yield path
    for name in tmp_path.glob("*.pid"):
        for pid in map(int, name.read_text().split()):
            if is_there(pid):
                os.kill(pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_workers_end_when_the_main_process_is_killed(script: Path, tmp_path: Path) -> None:
    main = subprocess.Popen([sys.executable, script, tmp_path, "killed"])
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, "two workers begin")
    finally:
        main.kill()
        main.wait()
    pids = {int(pid) for name in tmp_path.glob("*.pid") for pid in name.read_text().split()}
    assert len(pids) == 3  # two workers, and the template that they were forked from
    wait_until(lambda: not any(map(is_there, pids)), f"{pids} are still there")
    assert not Path((tmp_path / "socket").read_text()).exists()


def test_an_interrupt_while_workers_start_prints_nothing(script: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, script, tmp_path, "interrupted"]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=hear_ctrl_c,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def reader_of_plans(context: Context, uri: str, subdirs: Sequence[str]) -> Callable[[int], tuple[bytes, int]]:
    begun = uuid.uuid4().int
    return lambda index: (context.storage(uri).get(f"{subdirs[index]}/PLAN.json"), begun)


def test_workers_are_given_the_opened_chains(tmp_path: Path) -> None:
    uri, subdirs = f"file://{tmp_path}/shop", ["2026/11/22-143000.12", "2026/11/22-143000.13"]
    context = Context(encryption=EncryptionOptions(passphrase=SecretStr("what opened it")))
    for subdir in subdirs:
        context.storage(uri).put(f"{subdir}/PLAN.json", subdir.encode(), create_only=True)
    # With these keys no worker could open the chain by itself.
    context = replace(context, encryption=EncryptionOptions(passphrase=SecretStr("something else")))
    read: dict[int, tuple[bytes, int]] = {}
    in_processes(context, 1, reader_of_plans, (uri, subdirs), 2, read.__setitem__)
    assert [read[index][0] for index in (0, 1)] == [subdir.encode() for subdir in subdirs]
    assert read[0][1] == read[1][1], "a process begins once"


def failing(context: Context) -> Callable[[int], None]:
    raise BadInput("It cannot begin.")


def test_what_keeps_a_worker_from_beginning_comes_out() -> None:
    with pytest.raises(BadInput, match="It cannot begin"):
        in_processes(Context(), 2, failing, (), 3, lambda *_: pytest.fail("nothing was done"))


FOREIGN = """
import os, sys
from spanvault.engine.context import Context
from spanvault.engine.worker_pool import in_processes

def begin(context):
    return path

def path(index):
    return sys.path, os.environ.get("PYTHONSAFEPATH")

if __name__ == "__main__":
    in_processes(Context(), 1, begin, (), 1, lambda _, found: print(found))
"""


def test_workers_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """Not even where the clone of the project is: its folder has the package's name."""
    folder, script = tmp_path / "current", tmp_path / "elsewhere" / "main.py"
    (folder / "spanvault").mkdir(parents=True)
    for module in ("pyarrow", "signal"):
        (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise ImportError('foreign')")
    script.parent.mkdir()
    script.write_text(FOREIGN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    ended = subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
    assert str(folder) not in ended.stdout
    assert ended.stdout.rstrip().endswith("None)"), "what is started later is started as ever"
