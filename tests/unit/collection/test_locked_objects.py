"""Deleting where the store refuses single deletions: each object in turn is locked, and nothing is ever left that lies."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.chain import OpenLocation
from spanvault.collection.commit import commit
from spanvault.collection.expire import delete_chain, expire
from spanvault.collection.index import list_chains, list_entries, rebuild
from spanvault.collection.layout import index_key, manifest_key, path_kind, plan_key
from spanvault.collection.lookup import is_complete
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import sweep
from spanvault.crypto.keyring import Credentials, Keyring, change_keys
from spanvault.crypto.storage import decrypted
from spanvault.errors import KeyMismatch, Locked, Refused
from spanvault.model.cut import Cut, Lsn
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from spanvault.verify.data import check_data
from tests.kit.collections import (
    PLANNED_AT,
    at,
    make_layer,
    write_collection,
    write_compacted,
    write_layer,
    write_uncommitted,
)
from tests.kit.faults import Faults, FaultyStorage

NOW = datetime(2026, 11, 30, tzinfo=UTC)
OLD = NOW - timedelta(hours=25)
ELSEWHERE = "file:///elsewhere"


class Place:
    """A folder whose store refuses to delete what is locked, and tells nobody before."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.local = LocalStorage(folder, uri)
        self.faults = Faults()
        self.storage: Storage = FaultyStorage(self.local, self.faults)

    def lock(self, key: str) -> None:
        """Refuse to delete what matches `key` from now on."""
        self.faults.add_fault("storage.delete.before", key=key, action=Locked(f"{key!r} is locked."), times=None)

    def objects(self, prefix: str = "") -> set[str]:
        return {info.key for info in self.local.list(prefix)}

    def date(self, when: datetime) -> None:
        for key in self.objects():
            os.utime(self.folder / key, (when.timestamp(), when.timestamp()))


def opener(place: Place) -> OpenLocation:
    def open_location(uri: str) -> Storage:
        assert uri == ELSEWHERE
        return place.storage

    return open_location


def two_places(folder: Path) -> tuple[Place, Place]:
    return Place(folder / "collection", "file:///backups"), Place(folder / "elsewhere", ELSEWHERE)


def write_chain(place: Place, elsewhere: Place) -> str:
    """A full, three layers of which the last has its data elsewhere, and a compacted one; and a newer chain."""
    manifest = write_collection(place.local)
    subdir = manifest.subdir
    for number in (1, 2, 3):
        end = Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(30 + 30 * number))
        location = (ELSEWHERE, elsewhere.local) if number == 3 else None
        manifest = write_layer(place.local, manifest, end=end, location=location)
    write_compacted(place.local, subdir, 1, 2)
    write_collection(place.local, planned_at=PLANNED_AT + timedelta(days=1), run_key="kept")
    return subdir


def tidy(place: Place, elsewhere: Place) -> None:
    """Expire and sweep when all locks have ended."""
    for each in (place, elsewhere):
        each.faults.clear()
        each.date(OLD)
    expire(place.storage, Policy(keep_last=1), now=NOW, dry_run=False, open_location=opener(elsewhere))
    assert sweep(place.storage, now=NOW, dry_run=False, open_location=opener(elsewhere)).problems == ()


@pytest.mark.slow
def test_whichever_object_is_locked_expiry_leaves_a_whole_chain_or_garbage_that_goes_later(tmp_path: Path) -> None:
    place, elsewhere = two_places(tmp_path / "0")
    subdir = write_chain(place, elsewhere)
    candidates = [(0, key) for key in sorted(place.objects()) if key.startswith(subdir) or subdir.replace("/", "") in key]
    candidates += [(1, key) for key in sorted(elsewhere.objects())]
    assert len(candidates) > 30
    outcomes = set()
    for number, (which, key) in enumerate(candidates, start=1):
        places = two_places(tmp_path / str(number))
        assert write_chain(*places) == subdir
        # Names of data are random: the same place in the order is locked.
        found = sorted(k for k in places[which].objects() if k.startswith(subdir) or subdir.replace("/", "") in k)
        locked = found[[k for w, k in candidates if w == which].index(key)]
        places[which].lock(locked)
        report = expire(places[0].storage, Policy(keep_last=1), now=NOW, dry_run=False, open_location=opener(places[1]))
        assert locked in places[which].objects()
        whole = is_complete(places[0].local, subdir)
        outcomes.add(whole)
        if whole:
            assert [lock.subdir for lock in report.locked] == [subdir]
            assert report.problems == ()
            assert check_data(places[0].local, subdir, open_location=opener(places[1])).outcome == "pass"
        else:
            assert report.locked == ()
            assert "1 of its objects" in report.problems[0]
            assert not [entry for entry in list_entries(places[0].local) if entry.subdir == subdir]
            assert places[0].local.head(plan_key(subdir)) is None
            if "/chain/" not in locked:  # The manifests stay: they tell of the location.
                assert places[0].local.head(manifest_key(subdir, 3)) is not None
        sweep(places[0].storage, now=NOW + timedelta(days=9), dry_run=False, open_location=opener(places[1]))
        assert is_complete(places[0].local, subdir) == whole
        tidy(*places)
        assert places[0].objects(subdir) == places[1].objects(subdir) == set()
        assert len(list(list_chains(places[0].local))) == 1
    assert outcomes == {True, False}


def test_the_first_deletion_is_of_what_was_written_last(tmp_path: Path) -> None:
    place, elsewhere = two_places(tmp_path)
    subdir = write_chain(place, elsewhere)
    place.lock(index_key(subdir, 3))
    before = place.objects()
    with pytest.raises(Locked):
        delete_chain(place.storage, subdir, open_location=opener(elsewhere))
    assert place.objects() == before
    assert elsewhere.objects()


