"""Deleting: only garbage, only when old enough, and never so that a crash leaves a chain that lies."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanvault.collection.commit import commit
from spanvault.collection.expire import delete_chain, expire
from spanvault.collection.index import list_chains, list_entries
from spanvault.collection.layout import data_path, index_key, manifest_key, object_key, plan_key
from spanvault.collection.lookup import is_complete
from spanvault.collection.plans import create_plan
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import sweep
from spanvault.errors import BadInput, NotFound, Refused
from spanvault.storage.local import LocalStorage
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from tests.kit.collections import PLANNED_AT, ensure, make_plan, write_collection, write_uncommitted
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed

NOW = datetime(2026, 11, 30, tzinfo=UTC)
OLD = NOW - timedelta(hours=25)
YOUNG = NOW - timedelta(hours=23)


def _keys(storage: LocalStorage, prefix: str = "") -> set[str]:
    return {info.key for info in storage.list(prefix)}


def _date(storage: LocalStorage, when: datetime, prefix: str = "") -> None:
    for key in _keys(storage, prefix):
        os.utime(storage._root / key, (when.timestamp(), when.timestamp()))


def _sweep(storage: LocalStorage, *, dry_run: bool = False) -> set[str]:
    """Sweep, and return what went."""
    before = _keys(storage)
    report = sweep(storage, now=NOW, dry_run=dry_run)
    gone = before - _keys(storage)
    assert report.problems == ()
    assert report.objects == len(gone) or dry_run
    return gone


def test_a_sound_collection_has_no_garbage(storage: LocalStorage) -> None:
    write_collection(storage)
    _date(storage, OLD)
    assert _sweep(storage) == set()


def test_the_losers_files_in_a_committed_layer_go_and_its_record_stays(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    lost = [object_key(run.plan.subdir, data_path(0)), f"{run.plan.subdir}/000000/schema-16384-00000000.dump"]
    for key in lost:
        storage.put(key, b"of a second try")
    storage.put(f"{run.plan.subdir}/000000/notes.txt", b"of a person")
    commit(storage, run.manifest)
    _date(storage, OLD)
    assert _sweep(storage, dry_run=True) == set()
    assert sweep(storage, now=NOW).objects == 2
    assert _sweep(storage) == set(lost)
    assert check_data(storage).outcome == "pass"


def test_young_garbage_of_a_committed_layer_stays(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    lost = object_key(manifest.subdir, data_path(0))
    storage.put(lost, b"of a second try")
    _date(storage, OLD)
    _date(storage, YOUNG, lost)
    assert _sweep(storage) == set()


def test_an_abandoned_run_goes_whole(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    run = write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="abandoned")
    _date(storage, OLD)
    expected = _keys(storage, run.plan.subdir)
    assert len(expected) > 8
    assert _sweep(storage) == expected
    assert list(list_chains(storage)) == [manifest.subdir]


@pytest.mark.parametrize("young", ["PLAN.json", "000000/progress/", "000000/data/", "000000/seal-"])
def test_a_run_that_wrote_anything_lately_is_left_alone(storage: LocalStorage, young: str) -> None:
    run = write_uncommitted(storage)
    _date(storage, OLD)
    newest = sorted(_keys(storage, f"{run.plan.subdir}/{young}"))[0]
    _date(storage, YOUNG, newest)
    assert _sweep(storage) == set()


def test_a_run_that_commits_while_it_is_swept_keeps_its_files(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    _date(storage, OLD)
    faults = Faults()
    # The commit has read its plan and creates the manifest just before the sweep deletes the plan.
    faults.add_fault(
        "storage.delete.before",
        key="*/PLAN.json",
        action=lambda: storage.put(manifest_key(run.plan.subdir), run.manifest.to_json(), create_only=True),
    )
    sweep(FaultyStorage(storage, faults), now=NOW, dry_run=False)
    assert check_data(storage, run.plan.subdir).outcome == "pass"


def test_a_swept_run_cannot_commit(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    _date(storage, OLD)
    _sweep(storage)
    with pytest.raises(Refused):
        commit(storage, run.manifest)


def test_a_chain_that_cannot_be_read_is_left_alone_and_named(storage: LocalStorage) -> None:
    bad = write_collection(storage)
    storage.put(manifest_key(bad.subdir), b"{}")
    run = write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="abandoned")
    _date(storage, OLD)
    before = _keys(storage, bad.subdir)
    report = sweep(storage, now=NOW, dry_run=False)
    assert len(report.problems) == 1
    assert _keys(storage, bad.subdir) == before
    assert _keys(storage, run.plan.subdir) == set()


def test_interrupted_uploads_go_when_they_are_old(storage: LocalStorage) -> None:
    write_collection(storage)
    folder = storage._root / ".spanvault-tmp"
    for name, when in (("old", OLD), ("young", YOUNG)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (when.timestamp(), when.timestamp()))
    assert sweep(storage, now=NOW).unfinished == 1
    assert sweep(storage, now=NOW, dry_run=False).unfinished == 1
    assert [file.name for file in folder.iterdir()] == ["young"]


def test_no_collection_and_a_negative_age_are_bad_input(storage: LocalStorage) -> None:
    with pytest.raises(NotFound):
        sweep(storage, now=NOW)
    with pytest.raises(NotFound):
        expire(storage, Policy(keep_last=1), now=NOW)
    ensure(storage)
    with pytest.raises(BadInput):
        sweep(storage, now=NOW, older_than=timedelta(seconds=-1))


def _three(storage: LocalStorage) -> list[str]:
    days = [PLANNED_AT + timedelta(days=number) for number in range(3)]
    return [write_collection(storage, planned_at=day, run_key=str(day)).subdir for day in days]


def test_expiry_shows_first_and_deletes_whole_chains_when_told(storage: LocalStorage) -> None:
    subdirs = _three(storage)
    everything = _keys(storage)
    report = expire(storage, Policy(keep_last=1), now=NOW)
    assert [(decision.chain.subdir, decision.expire) for decision in report.decisions] == [
        (subdirs[2], False),
        (subdirs[1], True),
        (subdirs[0], True),
    ]
    assert _keys(storage) == everything
    expire(storage, Policy(keep_last=1), now=NOW, dry_run=False)
    assert list(list_chains(storage)) == [subdirs[2]]
    assert [entry.subdir for entry in list_entries(storage)] == [subdirs[2]]
    assert _keys(storage, subdirs[0]) == _keys(storage, subdirs[1]) == set()
    assert check_collection(storage).outcome == "pass"


def test_a_chain_that_cannot_be_read_neither_expires_nor_counts(storage: LocalStorage) -> None:
    subdirs = _three(storage)
    storage.put(manifest_key(subdirs[2]), b"{}")
    report = expire(storage, Policy(keep_last=1), now=NOW, dry_run=False)
    assert len(report.problems) == 1
    assert [decision.chain.subdir for decision in report.decisions if not decision.expire] == [subdirs[1]]
    assert _keys(storage, subdirs[2])
    assert check_data(storage, subdirs[1]).outcome == "pass"


def test_a_chain_that_somebody_else_deletes_meanwhile_is_no_problem(storage: LocalStorage) -> None:
    subdirs = _three(storage)
    faults = Faults()
    faults.add_fault("storage.list.before", key=f"{subdirs[0]}/chain/", action=lambda: delete_chain(storage, subdirs[0]))
    report = expire(FaultyStorage(storage, faults), Policy(keep_last=1), now=NOW)
    assert report.problems == ()
    assert {decision.chain.subdir for decision in report.decisions} == set(subdirs[1:])


def test_killed_anywhere_expiry_leaves_a_whole_chain_or_none(tmp_path: Path) -> None:
    original = LocalStorage(tmp_path / "original", "file:///backups")
    old = write_uncommitted(original, run_key="old")
    commit(original, old.manifest)
    kept = write_collection(original, planned_at=PLANNED_AT + timedelta(days=1), run_key="kept")
    nth = 0
    while True:
        nth += 1
        shutil.copytree(tmp_path / "original", tmp_path / str(nth))
        storage = LocalStorage(tmp_path / str(nth), "file:///backups")
        faults = Faults()
        faults.add_fault("storage.delete.*", nth=nth, action=KILLED)
        try:
            delete_chain(FaultyStorage(storage, faults), old.plan.subdir)
        except Killed:
            pass
        else:
            break
        _check_after_crash(storage, old.plan.subdir)
        with pytest.raises(Refused) if not is_complete(storage, old.plan.subdir) else _allowed():
            commit(storage, old.manifest)
        expire(storage, Policy(keep_last=1), now=NOW, dry_run=False)
        _date(storage, OLD)
        _sweep(storage)
        assert _keys(storage, old.plan.subdir) == set()
        assert list(list_chains(storage)) == [kept.subdir]
        assert check_collection(storage).outcome == "pass"
    assert nth > 20


def _check_after_crash(storage: LocalStorage, subdir: str) -> None:
    """The chain is there and whole, or it is nowhere to be found and its place stays taken while anything is left."""
    result = check_collection(storage)
    assert result.outcome == "pass", result.failures
    assert (subdir in list_chains(storage)) == is_complete(storage, subdir)
    if is_complete(storage, subdir):
        assert check_data(storage, subdir).outcome == "pass"
    else:
        assert storage.head(plan_key(subdir)) is None
        assert storage.head(index_key(subdir, 0)) is None
    if _keys(storage, subdir):
        assert not create_plan(storage, make_plan(ensure(storage), planned_at=PLANNED_AT, run_key="again"))


def _allowed() -> nullcontext[None]:
    return nullcontext()
