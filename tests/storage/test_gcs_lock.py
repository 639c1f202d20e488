"""Object locks on Google Cloud Storage, against FakeGcsBucket: fake-gcs-server has neither retention nor holds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from spanvault.collection.locks import chain_lock
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.storage_check import storage_check
from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, LockInfo, Storage
from spanvault.storage.gcs_upload import WHOLE_BYTES
from spanvault.storage.limit import limited
from spanvault.storage.lock_terms import NoLocks
from tests.kit.fake_gcs_bucket import FakeGcsBucket, told_date
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

pytestmark = pytest.mark.slow

Place = Callable[..., LockableStorage]
DAY = 86_400
GOVERNED = {"OBJECT_LOCK_MODE": "GOVERNANCE", "OBJECT_LOCK_DAYS": "2"}


@pytest.fixture(params=[False, True], ids=["without versions", "with versions"])
def bucket(request: pytest.FixtureRequest) -> Iterator[FakeGcsBucket]:
    """A bucket with object retention."""
    with FakeGcsBucket(retention=True, versioning=request.param) as bucket:
        yield bucket


@pytest.fixture
def at(opened: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LockableStorage]:
    """Opens `a` in the bucket at a port, with parameters as keywords."""

    def at(port: int, **params: str) -> LockableStorage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        pairs = "".join(f"&{name}={value}" for name, value in params.items())
        storage = opened(f"gs://bucket/a?AUTH=implicit{pairs}", storage_attempts=2)
        assert isinstance(storage, LockableStorage)
        return storage

    return at


@pytest.fixture
def place(bucket: FakeGcsBucket, at: Callable[..., LockableStorage]) -> Place:
    """Opens the place in that bucket."""
    return lambda **params: at(bucket.port, **params)


def creations(storage: Storage) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each way to create an object, with the key that it creates: in one call, and by a resumable upload."""
    yield "put", lambda: storage.put("put", b"1")
    yield "create", lambda: storage.put("create", b"1", create_only=True)
    yield "small", lambda: stream(storage, "small", 10)
    yield "large", lambda: stream(storage, "large", WHOLE_BYTES + 1)


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


@pytest.mark.parametrize(("mode", "theirs"), [("GOVERNANCE", "Unlocked"), ("COMPLIANCE", "Locked")])
def test_every_object_of_google_is_locked_for_the_days_asked_for(
    place: Place, bucket: FakeGcsBucket, mode: str, theirs: str
) -> None:
    storage = place(OBJECT_LOCK_MODE=mode, OBJECT_LOCK_DAYS="2")
    for key, create in creations(storage):
        before = time.time()
        create()
        found = bucket.live(f"a/{key}")
        assert found is not None
        assert found.retention is not None
        assert found.retention["mode"] == theirs
        until = datetime.fromisoformat(found.retention["retainUntilTime"]).timestamp()
        assert before + 2 * DAY - 0.001 <= until <= time.time() + 2 * DAY
        assert storage.lock_of(key) == LockInfo(mode=mode, until=until, legal_hold=False)
        sentence = rf"^'{key}' in gs://bucket/a is protected until \d{{4}}-.* UTC \({mode}\) and was not deleted\.$"
        with pytest.raises(Locked, match=sentence) as caught:
            storage.delete(key)
        assert caught.value.__cause__ is None
        assert storage.head(key) is not None
    with pytest.raises(AlreadyExists):
        storage.put("put", b"2", create_only=True)


def test_a_legal_hold_is_a_temporary_hold(place: Place, bucket: FakeGcsBucket) -> None:
    storage = place(OBJECT_LOCK_LEGAL_HOLD="true")
    for key, create in creations(storage):
        create()
        found = bucket.live(f"a/{key}")
        assert found is not None
        assert (found.temporary_hold, found.retention) == (True, None)
        assert storage.lock_of(key) == LockInfo(mode=None, until=0, legal_hold=True)
        with pytest.raises(Locked, match="is protected by a legal hold and was not deleted"):
            storage.delete(key)
        found.temporary_hold = False
        storage.delete(key)
        assert storage.head(key) is None
    both = place(**GOVERNED, OBJECT_LOCK_LEGAL_HOLD="true")
    both.put("both", b"1")
    with pytest.raises(Locked, match=r"UTC \(GOVERNANCE\) and by a legal hold"):
        both.delete("both")


def test_what_is_not_asked_for_is_not_locked(place: Place, bucket: FakeGcsBucket) -> None:
    storage = place()
    assert storage.object_lock is None
    for key, create in creations(storage):
        create()
        assert storage.lock_of(key) is None
    assert all("retention" not in one.resource() and "temporaryHold" not in one.resource() for one in bucket.objects)
    for key, _ in creations(storage):
        storage.delete(key)
    assert bucket.objects == []


