"""Object locks and versions on Azure Blob Storage, against FakeAzureContainer: Azurite has no versions, takes what
asks for a lock, and sets none."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from spanvault.collection.layout import COLLECTION_KEY, path_kind
from spanvault.collection.locks import chain_lock, extend_chain
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.storage_check import storage_check
from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.azure_upload import FIRST_BLOCK_BYTES
from spanvault.storage.base import LockableStorage, LockInfo, Storage
from spanvault.storage.check_properties import Broken, Place
from spanvault.storage.check_streams import object_lock
from spanvault.storage.limit import limited
from tests.kit.azurite import Azurite
from tests.kit.collections import write_collection
from tests.kit.fake_azure_container import FakeAzureContainer
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

At = Callable[..., LockableStorage]
DAY = 86_400
GOVERNED = {"OBJECT_LOCK_MODE": "GOVERNANCE", "OBJECT_LOCK_DAYS": "2"}
ENDS = datetime(2126, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def box() -> Iterator[FakeAzureContainer]:
    """A container with version-level immutability."""
    with FakeAzureContainer() as box:
        yield box


@pytest.fixture
def at(opened: OpenStorage) -> At:
    """Opens `a` in a container, with parameters."""

    def at(box: FakeAzureContainer, **params: str) -> LockableStorage:
        storage = opened(box.uri("a", params), storage_attempts=1)
        assert isinstance(storage, LockableStorage)
        return storage

    return at


def creations(storage: Storage) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each way to create an object, with the key that it creates: in one call, and from blocks."""
    yield "put", lambda: storage.put("put", b"1")
    yield "create", lambda: storage.put("create", b"1", create_only=True)
    yield "small", lambda: stream(storage, "small", 10)
    yield "large", lambda: stream(storage, "large", FIRST_BLOCK_BYTES + 1)


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


@pytest.mark.parametrize(("mode", "theirs"), [("GOVERNANCE", "Unlocked"), ("COMPLIANCE", "Locked")])
def test_every_object_on_azure_is_locked_for_the_days_asked_for(box: FakeAzureContainer, at: At, mode: str, theirs: str) -> None:
    storage = at(box, OBJECT_LOCK_MODE=mode, OBJECT_LOCK_DAYS="2")
    for key, create in creations(storage):
        before = time.time()
        create()
        (found,) = box.of(f"a/{key}")
        assert found.until is not None
        assert (found.mode, found.hold) == (theirs, False)
        # The service keeps whole seconds.
        assert before + 2 * DAY <= found.until.timestamp() <= time.time() + 2 * DAY + 1
        assert storage.lock_of(key) == LockInfo(mode=mode, until=found.until.timestamp(), legal_hold=False)
        sentence = rf"^'{key}' in azure-blob://container/a is protected until \d{{4}}-.* UTC \({mode}\) and was not deleted\.$"
        with pytest.raises(Locked, match=sentence):
            storage.delete(key)
        assert storage.head(key) is not None
    with pytest.raises(AlreadyExists):
        storage.put("put", b"2", create_only=True)


def test_a_legal_hold_on_azure_has_no_end(box: FakeAzureContainer, at: At) -> None:
    storage = at(box, OBJECT_LOCK_LEGAL_HOLD="true")
    for key, create in creations(storage):
        create()
        assert storage.lock_of(key) == LockInfo(mode=None, until=0, legal_hold=True)
        with pytest.raises(Locked, match="is protected by a legal hold and was not deleted"):
            storage.delete(key)
        (found,) = box.of(f"a/{key}")
        found.hold = False
        storage.delete(key)
        assert box.versions == []
    both = at(box, **GOVERNED, OBJECT_LOCK_LEGAL_HOLD="true")
    both.put("both", b"1")
    with pytest.raises(Locked, match=r"UTC \(GOVERNANCE\) and by a legal hold"):
        both.delete("both")


