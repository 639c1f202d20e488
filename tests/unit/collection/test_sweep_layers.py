"""Deleting in chains of several layers: what any layer names stays, wherever it lies."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanvault.collection.chain import OpenLocation, no_locations
from spanvault.collection.commit import commit
from spanvault.collection.expire import delete_chain, expire
from spanvault.collection.files import read_files, write_files
from spanvault.collection.index import list_chains, list_entries
from spanvault.collection.layout import commits_path, data_path, index_key, manifest_key, object_key, plan_key
from spanvault.collection.markers import mark_invalid
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import sweep
from spanvault.errors import BadInput, Refused
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from spanvault.verify.files import check_files
from tests.kit.collections import (
    PLANNED_AT,
    at,
    incremental_plan,
    make_layer,
    write_collection,
    write_compacted,
    write_layer,
)
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed

NOW = datetime(2026, 11, 30, tzinfo=UTC)
OLD = NOW - timedelta(hours=25)
YOUNG = NOW - timedelta(hours=23)
ELSEWHERE = "file:///elsewhere"


@pytest.fixture
def location(tmp_path: Path) -> LocalStorage:
    """An incremental location."""
    return LocalStorage(tmp_path / "elsewhere", ELSEWHERE)


def _opener(location: Storage) -> OpenLocation:
    def open_location(uri: str) -> Storage:
        assert uri == ELSEWHERE
        return location

    return open_location


def _keys(storage: LocalStorage, prefix: str = "") -> set[str]:
    return {info.key for info in storage.list(prefix)}


def _date(storage: LocalStorage, when: datetime, prefix: str = "") -> None:
    for key in _keys(storage, prefix):
        os.utime(storage._root / key, (when.timestamp(), when.timestamp()))


def _swept(storage: LocalStorage, open_location: OpenLocation = no_locations) -> set[str]:
    """Sweep, and return what went from the collection."""
    before = _keys(storage)
    assert sweep(storage, now=NOW, dry_run=False, open_location=open_location).problems == ()
    return before - _keys(storage)


def _cut(lsn: int, seconds: float) -> Cut:
    return Cut(lsn=Lsn(lsn), time=at(seconds))


def _chain(storage: LocalStorage, location: LocalStorage | None = None) -> list[Manifest]:
    """A full and three layers with revision history; the last one's data is at the location, if there is one."""
    chain = [write_collection(storage)]
    for number in (1, 2, 3):
        commits = {"shop": [(0x180 + 0x100 * number, at(60 * number))]}
        place = (ELSEWHERE, location) if location is not None and number == 3 else None
        end = _cut(0x200 + 0x100 * number, 30 + 60 * number)
        chain.append(write_layer(storage, chain[-1], end=end, commits=commits, history=True, location=place))
    return chain


def test_a_sound_chain_has_no_garbage(storage: LocalStorage, location: LocalStorage) -> None:
    chain = _chain(storage, location)
    write_compacted(storage, chain[0].subdir, 1, 2)
    for place in (storage, location):
        _date(place, OLD)
    assert _swept(storage, _opener(location)) == set()
    assert len(_keys(location)) == 1
    assert check_data(storage, open_location=_opener(location)).outcome == "pass"


def test_a_loser_of_a_layer_leaves_its_plan_only(storage: LocalStorage) -> None:
    full = write_collection(storage)
    loser = make_layer(storage, full, end=_cut(0x300, 60), run_key="loser", history=True, commits={"shop": [(0x280, at(50))]})
    written = _keys(storage, f"{full.subdir}/000001/")
    write_layer(storage, full, end=_cut(0x300, 61), run_key="winner")
    with pytest.raises(Refused):
        commit(storage, loser)
    _date(storage, OLD)
    assert _swept(storage) == written - {plan_key(full.subdir, 1, "loser")}
    assert len(written) == 5  # plan, data file, list of files, list of transactions, dump
    assert check_data(storage).outcome == "pass"


