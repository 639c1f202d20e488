"""The test kit's faults do what tests rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spanvault.errors import AlreadyExists, Retryable
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed

KILLED_CHILD = """
import sys
from pathlib import Path
from spanvault.storage.local import LocalStorage
from tests.kit.faults import KILL, Faults, FaultyStorage
faults = Faults()
faults.add_fault("storage.open_write.publish", action=KILL)
with FaultyStorage(LocalStorage(Path(sys.argv[1]), "file:///x"), faults).open_write("key") as writer:
    writer.write(b"1")
"""


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def storage(tmp_path: Path, faults: Faults) -> FaultyStorage:
    return FaultyStorage(LocalStorage(tmp_path / "root", "file:///x"), faults)


def test_it_is_a_storage(storage: FaultyStorage) -> None:
    assert isinstance(storage, Storage)
    storage.put("a", b"1")
    with storage.open_write("b/c") as writer:
        writer.write(b"2")
    assert storage.get("a") + b"".join(storage.read_chunks("b/c")) == b"12"
    assert [info.key for info in storage.list()] == ["a", "b/c"]
    assert list(storage.list_folders()) == ["b/"]
    storage.delete("a")
    assert storage.head("a") is None


def test_a_lost_answer_is_an_error_after_the_effect(storage: FaultyStorage, faults: Faults) -> None:
    faults.add_fault("storage.put.after", key="chain/*", action=Retryable("The answer was lost."))
    with pytest.raises(Retryable):
        storage.put("chain/000000.json", b"1", create_only=True)
    with pytest.raises(AlreadyExists):
        storage.put("chain/000000.json", b"1", create_only=True)


def test_the_nth_time_and_no_other(storage: FaultyStorage, faults: Faults) -> None:
    fault = faults.add_fault("storage.put.before", nth=3, times=2, action=KILLED)
    outcomes = []
    for number in range(6):
        try:
            storage.put(f"{number}", b"")
            outcomes.append(True)
        except Killed:
            outcomes.append(False)
    assert outcomes == [True, True, False, False, True, True]
    assert fault.fired == 2
    assert [info.key for info in storage.list()] == ["0", "1", "4", "5"]
    assert faults.count("storage.put.before") == 6
    assert faults.count("storage.put.after") == 4


def test_a_kill_before_publishing_leaves_nothing(storage: FaultyStorage, faults: Faults) -> None:
    faults.add_fault("storage.open_write.publish", action=KILLED)
    with pytest.raises(Killed), storage.open_write("key") as writer:
        writer.write(b"1")
    assert storage.head("key") is None


def test_a_real_kill_is_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_CHILD, str(tmp_path / "root")], check=False)
    assert done.returncode == -9
    storage = LocalStorage(tmp_path / "root", "file:///x")
    assert storage.head("key") is None
    assert len(list(storage.list_unfinished())) == 1


def test_steps_are_points_too(faults: Faults) -> None:
    seen: list[str] = []
    faults.add_fault("seal.after_*", nth=2, action=lambda: seen.append("called"))
    for name in ("seal.before_dump", "seal.after_dump", "seal.after_change_files", "seal.after_dump"):
        faults.reach(name)
    assert seen == ["called"]
    assert faults.points() == ["seal.before_dump", "seal.after_dump", "seal.after_change_files"]
    faults.clear()
    assert faults.points() == []
