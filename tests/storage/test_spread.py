"""Several places as one storage: what goes where, what is found after files were moved, and what a place does that is down.

What holds for every storage is in test_contract.py; here are keys that name places.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from spanvault.collection.layout import data_path, part_path
from spanvault.embedded.ports import free_ports
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Retryable
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, ObjectInfo, Storage
from spanvault.storage.keys import place_of
from spanvault.storage.local import LocalStorage
from spanvault.storage.s3_upload import FIRST_PART_BYTES
from spanvault.storage.spread import SpreadStorage, spread
from tests.kit.faults import Faults, FaultyStorage, Killed
from tests.storage.conftest import OpenStorage

CHAIN = "2026/11/22-143000.00"
PLAIN = f"{CHAIN}/000000/data/1.parquet"
EU = f"{CHAIN}/000000/data/region=eu/1.parquet"
US = f"{CHAIN}/000000/data/region=us/1.parquet"
ASIA = f"{CHAIN}/000000/data/region=asia/1.parquet"  # No place is given for it.
EU_PART = f"{CHAIN}/000000/BACKUP_PART_region=eu-0123abcd.json"
KEYS = {PLAIN: "default", f"{CHAIN}/chain/000000.json": "default", EU: "eu", EU_PART: "eu", US: "us"}
DAY = 86_400


class Three:
    """A default and two localities: region=eu on S3, the others in folders."""

    def __init__(self, opened: OpenStorage, folder: Path, eu: str) -> None:
        self.default = opened(f"file://{folder}/default")
        self.eu = opened(eu)
        self.us = opened(f"file://{folder}/us")

    @property
    def places(self) -> dict[str, Storage]:
        return {"default": self.default, "eu": self.eu, "us": self.us}

    @property
    def storage(self) -> SpreadStorage:
        return spread(self.default, {"region=eu": self.eu, "region=us": self.us})

    @property
    def lockable(self) -> LockableStorage:
        storage = self.storage
        assert isinstance(storage, LockableStorage)
        return storage

    def where(self, key: str) -> set[str]:
        """The places that hold the object."""
        return {name for name, place in self.places.items() if place.head(key) is not None}


@pytest.fixture
def three(opened: OpenStorage, tmp_path: Path, seaweed: SeaweedServer, bucket: str) -> Three:
    return Three(opened, tmp_path, seaweed.uri(bucket, str(uuid.uuid4())))


@pytest.fixture
def folders(opened: OpenStorage, tmp_path: Path) -> Three:
    """All three in folders, which have no locks."""
    return Three(opened, tmp_path, f"file://{tmp_path}/eu")


@pytest.fixture(scope="module")
def lock_bucket(seaweed: SeaweedServer) -> str:
    """A bucket with object locks."""
    with closing(seaweed.client()) as client:
        client.create_bucket(Bucket="spread-locked", ObjectLockEnabledForBucket=True)
    return "spread-locked"


@pytest.fixture
def locked(opened: OpenStorage, tmp_path: Path, seaweed: SeaweedServer, lock_bucket: str) -> Three:
    """New objects of region=eu are protected for two days."""
    lock = "&OBJECT_LOCK_MODE=GOVERNANCE&OBJECT_LOCK_DAYS=2"
    return Three(opened, tmp_path, seaweed.uri(lock_bucket, str(uuid.uuid4())) + lock)


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [info.key for info in storage.list(prefix)]


def put(storage: Storage, key: str) -> None:
    storage.put(key, key.encode())


def create(storage: Storage, key: str) -> None:
    storage.put(key, key.encode(), create_only=True)


def stream(storage: Storage, key: str) -> None:
    with storage.open_write(key) as writer:
        writer.write(key.encode())


def reads(storage: LockableStorage, key: str) -> Iterator[Callable[[], object]]:
    """Each use of an object that raises NotFound without one."""
    yield lambda: storage.head(key) or storage.get(key)
    yield lambda: storage.get(key)
    yield lambda: list(storage.read_chunks(key))
    yield lambda: storage.lock_of(key)
    yield lambda: storage.extend_lock(key, 0.0)


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (EU, "region=eu"),
        (EU_PART, "region=eu"),
        (f"{CHAIN}/000000/BACKUP_PART_region=eu-west-1-0123abcd.json", "region=eu-west-1"),
        (f"{CHAIN}/data/region=us/000000/data/region=eu/1.parquet", "region=eu"),
        (PLAIN, None),
        (f"{CHAIN}/000000/data/region=eu/deeper/1.parquet", None),
        (f"{CHAIN}/000000/region=eu/1.parquet", None),
        (f"{EU_PART}/x", None),
        (f"{CHAIN}/000000/BACKUP_PART_region=eu.json", None),
        (f"{CHAIN}/000000/BACKUP_PART_region=eu-0123ABCD.json", None),
        ("COLLECTION.json", None),
        ("data", None),
    ],
)
def test_a_key_names_its_place(key: str, place: str | None) -> None:
    assert place_of(key) == place


def test_what_the_layout_names_is_routed() -> None:
    for tier, place in (("region=eu-west", "region=eu-west"), ("zone=a b", "zone=a_b"), ("dc=\u00fc.1", "dc=__1")):
        assert place_of(f"{CHAIN}/{data_path(7, tier)}") == place_of(f"{CHAIN}/{part_path(7, tier)}") == place
    assert place_of(f"{CHAIN}/{data_path(7)}") is None


@pytest.mark.parametrize("write", [put, create, stream])
def test_each_object_goes_to_its_place_alone(three: Three, write: Callable[[Storage, str], None]) -> None:
    storage = three.storage
    for key in KEYS:
        write(storage, key)
    assert {key: three.where(key) for key in KEYS} == {key: {place} for key, place in KEYS.items()}
    assert keys(storage) == sorted(KEYS)
    for key, place in KEYS.items():
        assert storage.get(key) == b"".join(storage.read_chunks(key, 3)) == key.encode()
        assert storage.head(key) == three.places[place].head(key)
        with pytest.raises(AlreadyExists):
            create(storage, key)
        storage.delete(key)
        storage.delete(key)
        assert storage.head(key) is None
    assert keys(storage) == []


@pytest.mark.parametrize("raised", [Killed(), Retryable("stop")])
def test_an_interrupted_stream_leaves_nothing_at_its_place(three: Three, raised: BaseException) -> None:
    with pytest.raises(type(raised)), three.storage.open_write(EU) as writer:
        writer.write(bytes(FIRST_PART_BYTES + 1))
        raise raised
    assert three.where(EU) == set()
    assert list(three.storage.list_unfinished()) == []


def test_a_locality_without_a_place_is_not_written_elsewhere(folders: Three) -> None:
    for write in (put, create, stream):
        with pytest.raises(BadInput, match=rf"^'{ASIA}' belongs to the locality region=asia, and none of the 3 URIs given is"):
            write(folders.storage, ASIA)
    assert folders.where(ASIA) == set()
    put(folders.us, ASIA)
    assert folders.storage.get(ASIA) == ASIA.encode()


def test_localities_of_one_name_are_refused(folders: Three) -> None:
    with pytest.raises(BadInput, match=r"^Of the localities a=1 b, a=1_b two have the same name in files; rename one of them\.$"):
        spread(folders.default, {"a=1 b": folders.eu, "a=1_b": folders.us})


@pytest.mark.parametrize("place", ["default", "us"])
def test_moved_files_are_found(three: Three, place: str) -> None:
    storage = three.lockable
    put(three.places[place], EU)
    assert storage.get(EU) == b"".join(storage.read_chunks(EU, 5)) == EU.encode()
    assert storage.head(EU) == three.places[place].head(EU)
    assert storage.lock_of(EU) is None
    assert keys(storage) == [EU]
    storage.delete(EU)
    assert three.where(EU) == set()


def test_of_copies_the_one_at_its_own_place_counts_and_all_are_deleted(three: Three) -> None:
    """Then the default's, then the others': each copy is longer than the one that counts more."""
    for length, place in enumerate((three.eu, three.default, three.us)):
        place.put(EU, bytes(length))
    three.us.put(US, b"mine")
    three.default.put(US, b"the copy")
    storage = three.storage
    assert storage.get(US) == b"mine"
    for length, place in enumerate((three.eu, three.default, three.us)):
        assert storage.get(EU) == b"".join(storage.read_chunks(EU)) == bytes(length)
        assert list(storage.list()) == [storage.head(EU), storage.head(US)] == [place.head(EU), three.us.head(US)]
        place.delete(EU)
    for place in three.places.values():
        put(place, EU)
    storage.delete(EU)
    assert three.where(EU) == set()


def test_what_is_nowhere_is_said_to_be_in_none_of_the_places(three: Three) -> None:
    assert three.storage.head(EU) is None
    for read in reads(three.lockable, EU):
        with pytest.raises(NotFound) as caught:
            read()
        assert str(caught.value) == (
            f"There is no object '{EU}' in any of the 3 places given; it belongs to the locality region=eu: give the URI of that"
            " locality, or of the place that its files were moved to."
        )
    without = spread(three.default, {"region=us": three.us})
    with pytest.raises(NotFound, match=rf"'{EU}' in any of the 2 places given; it belongs to the locality region=eu"):
        without.get(EU)


def test_a_missing_bucket_is_named_unless_the_file_is_elsewhere(
    opened: OpenStorage, tmp_path: Path, seaweed: SeaweedServer
) -> None:
    three = Three(opened, tmp_path, seaweed.uri("no-such-bucket", "x"))
    put(three.us, EU)
    assert three.storage.get(EU) == EU.encode()
    assert three.storage.head(EU) == three.us.head(EU)
    three.us.delete(EU)
    for read in reads(three.lockable, EU):
        with pytest.raises(NotFound, match="There is no bucket 'no-such-bucket'"):
            read()


def test_a_place_that_is_down_is_not_a_missing_file(
    opened: OpenStorage, folders: Three, seaweed: SeaweedServer, bucket: str
) -> None:
    nobody = seaweed.uri(bucket, "x").replace(f":{seaweed.port}", f":{free_ports(1)[0]}")
    folders.eu = opened(nobody, storage_attempts=1, storage_connect_timeout=1)
    storage = folders.lockable
    for read in reads(storage, EU):
        with pytest.raises(Retryable, match=rf"^'{EU}' may be in a place that cannot be reached now, and is in none of the oth"):
            read()
    for use in (
        lambda: put(storage, EU),
        lambda: keys(storage),
        lambda: list(storage.list_folders()),
        lambda: storage.delete(EU),
    ):
        with pytest.raises(Retryable):
            use()
    for key in (EU, PLAIN):
        put(folders.us if key == EU else storage, key)
        assert storage.get(key) == b"".join(storage.read_chunks(key)) == key.encode()
    assert storage.head(EU) == folders.us.head(EU)
    with pytest.raises(Retryable):
        storage.delete(EU)
    assert folders.us.head(EU) is None
    with pytest.raises(NotFound):
        storage.get("COLLECTION.json")


@pytest.mark.parametrize("lost", [Retryable("lost"), NotFound("lost")])
def test_a_stream_that_breaks_goes_on_nowhere_else(folders: Three, lost: Exception) -> None:
    faults = Faults()
    faults.add_fault("storage.read_chunks.chunk", nth=2, action=lost)
    put(folders.eu, EU)
    put(folders.default, EU)
    folders.eu = FaultyStorage(folders.eu, faults)
    chunks = folders.storage.read_chunks(EU, 4)
    assert next(chunks) == EU.encode()[:4]
    with pytest.raises(type(lost), match=r"^lost$"):
        next(chunks)


def test_a_file_that_is_moved_while_it_is_looked_for_is_not_missing(folders: Three) -> None:
    put(folders.us, EU)
    inner = folders.us

    def move() -> None:
        put(folders.eu, EU)
        inner.delete(EU)

    faults = Faults()
    faults.add_fault("storage.get.before", action=move)
    folders.us = FaultyStorage(inner, faults)
    with pytest.raises(Retryable, match="was moved from one place to another while it was looked for"):
        folders.storage.get(EU)
    assert folders.storage.get(EU) == EU.encode()


def test_what_belongs_to_the_default_is_the_defaults_alone(folders: Three) -> None:
    """Places have documents of their own, such as PLACE.json: they are neither found nor listed nor deleted."""
    for key in ("PLACE.json", f"other/{PLAIN}", EU):
        put(folders.eu, key)
    put(folders.default, PLAIN)
    assert keys(folders.storage) == [PLAIN, EU]
    assert list(folders.storage.list_folders()) == ["2026/"]
    faults = Faults()
    inner = folders.eu
    folders.eu, folders.us = FaultyStorage(inner, faults), FaultyStorage(folders.us, faults)
    storage = folders.storage
    assert storage.head("PLACE.json") is None
    storage.delete("PLACE.json")
    with pytest.raises(NotFound, match=r"^There is no object 'PLACE.json' in file://.*/default\.$"):
        storage.get("PLACE.json")
    assert faults.log == []
    assert inner.head("PLACE.json") is not None


def test_listings_are_merged_in_order(three: Three) -> None:
    plain = [f"{CHAIN}/00000{layer}/data/{number}.parquet" for layer in range(3) for number in range(2)]
    placed = [
        f"{CHAIN}/00000{layer}/data/region={tier}/{number}.parquet"
        for layer in range(3)
        for tier in ("eu", "us")
        for number in range(4)
    ]
    for key in (*plain, *placed):
        put(three.storage, key)
    for key in placed[::3]:
        put(three.us, key)
    assert keys(three.storage) == sorted(plain + placed)
    assert keys(three.storage, f"{CHAIN}/000001/") == sorted(key for key in plain + placed if "/000001/" in key)
    assert list(three.storage.list_folders(f"{CHAIN}/")) == ["000000/", "000001/", "000002/"]
    assert list(three.storage.list_folders(f"{CHAIN}/000000/data/")) == ["region=eu/", "region=us/"]
    for key in plain:
        three.default.delete(key)
    assert list(three.storage.list_folders(f"{CHAIN}/000000/")) == ["data/"]


class FakeEndless(LocalStorage):
    """A place whose listing has no end."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return (ObjectInfo(key=f"{number:09d}/data/region=eu/1", size=0, modified=0) for number in itertools.count())


