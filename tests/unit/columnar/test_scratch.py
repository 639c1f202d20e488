"""What steps write beside a backup, and what of it a killed process leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from spanvault.columnar.scratch import ScratchFile, scratch_faults, scratch_file, scratch_folder
from spanvault.errors import BadInput, Retryable

IN_A_FILE = """
import sys
from pathlib import Path
from spanvault.columnar.scratch import scratch_file
with scratch_file(Path(sys.argv[1]), ".parquet") as (file, path):
    file.write(bytes(100_000))
    file.flush()
    print(path.stat().st_size, flush=True)
    sys.stdin.read()
"""
IN_A_FOLDER = """
import sys
from pathlib import Path
from spanvault.columnar.scratch import scratch_folder
with scratch_folder("merge", Path(sys.argv[1])) as folder:
    (folder / "spill").mkdir()
    (folder / "spill" / "block").write_bytes(b"much")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def at_work(program: str, folder: Path) -> Iterator[str]:
    """The line that a program prints which then waits; killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_read_by_its_path_also_by_programs(tmp_path: Path) -> None:
    with scratch_file(tmp_path, ".dump") as (file, path):
        file.write(b"written")
        file.flush()
        assert path.read_bytes() == b"written"
        assert subprocess.run(["cat", str(path)], capture_output=True, check=True).stdout == b"written"
        subprocess.run(["/bin/sh", "-c", 'printf replaced > "$0"', str(path)], check=True)
        assert path.read_bytes() == b"replaced"
    assert names(tmp_path) == []


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    with at_work(IN_A_FILE, tmp_path) as size:
        assert size == "100000"
    assert names(tmp_path) == []


def test_without_proc_a_file_has_a_name_and_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanvault.columnar.scratch.os.access", lambda *_: False)
    with scratch_file(tmp_path, ".dump") as (file, path):
        file.write(b"written")
        file.flush()
        assert path.parent == tmp_path
        assert path.name.endswith(".dump")
        assert path.read_bytes() == b"written"
    assert names(tmp_path) == []


def test_the_next_folder_deletes_those_of_killed_processes_only(tmp_path: Path) -> None:
    with at_work(IN_A_FOLDER, tmp_path) as killed:
        pass
    (tmp_path / "spanvault-schema-other").mkdir()
    (tmp_path / "spanvault-merge-file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (tmp_path / "spanvault-merge-link").symlink_to(elsewhere)
    stays = ["elsewhere", "spanvault-merge-file", "spanvault-merge-link", "spanvault-schema-other"]
    assert killed in names(tmp_path)
    with at_work(IN_A_FOLDER, tmp_path) as working, scratch_folder("merge", tmp_path) as mine:
        assert names(tmp_path) == sorted([*stays, working, mine.name])
        with scratch_folder("merge", tmp_path) as second:
            assert names(tmp_path) == sorted([*stays, working, mine.name, second.name])
        assert (tmp_path / working / "spill" / "block").read_bytes() == b"much"
    assert (elsewhere / "mine").exists()


def test_without_locks_nothing_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no locks")

    monkeypatch.setattr("spanvault.columnar.scratch.fcntl.flock", refused)
    (tmp_path / "spanvault-merge-left").mkdir()
    with scratch_folder("merge", tmp_path) as folder:
        assert folder.exists()
    assert names(tmp_path) == ["spanvault-merge-left"]


def test_a_folder_that_was_taken_for_a_left_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock another process may have deleted it."""
    made: list[Path] = []

    def deleted(*_: object) -> None:
        if not made:
            made.extend(tmp_path.glob("spanvault-merge-*"))
            made[0].rmdir()

    monkeypatch.setattr("spanvault.columnar.scratch.fcntl.flock", deleted)
    with scratch_folder("merge", tmp_path) as folder:
        assert folder.exists()
        assert folder not in made


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_folder_is_a_sentence_that_names_it(tmp_path: Path, number: int) -> None:
    said = f"{tmp_path} is full: {os.strerror(number)}; .* SPANVAULT_SCRATCH_DIR"
    with pytest.raises(Retryable, match=said), scratch_faults(tmp_path):
        raise OSError(number, "words of a library")


def test_a_device_without_room_fails_a_write_and_lets_the_file_be_closed(tmp_path: Path) -> None:
    full = Path("/dev/full")
    said = "is full: No space left on device"
    with full.open("wb", buffering=0) as device, pytest.raises(Retryable, match=said):
        ScratchFile(device, tmp_path).write(b"at once")
    file = ScratchFile(full.open("wb"), tmp_path)
    file.write(b"later")
    with pytest.raises(Retryable, match=said):
        file.flush()
    file.close()


@pytest.mark.parametrize("use", [lambda folder: scratch_file(folder, ".dump"), lambda folder: scratch_folder("merge", folder)])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, use: Callable[[Path], AbstractContextManager[object]]) -> None:
    with pytest.raises(BadInput, match="nowhere cannot be used: No such file or directory; let SPANVAULT_SCRATCH_DIR"):
        use(tmp_path / "nowhere").__enter__()


def test_a_file_system_that_fails_may_work_again(tmp_path: Path) -> None:
    said = f"failed on the folder for temporary files {tmp_path}: Input/output error"
    with pytest.raises(Retryable, match=said), scratch_faults(tmp_path):
        raise OSError(errno.EIO, "words of a library")


def test_a_system_whose_own_folders_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python finds at its first look: it tries to write into each."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc", "/sys"])
    with pytest.raises(Retryable, match=r"\['/proc', '/sys'\]; make room in one of these, or let SPANVAULT_SCRATCH_DIR"):
        scratch_file(None, ".dump").__enter__()