def test_what_azure_is_not_asked_for_is_not_locked(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    assert storage.object_lock is None
    for key, create in creations(storage):
        create()
        assert storage.lock_of(key) is None
    assert all(found.until is None and not found.hold for found in box.versions)
    with pytest.raises(NotFound, match="There is no object 'none'"):
        storage.lock_of("none")


def test_listings_of_azure_tell_what_is_locked(box: FakeAzureContainer, at: At) -> None:
    at(box).put("free", b"1")
    at(box, **GOVERNED).put("governed", b"1")
    at(box, OBJECT_LOCK_LEGAL_HOLD="true").put("held", b"1")
    at(box, **GOVERNED).put("over", b"1")
    box.of("a/over")[0].until = datetime.now(UTC) - timedelta(seconds=1)
    wanted = {"free": False, "governed": True, "held": True, "over": False}
    assert {info.key: info.locked for info in at(box).list()} == wanted
    assert {key: info.locked for key in wanted if (info := at(box).head(key))} == wanted


def test_an_azure_lock_is_extended_and_never_shortened(box: FakeAzureContainer, at: At) -> None:
    for mode in ("COMPLIANCE", "GOVERNANCE"):
        storage = at(box, OBJECT_LOCK_MODE=mode, OBJECT_LOCK_DAYS="1")
        storage.put(mode, b"1")
        wanted = int(time.time()) + 9 * DAY + 0.5
        other = at(box, OBJECT_LOCK_MODE="GOVERNANCE", OBJECT_LOCK_DAYS="1")
        assert other.extend_lock(mode, wanted)  # The object's own mode counts.
        assert storage.lock_of(mode) == LockInfo(mode=mode, until=wanted + 0.5, legal_hold=False)
        assert not storage.extend_lock(mode, wanted - DAY)
        assert not storage.extend_lock(mode, wanted)
        assert storage.lock_of(mode) == LockInfo(mode=mode, until=wanted + 0.5, legal_hold=False)
        assert len(box.of(f"a/{mode}")) == 1


def test_what_azure_locked_for_good_is_locked_so_again(box: FakeAzureContainer, at: At) -> None:
    at(box, OBJECT_LOCK_MODE="COMPLIANCE", OBJECT_LOCK_DAYS="1").put("key", b"1")
    box.of("a/key")[0].until = datetime.now(UTC) - timedelta(days=1)
    assert at(box).lock_of("key") is None
    wanted = float(int(time.time()) + DAY)
    assert at(box, **GOVERNED).extend_lock("key", wanted)
    assert at(box).lock_of("key") == LockInfo(mode="COMPLIANCE", until=wanted, legal_hold=False)


def test_what_azure_does_not_lock_gets_the_lock_of_new_objects(box: FakeAzureContainer, at: At) -> None:
    plain = at(box)
    plain.put("key", b"1")
    wanted = float(int(time.time()) + DAY)
    with pytest.raises(BadInput, match="'key' in azure-blob://container/a has no lock to extend, and no OBJECT_LOCK_MODE"):
        plain.extend_lock("key", wanted)
    assert at(box, **GOVERNED).extend_lock("key", wanted)
    assert plain.lock_of("key") == LockInfo(mode="GOVERNANCE", until=wanted, legal_hold=False)
    with pytest.raises(NotFound, match="There is no object 'none'"):
        plain.extend_lock("none", wanted)


def test_a_place_without_locks_does_not_keep_a_chain_from_longer_ones(box: FakeAzureContainer, at: At) -> None:
    with FakeAzureContainer(locks=False) as plain:
        collection, location = at(box, **GOVERNED), at(plain)
        subdir = write_collection(collection).subdir
        name = next(info.key for info in collection.list() if path_kind(info.key.removeprefix(f"{subdir}/")) == "data")
        location.put(name, b"1")
        done = extend_chain(collection, subdir, [location], ENDS)
        extended = sum(found.until == ENDS for found in box.versions)
        assert extended > 10
        assert (done.extended, done.unchanged, done.without) == (extended, 0, (location.display_uri,))
        location.put(COLLECTION_KEY, collection.get(COLLECTION_KEY))
        with pytest.raises(BadInput, match=r"^azure-blob://container/a is in a container without version-level immutability"):
            extend_chain(location, subdir, [], ENDS)


def test_deleting_frees_what_versions_keep_on_azure(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    for content in (b"1", b"2", b"3"):
        storage.put("key", content)
    storage.put("key-of-another", b"1")
    storage.put("once", b"1")
    assert len(box.of("a/key")) == 3
    storage.delete("key")
    assert box.of("a/key") == []
    storage.delete("once")
    storage.delete("never/was")
    assert [found.name for found in box.versions] == ["a/key-of-another"]
    storage.put("key", b"4", create_only=True)
    assert storage.get("key") == b"4"


def test_deleting_frees_what_a_deletion_has_hidden(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    storage.put("key", b"1")
    box.delete("a/key", None)
    assert storage.head("key") is None
    assert len(box.of("a/key")) == 1
    storage.delete("key")
    assert box.versions == []


def test_the_current_version_is_deleted_last(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    for content in (b"1", b"2", b"3"):
        storage.put("key", content)
    first, second, current = (found.version for found in box.versions)
    box.requests.clear()
    storage.delete("key")
    deletions = [parse_qs(urlsplit(line).query).get("versionid") for line in box.requests if line.startswith("DELETE")]
    assert deletions == [[first], [second], None, [current]]


def test_an_interrupted_stream_leaves_no_version(box: FakeAzureContainer, at: At) -> None:
    with pytest.raises(ZeroDivisionError), at(box).open_write("stream") as writer:
        writer.write(bytes(FIRST_BLOCK_BYTES + 1))
        assert box.blocks
        raise ZeroDivisionError
    assert (box.blocks, box.versions) == ({}, [])


@pytest.mark.parametrize("locked", ["first", "second"])
def test_an_object_on_azure_stays_visible_while_any_version_is_locked(box: FakeAzureContainer, at: At, locked: str) -> None:
    for name in ("first", "second"):
        at(box, **(GOVERNED if name == locked else {})).put("key", name.encode())
    with pytest.raises(Locked, match=r"UTC \(GOVERNANCE\) and was not deleted"):
        at(box).delete("key")
    assert at(box).get("key") == b"second"
    assert len(box.of("a/key")) == 2


def test_a_policy_that_the_account_enforces_beyond_the_versions_own_is_respected(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    storage.put("key", b"1")
    (found,) = box.of("a/key")
    found.kept = lambda: (409, "BlobImmutableDueToPolicy")  # type: ignore[method-assign]
    with pytest.raises(Locked, match=r"is kept by the account until its lock ends .BlobImmutableDueToPolicy"):
        storage.delete("key")
    assert storage.get("key") == b"1"


def test_who_may_not_delete_versions_hides_nothing(at: At) -> None:
    with FakeAzureContainer(may_delete_versions=False) as box:
        storage = at(box)
        storage.put("key", b"1")
        with pytest.raises(BadInput, match=r"refused access .AuthorizationPermissionMismatch.*, also to delete versions\)"):
            storage.delete("key")
        assert storage.get("key") == b"1"


def test_who_may_not_see_the_container_finds_versions_all_the_same(at: At) -> None:
    with FakeAzureContainer(versioning=False, may_see_container=False) as box:
        for key in ("old", "new"):
            at(box).put(key, b"1")
        deleting = at(box)
        deleting.delete("old")
        box.versioning = True
        at(box).put("new", b"2")
        deleting.delete("new")
        assert box.versions == []


def test_versions_that_the_account_keeps_only_now_are_noticed(at: At) -> None:
    with FakeAzureContainer(versioning=False) as box:
        for key in ("first", "old", "new"):
            at(box).put(key, b"1")
        storage = at(box)
        storage.delete("first")
        box.versioning = True
        storage.put("new", b"2")  # Its answer names a version.
        for key in ("old", "new"):
            storage.delete(key)
        assert box.versions == []


def test_a_container_without_version_level_immutability_says_so(at: At) -> None:
    with FakeAzureContainer(locks=False) as box:
        sentence = "refused the call for '.*' .UnsupportedHeader.*an object lock, which OBJECT_LOCK_. asks for, needs a container"
        for lock in (GOVERNED, {"OBJECT_LOCK_LEGAL_HOLD": "true"}):
            for _, create in creations(at(box, **lock)):
                with pytest.raises(BadInput, match=sentence):
                    create()
        assert box.versions == []


def test_a_missing_right_to_lock_on_azure_is_named(at: At) -> None:
    with FakeAzureContainer(may_lock=False) as box:
        for _, create in creations(at(box, **GOVERNED)):
            with pytest.raises(BadInput, match=r"refused access .Auth.*; for OBJECT_LOCK_., also to set immutability policies"):
                create()
        at(box).put("key", b"1")


def test_a_chain_on_azure_without_locks_is_not_asked_object_by_object(box: FakeAzureContainer, at: At) -> None:
    storage = at(box)
    for number in range(20):
        storage.put(f"chain/000000/data/{number:02}", b"")
    box.requests.clear()
    assert chain_lock(storage, "chain", ()) is None
    assert len(box.requests) < 10
    assert all("comp=list" in line for line in box.requests)
    box.of("a/chain/000000/data/19")[0].hold = True
    lock = chain_lock(storage, "chain", ())
    assert lock is not None
    assert (lock.until, lock.reason) == (None, "a legal hold protects chain/000000/data/19")


def test_azure_locks_are_found_through_what_wraps_a_storage(box: FakeAzureContainer, at: At) -> None:
    wrapped = limited(at(box, **GOVERNED), 1 << 40)
    assert isinstance(wrapped, LockableStorage)
    assert wrapped.object_lock == ObjectLock("GOVERNANCE", 2, legal_hold=False)
    wrapped.put("key", b"1")
    assert wrapped.extend_lock("key", ENDS.timestamp())
    assert wrapped.lock_of("key") == LockInfo(mode="GOVERNANCE", until=ENDS.timestamp(), legal_hold=False)


def test_storage_check_tries_a_lock_on_azure(box: FakeAzureContainer) -> None:
    uri = box.uri("a", {"OBJECT_LOCK_MODE": "COMPLIANCE", "OBJECT_LOCK_DAYS": "9"})
    result = storage_check(Context(settings=Settings()), uri, transfer="1MiB", lock_seconds=4)
    found = {str(row["check"]): row for row in result.dicts()}
    assert {row["status"] for row in found.values()} == {"ok"}
    assert "A COMPLIANCE lock of 4 s was set on writing" in str(found["object lock"]["detail"])
    assert box.versions == []


@pytest.mark.apt
def test_without_versions_deleting_from_azure_is_one_call(opened: OpenStorage, azurite: Azurite, container: str) -> None:
    path = str(uuid.uuid4())
    with TcpProxy(azurite.port) as proxy:
        storage = opened(azurite.uri(container, path).replace(f"%3A{azurite.port}", f"%3A{proxy.port}"))
        for key in ("a", "b", "c"):
            storage.put(key, b"1")
        proxy.requests.clear()
        for key in ("a", "b", "c"):
            storage.delete(key)
        # Two questions about versions, and three deletions.
        assert [line.split()[0] for line in proxy.requests] == ["GET", "GET", "DELETE", "DELETE", "DELETE"]
        assert list(storage.list()) == []


@pytest.mark.apt
def test_a_server_that_takes_locks_and_keeps_none_is_found_out(opened: OpenStorage, azurite: Azurite, container: str) -> None:
    uri = azurite.uri(container, str(uuid.uuid4())) + "&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=1"
    storage = opened(uri)
    assert isinstance(storage, LockableStorage)
    storage.put("key", b"1")
    assert storage.lock_of("key") is None
    place = Place(writer=storage, reader=storage, folder="check", lock=storage.object_lock, locking=storage, lock_seconds=60)
    with pytest.raises(Broken, match=r"took an object and the lock that it was to get \(GOVERNANCE\), and did not set it"):
        object_lock(place)
    storage.delete("key")
    assert storage.head("key") is None
