"""Chains under real object locks: expiry looks before it deletes, and locks are extended over whole chains."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from spanvault.collection.chain import OpenLocation
from spanvault.collection.expire import delete_chain, expire
from spanvault.collection.index import list_chains, list_entries
from spanvault.collection.layout import COLLECTION_KEY, data_path, index_key, manifest_key, object_key, plan_key
from spanvault.collection.locks import end_of_newest, extend_chain
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import sweep
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.engine.context import Context
from spanvault.engine.locks import extend_lock
from spanvault.engine.maintenance import expire_backups
from spanvault.errors import BadInput, Locked, NotFound
from spanvault.model.cut import Cut, Lsn
from spanvault.storage.base import LockableStorage, Storage
from spanvault.storage.local import LocalStorage
from spanvault.storage.registry import open_storage
from spanvault.verify.data import check_data
from tests.kit.collections import PLANNED_AT, at, write_collection, write_layer, write_uncommitted
from tests.kit.command_line import answer, refusal

pytestmark = pytest.mark.slow

LATER = datetime.now(UTC) + timedelta(days=2)
BUCKET = "chain-locks"
DAY = 86_400
LOCKS = "&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=1"


@pytest.fixture(scope="module")
def lock_bucket(seaweed: SeaweedServer) -> str:
    """A bucket with object locks."""
    client = seaweed.client()
    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    client.close()
    return BUCKET


class Bucket:
    """A place in the bucket, and an administrator's hand on its locks."""

    def __init__(self, seaweed: SeaweedServer) -> None:
        self.path = str(uuid.uuid4())
        self.uri = seaweed.uri(BUCKET, self.path)
        self.client = seaweed.client()

    def open(self, parameters: str = "") -> LockableStorage:
        storage = open_storage(self.uri + parameters, settings=Settings(), connections=EnvironmentConnections({}))
        assert isinstance(storage, LockableStorage)
        return storage

    def hold(self, key: str, status: str) -> None:
        hold = {"Status": status}
        self.client.put_object_legal_hold(Bucket=BUCKET, Key=f"{self.path}/{key}", LegalHold=hold)  # type: ignore[arg-type]

    def retain(self, key: str, until: datetime) -> None:
        retention = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
        self.client.put_object_retention(Bucket=BUCKET, Key=f"{self.path}/{key}", Retention=retention)  # type: ignore[arg-type]

    def versions(self, prefix: str) -> int:
        answer = self.client.list_object_versions(Bucket=BUCKET, Prefix=f"{self.path}/{prefix}")
        return len(answer.get("Versions", ())) + len(answer.get("DeleteMarkers", ()))


@pytest.fixture
def bucket(seaweed: SeaweedServer, lock_bucket: str) -> Iterator[Bucket]:
    place = Bucket(seaweed)
    yield place
    place.client.close()


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [info.key for info in storage.list(prefix)]


def two_chains(storage: Storage) -> tuple[str, str]:
    old = write_collection(storage)
    write_layer(storage, old, end=Cut(lsn=Lsn(0x300), time=at(60)))
    return old.subdir, write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="kept").subdir


def first(storage: Storage, prefix: str) -> str:
    return keys(storage, prefix)[0]


def test_a_chain_of_which_anything_is_held_stays_whole_until_it_is_not(bucket: Bucket) -> None:
    storage = bucket.open()
    subdir, kept = two_chains(storage)
    before = keys(storage)
    for held in (
        plan_key(subdir),
        manifest_key(subdir),
        manifest_key(subdir, 1),
        index_key(subdir, 0),
        first(storage, f"{subdir}/000000/data/"),
        first(storage, f"{subdir}/000000/progress/"),
    ):
        bucket.hold(held, "ON")
        for dry_run in (True, False):
            report = expire(storage, Policy(keep_last=1), now=LATER, dry_run=dry_run)
            (lock,) = report.locked
            assert (lock.subdir, lock.until, lock.reason) == (subdir, None, f"a legal hold protects {held}")
            assert report.problems == ()
        with pytest.raises(Locked, match=f"{subdir} is not deleted: a legal hold protects {held}"):
            delete_chain(storage, subdir)
        assert keys(storage) == before
        bucket.hold(held, "OFF")
    bucket.hold(plan_key(subdir), "ON")
    assert check_data(storage, subdir).outcome == "pass"
    rows = expire_backups(Context(), bucket.uri, keep_last=1, window=None, dry_run=False).dicts()
    assert [(row["path"], row["decision"]) for row in rows] == [(kept, "keep"), (subdir, "locked")]
    bucket.hold(plan_key(subdir), "OFF")
    report = expire(storage, Policy(keep_last=1), now=LATER, dry_run=False)
    assert (report.locked, report.problems) == ((), ())
    assert list(list_chains(storage)) == [kept]
    assert [entry.subdir for entry in list_entries(storage)] == [kept]
    assert bucket.versions(subdir) == 0


