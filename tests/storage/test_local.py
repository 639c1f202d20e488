"""What only folders do: races with vanishing folders, foreign files, refusals of the file system."""

from __future__ import annotations

import errno
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spanvault.errors import AlreadyExists, BadInput, NotFound, Retryable, SpanvaultError
from spanvault.storage.base import Unfinished
from spanvault.storage.local import TEMPORARY_FOLDER, LocalStorage
from tests.kit.small_disk import on_small_disk


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root", "file:///root")


def test_folders_go_with_their_last_object(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/b/c", b"")
    storage.put("a/d", b"")
    storage.delete("a/b/c")
    assert not (tmp_path / "root" / "a" / "b").exists()
    storage.delete("a/d")
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [TEMPORARY_FOLDER]


def test_writers_survive_the_deletion_of_their_folder(storage: LocalStorage) -> None:
    rounds, gate = 200, threading.Barrier(4)

    def use(number: int) -> None:
        gate.wait()
        for _ in range(rounds):
            storage.put(f"shared/folder/{number}", b"x", create_only=True)
            assert storage.get(f"shared/folder/{number}") == b"x"
            storage.delete(f"shared/folder/{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    assert list(storage.list()) == []


def test_foreign_files_are_no_objects(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("mine", b"1")
    root = tmp_path / "root"
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "empty" / "below").mkdir(parents=True)
    (root / ("n" * 240)).write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/latin-\xff")).write_bytes(b"")
    os.mkfifo(root / "pipe")
    assert [info.key for info in storage.list()] == ["mine"]
    assert list(storage.list_folders()) == []
    assert storage.head("link") is storage.head("pipe") is storage.head("empty") is None


def test_an_object_is_not_a_folder(storage: LocalStorage) -> None:
    storage.put("a/b", b"1")
    with pytest.raises(BadInput, match="a part of its path is not a folder"):
        storage.put("a/b/c", b"2")
    with pytest.raises(NotFound, match="is a folder, not an object"):
        storage.get("a")
    with pytest.raises(AlreadyExists):
        storage.put("a", b"2", create_only=True)
    with pytest.raises(SpanvaultError, match="is a folder, not an object"):
        storage.put("a", b"2")
    storage.delete("a")
    assert storage.get("a/b") == b"1"
    assert list(storage.list_unfinished()) == []


# Each way to write meets the end of the disk in another call: a stream in its middle, what is small at its flush.
ON_A_FULL_DISK = """
import sys
from pathlib import Path
from spanvault.errors import Retryable
from spanvault.storage.local import LocalStorage
storage = LocalStorage(Path(sys.argv[1]), "file:///small")
try:
    with storage.open_write("stream") as writer:
        writer.write(bytes(3 << 20))
except Retryable as error:
    print(error)
try:
    storage.put("small", bytes(300_000), create_only=True)
except Retryable as error:
    print(error)
print(storage.head("stream"), storage.head("small"), list(storage.list_unfinished()))
storage.put("smaller", bytes(30_000))
"""


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    done = on_small_disk(256 << 10, tmp_path, [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "'stream' cannot be written to file:///small: No space left on device.",
        "'small' cannot be written to file:///small: No space left on device.",
        "None None []",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_whose_end_shows_at_the_last_moment_may_have_room_later(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As file systems do that find room only when they write, such as NFS."""

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("spanvault.storage.local.os.fsync", full)
        with pytest.raises(Retryable, match=f"'key' cannot be written to .*: {os.strerror(number)}"):
            storage.put("key", b"1")
    assert storage.head("key") is None
    assert list(storage.list_unfinished()) == []


def test_a_file_that_is_larger_than_allowed_is_a_sentence_and_leaves_nothing(storage: LocalStorage) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old_limit[1]))
    try:
        with pytest.raises(SpanvaultError, match="File too large"), storage.open_write("stream") as writer:
            writer.write(bytes(3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert storage.head("stream") is None
    assert list(storage.list_unfinished()) == []


def test_leftovers_are_removed_by_name_only(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("key", b"1")
    for handle in ("../key", "/etc/passwd", "", ".."):
        with pytest.raises(SpanvaultError):
            storage.remove_unfinished(Unfinished(key="", started=0, handle=handle))
    assert storage.get("key") == b"1"