def test_googles_own_locks_count(place: Place, bucket: FakeGcsBucket) -> None:
    ends = datetime(2126, 5, 1, 12, tzinfo=UTC)
    past = told_date(datetime.now(UTC) - timedelta(seconds=1))
    bucket.add("a/policy", b"", policy_until=ends)
    bucket.add("a/event", b"", event_based_hold=True)
    bucket.add("a/over", b"", retention={"mode": "Locked", "retainUntilTime": past})
    later = {"mode": "Unlocked", "retainUntilTime": told_date(ends - timedelta(days=9))}
    bucket.add("a/both", b"", policy_until=ends, retention=later)
    storage = place()
    assert storage.lock_of("policy") == LockInfo(mode=None, until=ends.timestamp(), legal_hold=False)
    assert storage.lock_of("event") == LockInfo(mode=None, until=0, legal_hold=True)
    assert storage.lock_of("over") is None
    assert storage.lock_of("both") == LockInfo(mode="GOVERNANCE", until=ends.timestamp(), legal_hold=False)
    assert {info.key: info.locked for info in storage.list()} == {"both": True, "event": True, "over": False, "policy": True}
    assert not place(**GOVERNED).extend_lock("policy", ends.timestamp())


def test_a_google_lock_is_extended_and_never_shortened(place: Place, bucket: FakeGcsBucket) -> None:
    for mode in ("COMPLIANCE", "GOVERNANCE"):
        storage = place(OBJECT_LOCK_MODE=mode, OBJECT_LOCK_DAYS="1")
        storage.put(mode, b"1")
        wanted = time.time() + 9 * DAY
        other = place(OBJECT_LOCK_MODE="GOVERNANCE", OBJECT_LOCK_DAYS="1")
        assert other.extend_lock(mode, wanted)  # The object's own mode counts.
        lock = storage.lock_of(mode)
        assert lock is not None
        assert (lock.mode, lock.legal_hold) == (mode, False)
        assert abs(lock.until - wanted) < 0.001
        assert not storage.extend_lock(mode, lock.until - DAY)
        assert not storage.extend_lock(mode, lock.until)
        assert storage.lock_of(mode) == lock
    assert not any("overrideUnlockedRetention" in line for line in bucket.requests)


def test_what_was_locked_for_good_is_locked_so_again(place: Place, bucket: FakeGcsBucket) -> None:
    past = told_date(datetime.now(UTC) - timedelta(days=1))
    bucket.add("a/key", b"", retention={"mode": "Locked", "retainUntilTime": past})
    wanted = float(int(time.time()) + DAY)
    assert place(**GOVERNED).extend_lock("key", wanted)
    assert place().lock_of("key") == LockInfo(mode="COMPLIANCE", until=wanted, legal_hold=False)


def test_another_who_extends_it_further_meanwhile_is_no_fault(bucket: FakeGcsBucket, at: Place) -> None:
    with TcpProxy(bucket.port) as proxy:
        storage = at(proxy.port, **GOVERNED)
        storage.put("key", b"1")
        wanted = time.time() + 9 * DAY
        # The first answer is lost, and what comes before the second try is another's.
        rule = proxy.lose(r"^PATCH ")
        found = bucket.live("a/key")
        assert found is not None
        retain = found.retain

        def retained(asked: dict[str, str]) -> tuple[int, str, str] | None:
            answer = retain(asked)
            later = told_date(datetime.fromtimestamp(wanted + DAY, UTC))
            return answer or retain({"mode": "Unlocked", "retainUntilTime": later})

        found.retain = retained  # type: ignore[method-assign]
        assert not storage.extend_lock("key", wanted)
        assert rule.happened == 1
        lock = storage.lock_of("key")
        assert lock is not None
        assert abs(lock.until - wanted - DAY) < 0.001


def test_what_google_does_not_lock_gets_the_lock_of_new_objects(place: Place) -> None:
    plain = place()
    plain.put("key", b"1")
    wanted = float(int(time.time()) + DAY)
    with pytest.raises(BadInput, match="'key' in gs://bucket/a has no lock to extend, and no OBJECT_LOCK_MODE"):
        plain.extend_lock("key", wanted)
    assert place(**GOVERNED).extend_lock("key", wanted)
    assert plain.lock_of("key") == LockInfo(mode="GOVERNANCE", until=wanted, legal_hold=False)
    for call in (lambda: plain.lock_of("none"), lambda: plain.extend_lock("none", wanted)):
        with pytest.raises(NotFound, match="There is no object 'none'"):
            call()


