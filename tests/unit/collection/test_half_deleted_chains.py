"""Chains whose deletion was interrupted or met a lock: what is left tells of data elsewhere, and goes only with it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.chain import OpenLocation
from spanvault.collection.expire import delete_chain
from spanvault.collection.layout import manifest_key, path_kind
from spanvault.collection.lookup import is_complete
from spanvault.collection.plans import create_plan
from spanvault.collection.sweep import SweepReport, sweep
from spanvault.crypto.keyring import Credentials, Keyring
from spanvault.crypto.storage import decrypted
from spanvault.errors import Locked
from spanvault.model.cut import Cut, Lsn
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from tests.kit.collections import at, incremental_plan, make_layer, write_collection, write_layer
from tests.kit.faults import KILLED, Action, Faults, FaultyStorage, Killed

NOW = datetime(2026, 11, 30, tzinfo=UTC)
OLD = NOW - timedelta(hours=25)
ELSEWHERE = "file:///elsewhere"
NOBODY = Credentials()
OWNER = Credentials(passphrase=SecretStr("of these tests"))


class Places:
    """A collection and an incremental location, seen with a user's passphrase."""

    def __init__(self, folder: Path) -> None:
        self.collection = LocalStorage(folder / "collection", "file:///backups")
        self.elsewhere = LocalStorage(folder / "elsewhere", ELSEWHERE)

    def seen(self, user: Credentials) -> tuple[Storage, Storage]:
        keyring = Keyring(self.collection, lambda: user)
        return decrypted(self.collection, keyring), decrypted(self.elsewhere, keyring)

    def keys(self, subdir: str) -> set[str]:
        return {place.display_uri + info.key for place in (self.collection, self.elsewhere) for info in place.list(subdir)}

    def kinds(self, subdir: str) -> list[str | None]:
        """What is left in the chain's folder of the collection."""
        return [path_kind(info.key.removeprefix(f"{subdir}/")) for info in self.collection.list(f"{subdir}/")]

    def delete(self, user: Credentials, subdir: str, fault: Action) -> None:
        """Delete the chain; each deletion elsewhere meets the fault."""
        collection, elsewhere = self.seen(user)
        faults = Faults()
        faults.add_fault("storage.delete.before", action=fault, times=None)
        delete_chain(collection, subdir, open_location=_opener(FaultyStorage(elsewhere, faults)))

    def sweep(self, user: Credentials) -> SweepReport:
        """Sweep when everything is old."""
        for place in (self.collection, self.elsewhere):
            for info in place.list():
                os.utime(place._root / info.key, (OLD.timestamp(), OLD.timestamp()))
        collection, elsewhere = self.seen(user)
        return sweep(collection, now=NOW, dry_run=False, open_location=_opener(elsewhere))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def _opener(elsewhere: Storage) -> OpenLocation:
    def open_location(uri: str) -> Storage:
        assert uri == ELSEWHERE
        return elsewhere

    return open_location


def _cut(number: int) -> Cut:
    return Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(30 + 60 * number))


def _only_the_owner_sweeps(places: Places, subdir: str) -> None:
    before = places.keys(subdir)
    report = places.sweep(NOBODY)
    assert (report.objects, report.unread) == (0, 1)
    assert subdir in report.problems[0]
    assert "encryption_passphrase" in report.problems[0]
    assert places.keys(subdir) == before
    assert places.sweep(OWNER).problems == ()
    assert places.keys(subdir) == set()


def test_a_plan_that_only_the_passphrase_opens_stays_until_the_data_it_tells_of_can_go(places: Places) -> None:
    collection, elsewhere = places.seen(OWNER)
    full = write_collection(collection)
    plan = incremental_plan(collection, full.subdir, 1, "never committed")
    options = plan.request.options.model_copy(update={"incremental_location": ELSEWHERE})
    request = plan.request.model_copy(update={"options": options})
    assert create_plan(collection, plan.model_copy(update={"request": request}))
    make_layer(collection, full, end=_cut(1), run_key=plan.run_key, with_plan=False, location=(ELSEWHERE, elsewhere))
    with pytest.raises(Killed):
        places.delete(OWNER, full.subdir, KILLED)
    assert not is_complete(places.collection, full.subdir)
    assert "manifest" not in places.kinds(full.subdir)
    _only_the_owner_sweeps(places, full.subdir)


def test_a_manifest_that_only_the_passphrase_opens_stays_until_the_data_it_tells_of_can_go(places: Places) -> None:
    collection, elsewhere = places.seen(OWNER)
    full = write_collection(collection)
    write_layer(collection, full, end=_cut(1), location=(ELSEWHERE, elsewhere))
    with pytest.raises(Locked, match="is deleted, but 1 of its objects"):
        places.delete(OWNER, full.subdir, Locked("It is locked."))
    assert places.kinds(full.subdir) == ["encryption", "manifest"]
    _only_the_owner_sweeps(places, full.subdir)


def test_a_damaged_manifest_of_a_deleted_chain_goes_with_the_rest_and_with_the_data_that_others_tell_of(places: Places) -> None:
    full = write_collection(places.collection)
    one = write_layer(places.collection, full, end=_cut(1))
    write_layer(places.collection, one, end=_cut(2), location=(ELSEWHERE, places.elsewhere))
    with pytest.raises(Locked, match="is deleted, but 1 of its objects"):
        places.delete(NOBODY, full.subdir, Locked("It is locked."))
    assert places.kinds(full.subdir) == ["manifest", "manifest"]
    places.collection.put(manifest_key(full.subdir, 1), b"{}")
    assert len(places.keys(full.subdir)) == 3
    report = places.sweep(NOBODY)
    assert (report.objects, report.problems) == (3, ())
    assert places.keys(full.subdir) == set()