def test_listing_takes_no_more_than_is_asked_for(folders: Three, tmp_path: Path) -> None:
    folders.eu, folders.us = FakeEndless(tmp_path, "file:///eu"), FakeEndless(tmp_path, "file:///us")
    put(folders.default, "000000001/chain")
    first = [info.key for info in itertools.islice(folders.storage.list(), 3)]
    assert first == ["000000000/data/region=eu/1", "000000001/chain", "000000001/data/region=eu/1"]


def test_unfinished_writes_of_all_places_are_found_and_removed(three: Three) -> None:
    storage = three.storage
    with pytest.raises(Retryable, match="was removed while"), ExitStack() as writing:
        for key in (PLAIN, US, EU):
            writing.enter_context(storage.open_write(key)).write(bytes(FIRST_PART_BYTES + 1))
        found = list(storage.list_unfinished())
        assert len({unfinished.handle for unfinished in found}) == len(found) == 3
        assert [len(list(place.list_unfinished())) for place in three.places.values()] == [1, 1, 1]
        for unfinished in found:
            storage.remove_unfinished(unfinished)
            storage.remove_unfinished(unfinished)
        assert [list(place.list_unfinished()) for place in three.places.values()] == [[], [], []]
    assert keys(storage) == []
    foreign = found[0].model_copy(update={"handle": "region=asia:1"})
    for handle in ("region=asia:1", "1"):
        with pytest.raises(BadInput, match=f"^'{handle}' is not an unfinished write in file://.*default or the places of"):
            storage.remove_unfinished(foreign.model_copy(update={"handle": handle}))