def test_who_deletes_a_chain_is_told_what_a_lock_kept_of_it(tmp_path: Path) -> None:
    place, elsewhere = two_places(tmp_path)
    subdir = write_chain(place, elsewhere)
    data = next(key for key in sorted(place.objects(f"{subdir}/000001/")) if "/data/" in key)
    size = place.local.head(data).size  # type: ignore[union-attr]  # it is there
    place.lock(data)
    with pytest.raises(
        Locked, match=rf"The backup {subdir} is deleted, but 1 of its objects \({size} bytes\) are locked"
    ) as told:
        delete_chain(place.storage, subdir, open_location=opener(elsewhere))
    assert f"'{data}' is locked." in str(told.value)
    assert not is_complete(place.local, subdir)
    assert data in place.objects(subdir)
    tidy(place, elsewhere)
    assert place.objects(subdir) == elsewhere.objects(subdir) == set()


def test_whichever_object_of_an_abandoned_run_is_locked_it_can_never_go_on_without_its_files(tmp_path: Path) -> None:
    for kind in ("plan", "data", "receipt", "seal", "files", "dump"):
        place = Place(tmp_path / kind, "file:///backups")
        run = write_uncommitted(place.local)
        place.date(OLD)
        before = place.objects(run.plan.subdir)
        key = next(k for k in sorted(before) if path_kind(k.removeprefix(f"{run.plan.subdir}/")) == kind)
        place.lock(key)
        report = sweep(place.storage, now=NOW, dry_run=False)
        assert report.locked == 1
        assert key in report.problems[0]
        if kind == "plan":
            assert place.objects(run.plan.subdir) == before
            assert report.objects == 0
            commit(place.local, run.manifest)
            assert check_data(place.local, run.plan.subdir).outcome == "pass"
            continue
        assert place.objects(run.plan.subdir) == {key}
        assert report.objects == len(before) - 1
        with pytest.raises(Refused):
            commit(place.local, run.manifest)
        place.faults.clear()
        assert sweep(place.storage, now=NOW, dry_run=False).locked == 0
        assert place.objects(run.plan.subdir) == set()


def test_a_layers_data_elsewhere_stays_while_its_plan_is_locked(tmp_path: Path) -> None:
    place, elsewhere = two_places(tmp_path)
    full = write_collection(place.local)
    end = Cut(lsn=Lsn(0x300), time=at(60))
    layer = make_layer(place.local, full, end=end, location=(ELSEWHERE, elsewhere.local))
    # A layer upon it knows of the location, which the plan of these tests does not name.
    write_layer(place.local, full, end=end, location=(ELSEWHERE, elsewhere.local), run_key="other")
    third = make_layer(
        place.local, layer, end=Cut(lsn=Lsn(0x400), time=at(90)), location=(ELSEWHERE, elsewhere.local), run_key="dead"
    )
    for each in (place, elsewhere):
        each.date(OLD)
    place.lock(plan_key(full.subdir, third.number, "dead"))
    data = elsewhere.objects(f"{full.subdir}/000002/")
    assert data
    assert sweep(place.storage, now=NOW, dry_run=False, open_location=opener(elsewhere)).locked == 1
    assert elsewhere.objects(f"{full.subdir}/000002/") == data
    place.faults.clear()
    sweep(place.storage, now=NOW, dry_run=False, open_location=opener(elsewhere))
    assert elsewhere.objects(f"{full.subdir}/000002/") == set()


def test_a_locked_entry_of_a_backup_that_is_gone_stops_no_rebuild(tmp_path: Path) -> None:
    place, elsewhere = two_places(tmp_path)
    subdir = write_chain(place, elsewhere)
    stale = place.local.get(index_key(subdir, 0))
    delete_chain(place.storage, subdir, open_location=opener(elsewhere))
    place.local.put(index_key(subdir, 0), stale)
    place.lock("metadata/*")
    report = rebuild(place.storage)
    assert (report.removed, report.kept, len(report.problems)) == (0, 1, 1)
    place.faults.clear()
    assert (rebuild(place.storage).removed, rebuild(place.storage).problems) == (1, ())


def test_a_passphrase_is_changed_though_the_old_info_is_locked_and_the_sweep_removes_it_later(tmp_path: Path) -> None:
    place = Place(tmp_path / "collection", "file:///backups")
    old, new = (Credentials(passphrase=SecretStr(text)) for text in ("the old one", "the new one"))
    subdir = write_collection(decrypted(place.local, Keyring(place.local, lambda: old))).subdir
    place.lock("*/ENCRYPTION-INFO-*")
    notes: list[str] = []
    changed = change_keys(place.storage, subdir, old, new, note=notes.append)
    (note,) = notes
    assert "old encryption info" in note
    assert "'*/ENCRYPTION-INFO-*' is locked" in note
    assert place.objects(f"{subdir}/ENCRYPTION") == {f"{subdir}/ENCRYPTION-INFO-00000{number}.json" for number in (0, 1)}
    assert changed.number == 1
    seen = decrypted(place.storage, Keyring(place.storage, lambda: new))
    assert check_data(seen, subdir).outcome == "pass"
    with pytest.raises(KeyMismatch):
        Keyring(place.storage, lambda: old).unlock(subdir)
    place.date(OLD)
    assert sweep(seen, now=NOW, dry_run=False).locked == 1
    place.faults.clear()
    assert sweep(seen, now=NOW, dry_run=False).objects == 1
    assert place.objects(f"{subdir}/ENCRYPTION") == {f"{subdir}/ENCRYPTION-INFO-000001.json"}
    assert check_data(seen, subdir).outcome == "pass"
