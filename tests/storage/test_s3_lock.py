"""Object locks on S3: asked for on every creation, reported, extended; deletion where versions are kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from spanvault.crypto.keyring import Keyring
from spanvault.crypto.storage import decrypted
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Refused
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, LockInfo, Storage
from spanvault.storage.limit import limited
from spanvault.storage.local import LocalStorage
from spanvault.storage.s3_upload import FIRST_PART_BYTES
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

Place = Callable[..., LockableStorage]
DAY = 86_400
GOVERNED = {"OBJECT_LOCK_MODE": "GOVERNANCE", "OBJECT_LOCK_DAYS": "2"}


@pytest.fixture(scope="module")
def lock_bucket(seaweed: SeaweedServer) -> Iterator[str]:
    """A bucket with object locks, and so with versions."""
    client = seaweed.client()
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    yield "locked"
    client.close()


@pytest.fixture
def place(opened: OpenStorage, seaweed: SeaweedServer, lock_bucket: str) -> Place:
    """Opens one fresh place in the bucket with locks, with parameters."""
    path = str(uuid.uuid4())

    def place(port: int | None = None, **params: str) -> LockableStorage:
        uri = seaweed.uri(lock_bucket, path).replace(f":{seaweed.port}", f":{port or seaweed.port}")
        storage = opened(uri + "".join(f"&{name}={value}" for name, value in params.items()))
        assert isinstance(storage, LockableStorage)
        return storage

    return place


def versions(seaweed: SeaweedServer, bucket: str, storage: Storage, key: str) -> int:
    """How many versions and markers the bucket keeps of an object."""
    client = seaweed.client()
    path = storage.display_uri.partition("?")[0].removeprefix(f"s3://{bucket}/")
    answer = client.list_object_versions(Bucket=bucket, Prefix=f"{path}/{key}")
    client.close()
    return len(answer.get("Versions", ())) + len(answer.get("DeleteMarkers", ()))


def creations(storage: Storage) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each way to create an object, with the key that it creates."""
    yield "put", lambda: storage.put("put", b"1")
    yield "create", lambda: storage.put("create", b"1", create_only=True)
    yield "small", lambda: stream(storage, "small", 10)
    yield "large", lambda: stream(storage, "large", FIRST_PART_BYTES + 1)


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_every_object_is_locked_for_the_days_that_are_asked_for(place: Place, mode: str) -> None:
    storage = place(OBJECT_LOCK_MODE=mode, OBJECT_LOCK_DAYS="2")
    for key, create in creations(storage):
        before = time.time()
        create()
        lock = storage.lock_of(key)
        assert lock is not None
        assert (lock.mode, lock.legal_hold) == (mode, False)
        # The store keeps whole seconds.
        assert before + 2 * DAY - 1 <= lock.until <= time.time() + 2 * DAY
        with pytest.raises(
            Locked, match=rf"'{key}' in s3://locked/.* is protected until \d{{4}}-.* UTC \({mode}\) and was not del"
        ):
            storage.delete(key)
        assert storage.head(key) is not None
    with pytest.raises(AlreadyExists):
        storage.put("put", b"2", create_only=True)


def test_a_legal_hold_has_no_end(place: Place) -> None:
    storage = place(OBJECT_LOCK_LEGAL_HOLD="true")
    for key, create in creations(storage):
        create()
        assert storage.lock_of(key) == LockInfo(mode=None, until=0, legal_hold=True)
        with pytest.raises(Locked, match="is protected by a legal hold and was not deleted"):
            storage.delete(key)
    both = place(**GOVERNED, OBJECT_LOCK_LEGAL_HOLD="true")
    both.put("both", b"1")
    with pytest.raises(Locked, match=r"UTC \(GOVERNANCE\) and by a legal hold"):
        both.delete("both")


def test_what_is_locked_is_refused_in_a_way_of_its_own(place: Place) -> None:
    assert issubclass(Locked, Refused)
    storage = place(**GOVERNED)
    storage.put("key", b"1")
    with pytest.raises(Locked):
        storage.delete("key")


def test_a_lock_is_extended_and_never_shortened(place: Place) -> None:
    storage = place(OBJECT_LOCK_MODE="COMPLIANCE", OBJECT_LOCK_DAYS="1")
    storage.put("key", b"1")
    wanted = float(int(time.time()) + 9 * DAY)
    assert place().extend_lock("key", wanted)  # The object's own mode counts.
    assert storage.lock_of("key") == LockInfo(mode="COMPLIANCE", until=wanted, legal_hold=False)
    assert not storage.extend_lock("key", wanted - DAY)
    assert not storage.extend_lock("key", wanted)
    lock = storage.lock_of("key")
    assert lock is not None
    assert lock.until == wanted