def test_a_layer_that_never_committed_goes_whole_and_the_chain_stays(storage: LocalStorage) -> None:
    full = write_collection(storage)
    before = _keys(storage)
    for run in ("a", "b"):
        make_layer(storage, full, end=_cut(0x300, 60), run_key=run)
    _date(storage, OLD)
    written = _keys(storage, f"{full.subdir}/000001/")
    assert _swept(storage) == written
    assert _keys(storage) == before


def test_a_layer_that_anybody_still_writes_is_left_alone(storage: LocalStorage) -> None:
    full = write_collection(storage)
    make_layer(storage, full, end=_cut(0x300, 60), run_key="a")
    make_layer(storage, full, end=_cut(0x300, 60), run_key="b")
    _date(storage, OLD)
    _date(storage, YOUNG, plan_key(full.subdir, 1, "b"))
    assert _swept(storage) == set()


def test_a_run_that_commits_its_layer_while_it_is_swept_keeps_its_files(storage: LocalStorage) -> None:
    full = write_collection(storage)
    layer = make_layer(storage, full, end=_cut(0x300, 60), run_key="late")
    _date(storage, OLD)
    faults = Faults()
    faults.add_fault(
        "storage.delete.before",
        key="*/PLAN-*",
        action=lambda: storage.put(manifest_key(full.subdir, 1), layer.to_json(), create_only=True),
    )
    sweep(FaultyStorage(storage, faults), now=NOW, dry_run=False)
    assert check_data(storage, full.subdir, 1).outcome == "pass"


def test_what_a_compacted_layer_names_in_other_folders_stays(storage: LocalStorage) -> None:
    chain = _chain(storage)
    two = chain[2]
    # A compacted layer that takes its file as it is from a folder whose own layer does not name it any more.
    lost = object_key(two.subdir, data_path(1))
    own = next(read_files(storage, two.subdir, two.files))
    storage.put(lost, storage.get(object_key(two.subdir, own.path)))
    file = own.model_copy(update={"path": lost.removeprefix(f"{two.subdir}/")})
    totals = two.totals.model_copy(update={"files": 1, "file_bytes": file.bytes})
    write_compacted(storage, two.subdir, 1, 2, files=write_files(storage, two.subdir, 2, [file]), totals=totals)
    stray = object_key(two.subdir, commits_path(1, 16384))
    storage.put(stray, b"of a second try")
    _date(storage, OLD)
    assert stray in _swept(storage)
    assert storage.head(lost) is not None
    assert check_data(storage).outcome == "pass"


def test_a_dump_that_two_layers_share_stays(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(0x300, 60), run_key="catch-up")
    two = make_layer(storage, one, end=_cut(0x400, 90), run_key="catch-up")
    shared = two.databases[0].model_copy(update={"schema_dump": one.databases[0].schema_dump})
    unused = object_key(full.subdir, two.databases[0].schema_dump.path)
    commit(storage, two.model_copy(update={"databases": (shared,)}))
    _date(storage, OLD)
    assert _swept(storage) == {unused}
    assert check_files(storage).outcome == "pass"


def test_what_losers_left_at_a_location_goes_and_what_is_named_stays(storage: LocalStorage, location: LocalStorage) -> None:
    chain = _chain(storage, location)
    subdir = chain[0].subdir
    named = _keys(location)
    lost = {object_key(subdir, data_path(number)) for number in (3, 4)}
    for key in (*lost, f"{subdir}/000003/notes.txt", "somebody/else"):
        location.put(key, b"x")
    for place in (storage, location):
        _date(place, OLD)
    report = sweep(storage, now=NOW, open_location=_opener(location))
    assert (report.objects, report.problems) == (2, ())
    assert _keys(location) >= lost
    _swept(storage, _opener(location))
    assert _keys(location) == named | {f"{subdir}/000003/notes.txt", "somebody/else"}