def test_the_lock_that_ends_last_says_until_when(bucket: Bucket) -> None:
    storage = bucket.open()
    subdir, _ = two_chains(storage)
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=12)
    bucket.retain(manifest_key(subdir), soon - timedelta(seconds=2))
    bucket.retain(manifest_key(subdir, 1), soon)
    (lock,) = expire(storage, Policy(keep_last=1), now=LATER, dry_run=False).locked
    assert lock.until == soon
    assert lock.reason == f"{manifest_key(subdir, 1)} is protected until {soon:%Y-%m-%d %H:%M:%S} UTC"
    time.sleep(max(0.0, soon.timestamp() - time.time()) + 1.5)
    assert expire(storage, Policy(keep_last=1), now=LATER, dry_run=False).locked == ()
    assert bucket.versions(subdir) == 0


def test_data_elsewhere_is_looked_at_too(bucket: Bucket, tmp_path: Path) -> None:
    storage, elsewhere = LocalStorage(tmp_path, "file:///backups"), bucket.open()
    full = write_collection(storage)
    write_layer(storage, full, end=Cut(lsn=Lsn(0x300), time=at(60)), location=("s3://elsewhere", elsewhere))
    write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="kept")
    held = first(elsewhere, full.subdir)
    bucket.hold(held, "ON")
    before = keys(storage)
    opened: OpenLocation = lambda _: elsewhere  # noqa: E731
    report = expire(storage, Policy(keep_last=1), now=LATER, dry_run=False, open_location=opened)
    assert [lock.reason for lock in report.locked] == [f"a legal hold protects {held}"]
    assert keys(storage) == before
    bucket.hold(held, "OFF")
    expire(storage, Policy(keep_last=1), now=LATER, dry_run=False, open_location=opened)
    assert keys(storage, full.subdir) == keys(elsewhere) == []


def test_locked_garbage_is_counted_and_goes_when_the_lock_has_ended(bucket: Bucket) -> None:
    storage = bucket.open()
    run = write_uncommitted(storage)
    count = len(keys(storage, run.plan.subdir))
    held = first(storage, f"{run.plan.subdir}/000000/data/")
    bucket.hold(held, "ON")
    report = sweep(storage, now=LATER, dry_run=False)
    assert (report.objects, report.locked) == (count - 1, 1)
    assert "'" + held + "'" in report.problems[0]
    bucket.hold(held, "OFF")
    report = sweep(storage, now=LATER, dry_run=False)
    assert (report.objects, report.locked, report.problems) == (1, 0, ())
    assert bucket.versions(run.plan.subdir) == 0


def test_a_chain_is_extended_whole_never_shortened_and_goes_on_after_an_interruption(bucket: Bucket) -> None:
    storage = bucket.open(LOCKS)
    subdir, kept = two_chains(storage)
    needed = {COLLECTION_KEY, index_key(subdir, 0), index_key(subdir, 1), *keys(storage, subdir)}
    others = {key: storage.lock_of(key) for key in keys(storage, kept)}
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    longer = until + timedelta(days=1)
    bucket.retain(manifest_key(subdir), longer)
    seen: list[None] = []

    def interrupt() -> None:
        seen.append(None)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend_chain(storage, subdir, (), until, interrupt)
    done = extend_chain(storage, subdir, (), until)
    assert done.extended + done.unchanged == len(needed)
    assert done.unchanged >= 3
    again = extend_chain(bucket.open(), subdir, (), until - timedelta(days=1))
    assert (again.extended, again.unchanged) == (0, len(needed))
    for key in needed:
        lock = storage.lock_of(key)
        assert lock is not None
        assert lock.until == (longer if key == manifest_key(subdir) else until).timestamp()
    assert {key: storage.lock_of(key) for key in keys(storage, kept)} == others