def test_what_has_no_lock_gets_that_of_new_objects(place: Place) -> None:
    plain = place()
    plain.put("key", b"1")
    assert plain.lock_of("key") is None
    wanted = float(int(time.time()) + DAY)
    with pytest.raises(BadInput, match="has no lock to extend, and no OBJECT_LOCK_MODE"):
        plain.extend_lock("key", wanted)
    place(**GOVERNED).extend_lock("key", wanted)
    assert plain.lock_of("key") == LockInfo(mode="GOVERNANCE", until=wanted, legal_hold=False)
    with pytest.raises(NotFound, match="There is no object 'none'"):
        plain.lock_of("none")
    with pytest.raises(NotFound, match="There is no object 'none'"):
        plain.extend_lock("none", wanted)


def test_deleting_frees_what_versions_keep(place: Place, seaweed: SeaweedServer, lock_bucket: str) -> None:
    storage = place()
    for content in (b"1", b"2", b"3"):
        storage.put("key", content)
    storage.put("key-of-another", b"1")
    storage.put("keys/below", b"1")
    assert versions(seaweed, lock_bucket, storage, "key") == 5
    storage.delete("key")
    assert versions(seaweed, lock_bucket, storage, "key") == 2
    assert [info.key for info in storage.list()] in (["key-of-another", "keys/below"], ["keys/below", "key-of-another"])
    storage.delete("key")
    storage.delete("never/was")
    assert versions(seaweed, lock_bucket, storage, "never") == 0
    storage.put("key", b"4", create_only=True)
    assert storage.get("key") == b"4"


def test_deleting_frees_what_a_marker_hides(place: Place, seaweed: SeaweedServer, lock_bucket: str) -> None:
    storage = place()
    storage.put("key", b"1")
    client = seaweed.client()
    client.delete_object(Bucket=lock_bucket, Key=storage.display_uri.partition("?")[0].split("/", 3)[3] + "/key")
    client.close()
    assert storage.head("key") is None
    assert versions(seaweed, lock_bucket, storage, "key") == 2
    storage.delete("key")
    assert versions(seaweed, lock_bucket, storage, "key") == 0


@pytest.mark.parametrize("locked", ["first", "second"])
def test_an_object_stays_visible_while_any_version_is_locked(place: Place, locked: str) -> None:
    for name in ("first", "second"):
        (place(**GOVERNED) if name == locked else place()).put("key", name.encode())
    with pytest.raises(Locked):
        place().delete("key")
    assert place().get("key") == b"second"


def test_a_bucket_without_locks_says_so(opened: OpenStorage, seaweed: SeaweedServer, bucket: str) -> None:
    storage = opened(f"{seaweed.uri(bucket, str(uuid.uuid4()))}&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=1")
    for key, create in creations(storage):
        with pytest.raises(BadInput, match=r"refused an object lock .* needs a bucket that was created with it"):
            create()
        assert storage.head(key) is None


def test_without_versions_deleting_is_one_call(opened: OpenStorage, seaweed: SeaweedServer, bucket: str, proxy: TcpProxy) -> None:
    uri = seaweed.uri(bucket, str(uuid.uuid4())).replace(f":{seaweed.port}", f":{proxy.port}")
    storage = opened(uri)
    for key in ("a", "b", "c"):
        storage.delete(key)
    # One question of the bucket, and three deletions.
    assert [line.split()[0] for line in proxy.requests] == ["GET", "DELETE", "DELETE", "DELETE"]


def test_locks_are_found_through_what_wraps_a_storage(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = place(**GOVERNED)
    wanted = float(int(time.time()) + 3 * DAY)
    for wrapped in (limited(storage, 1 << 40), limited(decrypted(storage, Keyring(storage)), 1 << 40)):
        assert isinstance(wrapped, LockableStorage)
        storage.put("key", b"1")
        assert wrapped.object_lock == storage.object_lock == ObjectLock("GOVERNANCE", 2, legal_hold=False)
        assert wrapped.extend_lock("key", wanted)
        assert wrapped.lock_of("key") == LockInfo(mode="GOVERNANCE", until=wanted, legal_hold=False)
    assert place().object_lock is None
    local = LocalStorage(tmp_path_factory.mktemp("local"), "file:///x")
    for plain in (local, limited(local, 1 << 40), decrypted(local, Keyring(local))):
        assert not isinstance(plain, LockableStorage)