def test_what_others_put_into_a_chains_place_at_a_location_survives_sweep_and_expiry(
    storage: LocalStorage, location: LocalStorage
) -> None:
    chain = _chain(storage, location)
    subdir = chain[0].subdir
    others = {f"{subdir}/000003/notes.txt", f"{subdir}/000003/data/notes.txt", f"{subdir}/notes/data/a.parquet", f"{subdir}/x"}
    for key in others:
        location.put(key, b"of somebody")
    for place in (storage, location):
        _date(place, OLD)
    named = _keys(location) - others
    _swept(storage, _opener(location))
    assert _keys(location) == others | named
    write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    expire(storage, Policy(keep_last=1), now=NOW, dry_run=False, open_location=_opener(location))
    assert _keys(storage, subdir) == set()
    assert _keys(location) == others


@pytest.mark.parametrize("plan", ["swept", "newer"])
def test_a_plan_that_cannot_be_read_keeps_no_garbage_where_the_manifests_tell_enough(
    storage: LocalStorage, location: LocalStorage, plan: str
) -> None:
    chain = _chain(storage, location)
    subdir, key = chain[0].subdir, plan_key(chain[0].subdir, 3, "run-of-layer-3")
    faults = Faults()
    if plan == "swept":
        faults.add_fault("storage.get.before", key=key, action=lambda: storage.delete(key))
    else:
        storage.put(key, b'{"format_version": 9, "a_field_of_the_future": 1}')
    named = _keys(location)
    for place in (storage, location):
        place.put(object_key(subdir, data_path(3)), b"of a second try")
        _date(place, OLD)
    report = sweep(FaultyStorage(storage, faults), now=NOW, dry_run=False, open_location=_opener(location))
    assert (report.objects, report.problems) == (2, ())
    assert _keys(location) == named
    assert check_data(storage, open_location=_opener(location)).outcome == "pass"
    assert (storage.head(key) is None) == (plan == "swept")


def test_a_persons_copy_of_a_plan_sends_no_sweep_or_expiry_to_a_location(storage: LocalStorage) -> None:
    full = write_collection(storage)
    write_layer(storage, full, end=_cut(0x300, 60))
    plan = incremental_plan(storage, full.subdir, 1, "run-of-layer-1")
    options = plan.request.options.model_copy(update={"incremental_location": ELSEWHERE})
    elsewhere = plan.model_copy(update={"request": plan.request.model_copy(update={"options": options})})
    copy = f"{plan_key(full.subdir, 1, plan.run_key)}.before-the-move"
    storage.put(copy, elsewhere.to_json())
    lost = object_key(full.subdir, data_path(1))
    storage.put(lost, b"of a second try")
    _date(storage, OLD)
    assert _swept(storage) == {lost}
    write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    assert expire(storage, Policy(keep_last=1), now=NOW).undeleted == ()


def test_young_files_at_a_location_stay(storage: LocalStorage, location: LocalStorage) -> None:
    chain = _chain(storage, location)
    make_layer(storage, chain[3], end=_cut(0x600, 999), location=(ELSEWHERE, location))
    before = _keys(location)
    _date(location, OLD)
    _date(storage, OLD)
    _date(storage, YOUNG, f"{chain[0].subdir}/000004/")  # its run still writes, if only here
    _swept(storage, _opener(location))
    assert _keys(location) == before


def test_a_location_that_cannot_be_opened_is_named_and_left_alone(storage: LocalStorage, location: LocalStorage) -> None:
    chain = _chain(storage, location)
    lost = object_key(chain[0].subdir, data_path(1))
    storage.put(lost, b"x")
    _date(storage, OLD)
    report = sweep(storage, now=NOW, dry_run=False)
    assert len(report.problems) == 1
    assert ELSEWHERE in report.problems[0]
    assert storage.head(lost) is None
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    kept = _keys(storage, chain[0].subdir)
    expired = expire(storage, Policy(keep_last=1), now=NOW, dry_run=False)
    (undeleted,) = expired.undeleted
    assert undeleted.subdir == chain[0].subdir
    assert ELSEWHERE in undeleted.reason
    assert _keys(storage, chain[0].subdir) == kept
    assert list(list_chains(storage)) == [new.subdir, chain[0].subdir]