@pytest.mark.parametrize("key", [PLAIN, EU, US])
def test_of_racing_creators_of_placed_objects_exactly_one_wins(three: Three, key: str) -> None:
    storage, gate = three.storage, threading.Barrier(16)

    def race(number: int) -> tuple[bool, bytes]:
        gate.wait()
        try:
            storage.put(key, b"%d" % number, create_only=True)
        except AlreadyExists:
            return False, storage.get(key)
        return True, b"%d" % number

    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(race, range(16)))
    assert [won for won, _ in outcomes].count(True) == 1
    assert {data for _, data in outcomes} == {data for won, data in outcomes if won}


def test_locks_are_those_of_the_place_that_has_the_object(locked: Three) -> None:
    storage = locked.lockable
    assert storage.object_lock == ObjectLock(mode="GOVERNANCE", days=2, legal_hold=False)
    for key in (PLAIN, EU, US):
        put(storage, key)
    lock = storage.lock_of(EU)
    assert lock is not None
    assert lock.mode == "GOVERNANCE"
    assert storage.lock_of(PLAIN) is storage.lock_of(US) is None
    until = time.time() + 9 * DAY
    assert storage.extend_lock(EU, until) is True
    assert storage.extend_lock(EU, until - DAY) is False
    extended = storage.lock_of(EU)
    assert extended is not None
    assert extended.until == pytest.approx(until, abs=1)  # The store keeps whole seconds.
    for key, place in ((PLAIN, "default"), (US, "us")):
        with pytest.raises(BadInput, match=rf"^'{key}' is in file://.*/{place}, a store whose object locks Spanvault cannot"):
            storage.extend_lock(key, until)


def test_a_locked_object_stays_visible(locked: Three) -> None:
    put(locked.storage, EU)
    for place in (locked.default, locked.us):
        put(place, EU)
    with pytest.raises(Locked, match=rf"^'{EU}' in s3://spread-locked/.* is protected until"):
        locked.storage.delete(EU)
    assert locked.where(EU) == {"eu"}
    assert locked.storage.get(EU) == EU.encode()


def test_places_without_locks_have_none(folders: Three, three: Three) -> None:
    assert not isinstance(folders.storage, LockableStorage)
    assert three.lockable.object_lock is None