def test_garbage_that_is_swept_meanwhile_stops_no_extension(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, sweeper = bucket.open(LOCKS), bucket.open()
    subdir, _ = two_chains(storage)
    needed = {COLLECTION_KEY, index_key(subdir, 0), index_key(subdir, 1), *keys(storage, subdir)}
    garbage = object_key(subdir, data_path(0))
    sweeper.put(garbage, b"of a second try")
    extend = storage.extend_lock

    def swept_just_before(key: str, until: float) -> bool:
        if key == garbage:
            sweeper.delete(key)
        return extend(key, until)

    monkeypatch.setattr(storage, "extend_lock", swept_just_before)
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    done = extend_chain(storage, subdir, (), until)
    assert (done.extended, done.unchanged) == (len(needed), 0)
    assert sweeper.head(garbage) is None
    for key in needed:
        lock = storage.lock_of(key)
        assert lock is not None
        assert lock.until == until.timestamp()


def test_without_a_time_a_chain_is_kept_as_long_as_its_newest_layer(bucket: Bucket) -> None:
    storage = bucket.open(LOCKS)
    subdir, _ = two_chains(storage)
    wanted = datetime.now(UTC).replace(microsecond=0) + timedelta(days=5)
    bucket.retain(manifest_key(subdir, 1), wanted)
    assert end_of_newest(storage, subdir) == wanted
    (row,) = extend_lock(Context(), bucket.uri, subdir).dicts()
    assert (row["path"], row["until"]) == (subdir, f"{wanted:%Y-%m-%d %H:%M:%S}.000000+00")
    assert row["unchanged"] == 1
    data = first(storage, f"{subdir}/000000/data/")
    lock = storage.lock_of(data)
    assert lock is not None
    assert lock.until == wanted.timestamp()
    (row,) = extend_lock(Context(), bucket.uri, "LATEST", days=4).dicts()
    assert row["path"] != subdir
    lock = storage.lock_of(manifest_key(str(row["path"])))
    assert lock is not None
    assert time.time() + 4 * DAY - 60 < lock.until < time.time() + 4 * DAY + 1


def test_the_command_takes_a_time_with_or_without_a_zone(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    storage = bucket.open(LOCKS)
    _, subdir = two_chains(storage)
    command = ("collection", "extend-lock", bucket.uri)
    wanted = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    count = str(len(keys(storage, subdir)) + 2)  # COLLECTION.json and the index entry
    (row,) = answer(capsys, *command, "--until", f"{wanted:%Y-%m-%d %H:%M:%S}")
    assert row == {"path": subdir, "until": f"{wanted:%Y-%m-%d %H:%M:%S}.000000+00", "extended": count, "unchanged": "0"}
    later = wanted + timedelta(hours=1)
    (row,) = answer(capsys, *command, subdir, "--until", later.astimezone(timezone(timedelta(hours=-3))).isoformat())
    assert (row["until"], row["extended"]) == (f"{later:%Y-%m-%d %H:%M:%S}.000000+00", count)
    assert "--until 'tomorrow' is no time" in refusal(capsys, 2, *command, "--until", "tomorrow")


def test_what_cannot_be_extended_says_why(bucket: Bucket, tmp_path: Path) -> None:
    storage = bucket.open()
    subdir, _ = two_chains(storage)
    with pytest.raises(BadInput, match=f"Layer 1 of the backup {subdir} .* has no lock that ends at a date; say until when"):
        extend_lock(Context(), bucket.uri, subdir)
    with pytest.raises(BadInput, match="has no lock to extend, and no OBJECT_LOCK_MODE"):
        extend_lock(Context(), bucket.uri, subdir, days=1)
    local = LocalStorage(tmp_path, "file:///backups")
    written = write_collection(local).subdir
    with pytest.raises(BadInput, match="file:///backups is in a store whose object locks Spanvault cannot extend"):
        extend_chain(local, written, (), LATER)
    with pytest.raises(NotFound):
        extend_lock(Context(), bucket.uri, "2020/01/01-000000.00", days=1)
    done = extend_chain(bucket.open(LOCKS), subdir, (local,), LATER)
    assert (done.unchanged, done.without) == (0, ("file:///backups",))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"days": 1, "until": LATER}, "Say until when, or for how many days; not both"),
        ({"days": 0}, "from 1 to 36500 days, not 0"),
        ({"days": 36_501}, "from 1 to 36500 days, not 36501"),
        ({"until": datetime(2026, 1, 1, tzinfo=UTC)}, "in the future, within 36500 days, and not at 2026-01-01 00:00:00"),
        ({"until": datetime(2206, 11, 30, tzinfo=UTC)}, "in the future, within 36500 days, and not at 2206-11-30"),
    ],
    ids=["both", "none", "too-many", "past", "a-slip-of-the-pen"],
)
def test_a_time_that_cannot_be_meant_is_refused(tmp_path: Path, asked: dict[str, object], sentence: str) -> None:
    write_collection(LocalStorage(tmp_path, "file:///backups"))
    with pytest.raises(BadInput, match=sentence):
        extend_lock(Context(), f"file://{tmp_path}", "LATEST", **asked)  # type: ignore[arg-type]