def test_expiry_takes_all_layers_and_their_files_elsewhere(storage: LocalStorage, location: LocalStorage) -> None:
    chain = _chain(storage, location)
    write_compacted(storage, chain[0].subdir, 1, 2)
    mark_invalid(storage, chain[0].subdir, 3, "bits were lost", at(0))
    location.put("somebody/else", b"x")
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    report = expire(storage, Policy(keep_last=1), now=NOW, dry_run=False, open_location=_opener(location))
    assert report.problems == ()
    assert _keys(storage, chain[0].subdir) == set()
    assert _keys(location) == {"somebody/else"}
    assert [entry.subdir for entry in list_entries(storage)] == [new.subdir]
    assert check_collection(storage).outcome == "pass"


def test_a_chain_is_as_long_as_its_valid_layers(storage: LocalStorage) -> None:
    chain = _chain(storage)
    mark_invalid(storage, chain[0].subdir, 2, "bits were lost", at(0))
    (decision,) = expire(storage, Policy(keep_last=1), now=NOW).decisions
    assert (decision.chain.start, decision.chain.end) == (chain[0].end.time, chain[1].end.time)


def test_a_marked_chain_neither_expires_nor_counts(storage: LocalStorage) -> None:
    old = write_collection(storage)
    bad = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="bad")
    mark_invalid(storage, bad.subdir, 0, "bits were lost", at(0))
    report = expire(storage, Policy(keep_last=1), now=NOW, dry_run=False)
    assert [decision.chain.subdir for decision in report.decisions] == [old.subdir]
    assert not report.decisions[0].expire
    assert "marked invalid" in report.problems[0]


@pytest.mark.slow
def test_killed_anywhere_expiry_of_layers_leaves_a_whole_chain_or_none(tmp_path: Path) -> None:
    original, location = (LocalStorage(tmp_path / name / "0", f"file:///{name}") for name in ("collection", "elsewhere"))
    chain = _chain(original, location)
    write_compacted(original, chain[0].subdir, 1, 2)
    subdir = chain[0].subdir
    kept = write_collection(original, planned_at=PLANNED_AT + timedelta(days=1), run_key="kept")
    nth = 0
    while True:
        nth += 1
        for name in ("collection", "elsewhere"):
            shutil.copytree(tmp_path / name / "0", tmp_path / name / str(nth))
        storage, data = (LocalStorage(tmp_path / name / str(nth), f"file:///{name}") for name in ("collection", "elsewhere"))
        faults = Faults()
        faults.add_fault("storage.delete.*", nth=nth, action=KILLED)
        try:
            delete_chain(FaultyStorage(storage, faults), subdir, open_location=_opener(FaultyStorage(data, faults)))
        except Killed:
            pass
        else:
            break
        whole = storage.head(manifest_key(subdir)) is not None
        assert check_collection(storage, open_location=_opener(data)).outcome == "pass"
        if whole:
            assert check_data(storage, subdir, open_location=_opener(data)).outcome == "pass"
        else:
            assert not [entry for entry in list_entries(storage) if entry.subdir == subdir]
            assert storage.head(index_key(subdir, 0)) is None
        expire(storage, Policy(keep_last=1), now=NOW, dry_run=False, open_location=_opener(data))
        for place in (storage, data):
            _date(place, OLD)
        _swept(storage, _opener(data))
        assert _keys(storage, subdir) == _keys(data, subdir) == set()
        assert list(list_chains(storage)) == [kept.subdir]
    assert nth > 40


def test_a_location_that_cannot_be_opened_stops_a_deletion_before_it_begins(
    storage: LocalStorage, location: LocalStorage
) -> None:
    chain = _chain(storage, location)
    before = _keys(storage)
    with pytest.raises(BadInput, match=ELSEWHERE):
        delete_chain(storage, chain[0].subdir)
    assert _keys(storage) == before