@pytest.mark.parametrize("hidden", [False, True], ids=["told", "not told"])
def test_a_google_bucket_that_keeps_no_locks_is_no_fault_of_a_chain(at: Place, hidden: bool) -> None:
    with FakeGcsBucket(hidden=hidden) as bucket:
        bucket.add("a/key", b"")
        with pytest.raises(NoLocks, match="'key' in gs://bucket/a has no lock to extend, and no object retention of its bucket"):
            at(bucket.port).extend_lock("key", time.time() + DAY)
        with pytest.raises(BadInput, match="refused an object lock") as caught:
            at(bucket.port, **GOVERNED).extend_lock("key", time.time() + DAY)
        assert type(caught.value) is BadInput


@pytest.mark.parametrize("locked", ["first", "second"])
def test_an_object_of_google_stays_visible_while_any_version_is_locked(at: Place, locked: str) -> None:
    with FakeGcsBucket(retention=True, versioning=True) as bucket:
        for name in ("first", "second"):
            (at(bucket.port, **GOVERNED) if name == locked else at(bucket.port)).put("key", name.encode())
        assert len(bucket.objects) == 2
        with pytest.raises(Locked, match=r"UTC \(GOVERNANCE\) and was not deleted"):
            at(bucket.port).delete("key")
        assert at(bucket.port).get("key") == b"second"


def test_what_is_locked_is_not_replaced_and_ones_own_write_is_known(at: Place) -> None:
    with FakeGcsBucket(retention=True) as bucket, TcpProxy(bucket.port) as proxy:
        storage = at(proxy.port, **GOVERNED)
        rule = proxy.lose(r"^POST /upload/")
        storage.put("key", b"1")  # The second try meets the first one's object, which is locked already.
        assert rule.happened == 1
        with pytest.raises(Locked, match=r"'key' in gs://bucket/a is kept by .* \(retentionPolicyNotMet\); nothing was done"):
            storage.put("key", b"2")
        with pytest.raises(Locked):
            stream(storage, "key", WHOLE_BYTES + 1)
        assert storage.get("key") == b"1"
        assert len(bucket.objects) == 1


def test_a_google_bucket_without_object_retention_says_so(at: Place) -> None:
    with FakeGcsBucket() as bucket:
        for key, create in creations(at(bucket.port, **GOVERNED)):
            sentence = "^gs://bucket/a refused an object lock .invalid.: OBJECT_LOCK_MODE needs a bucket with object retention"
            with pytest.raises(BadInput, match=sentence):
                create()
            assert at(bucket.port).head(key) is None


def test_a_missing_right_to_lock_is_named(at: Place) -> None:
    with FakeGcsBucket(retention=True, may_lock=False) as bucket:
        for lock in (GOVERNED, {"OBJECT_LOCK_LEGAL_HOLD": "true"}):
            for _, create in creations(at(bucket.port, **lock)):
                with pytest.raises(
                    BadInput, match=r"refused access .forbidden.*; object locks need storage.objects.setRetention"
                ):
                    create()
        assert bucket.objects == []


def test_a_chain_without_locks_is_not_asked_object_by_object(place: Place, bucket: FakeGcsBucket) -> None:
    for number in range(20):
        bucket.add(f"a/chain/000000/data/{number:02}", b"")
    assert chain_lock(place(), "chain", ()) is None
    asked = [line for line in bucket.requests if not re.match(r"GET /storage/v1/b/bucket/o\?", line)]
    assert asked == []
    assert len(bucket.requests) < 10
    held = bucket.add("a/chain/000000/data/19", b"", temporary_hold=True)
    lock = chain_lock(place(), "chain", ())
    assert lock is not None
    assert (lock.until, lock.reason) == (None, f"a legal hold protects {held.name.removeprefix('a/')}")


def test_google_locks_are_found_through_what_wraps_a_storage(place: Place) -> None:
    storage = place(**GOVERNED)
    wrapped = limited(storage, 1 << 40)
    assert isinstance(wrapped, LockableStorage)
    assert wrapped.object_lock == storage.object_lock == ObjectLock("GOVERNANCE", 2, legal_hold=False)
    wrapped.put("key", b"1")
    assert wrapped.lock_of("key") == storage.lock_of("key") != None  # noqa: E711


def test_a_check_tries_googles_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcsBucket(retention=True) as bucket:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.endpoint)
        uri = "gs://bucket/a?AUTH=implicit&OBJECT_LOCK_MODE=COMPLIANCE&OBJECT_LOCK_DAYS=7"
        rows = storage_check(Context(settings=Settings()), uri, transfer="1MiB", lock_seconds=8).dicts()
        told = {str(row["check"]): (row["status"], str(row["detail"])) for row in rows}
        assert {status for status, _ in told.values()} == {"ok"}, told
        assert told["object lock"][1].startswith("A COMPLIANCE lock of 8 s was set on writing, and deletion was refused")
        assert bucket.objects == []
