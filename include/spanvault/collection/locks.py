"""Object locks over whole chains: whether one may be deleted, and protecting one for longer. A lock belongs to one object;
a chain is protected as long as any of its objects is, and needs all of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

from spanvault.collection.identity import read_collection
from spanvault.collection.layout import BESIDE_DATA, COLLECTION_KEY, index_key, manifest_key, path_kind
from spanvault.collection.manifests import any_names
from spanvault.errors import BadInput, Locked, NotFound
from spanvault.model.base import Value
from spanvault.storage.base import LockableStorage, ObjectInfo, Storage
from spanvault.storage.lock_terms import NoLocks

_CALLS = 8  # calls in flight; each is small, so latency is what they hide
_BATCH = 512
_DOCUMENTS = ("chain/", "ENCRYPTION-INFO-")
_T = TypeVar("_T")
_Object = tuple[LockableStorage, str]


class ChainLock(Value):
    """That a chain is protected: `until` is when it may be deleted at the earliest (None: no date is known, as of a legal
    hold), `reason` a sentence that says so and names an object."""

    subdir: str
    until: datetime | None
    reason: str


class Extension(Value):
    """How many objects of a chain are protected for longer than before, and how many were protected as long already;
    `without` are the incremental locations, without secrets, whose stores cannot lock objects."""

    subdir: str
    until: datetime
    extended: int
    unchanged: int
    without: tuple[str, ...] = ()


class Kept:
    """Deletes objects, and counts those that locks keep; `first` is the sentence on the first of them."""

    def __init__(self) -> None:
        self.objects = 0
        self.bytes = 0
        self.first = ""
        self._marked = 0

    def mark(self) -> None:
        """Begin with another chain."""
        self._marked = self.objects

    @property
    def since_mark(self) -> int:
        """The objects kept since `mark`."""
        return self.objects - self._marked

    @property
    def sentence(self) -> str:
        """The sentence's end that says what is left."""
        return (
            f"{self.objects} of its objects ({self.bytes} bytes) are locked and stay until a sweep after the end of their"
            f" locks; the first: {self.first}"
        )

    def delete(self, storage: Storage, key: str, size: int) -> bool:
        """Remove an object; False if a lock keeps it."""
        try:
            storage.delete(key)
        except Locked as error:
            self.objects += 1
            self.bytes += size
            self.first = self.first or str(error)
            return False
        return True


def chain_lock(storage: Storage, subdir: str, places: Iterable[Storage]) -> ChainLock | None:
    """How a chain is protected, with its data files at the incremental locations `places`; None if it is not.

    Of each layer the documents are written last, so they are asked first: if one of them is locked, the data is not asked.
    Stores that cannot tell are not asked; they refuse the deletion.
    """
    able = [place for place in (storage, *places) if isinstance(place, LockableStorage)]
    if not able:
        return None
    documents = _documents(storage, subdir, _may_be_locked) if isinstance(storage, LockableStorage) else ()
    return _newest(subdir, documents) or _newest(subdir, _others(storage, subdir, able, _may_be_locked))


def end_of_newest(storage: Storage, subdir: str) -> datetime:
    """Until when the newest layer's manifest is protected. Raises BadInput if it is by no date, NotFound if the backup
    is gone."""
    numbers = any_names(storage, subdir).originals
    if not numbers:
        raise NotFound(f"The backup {subdir} in {storage.display_uri} was deleted while it was looked at.")
    number = numbers[-1]
    lock = storage.lock_of(manifest_key(subdir, number)) if isinstance(storage, LockableStorage) else None
    if lock is None or not lock.until:
        raise BadInput(
            f"Layer {number} of the backup {subdir} in {storage.display_uri} has no lock that ends at a date; say until when"
            " its chain is to be protected."
        )
    return datetime.fromtimestamp(lock.until, UTC)


def extend_chain(
    storage: Storage, subdir: str, places: Sequence[Storage], until: datetime, on_object: Callable[[], None] = lambda: None
) -> Extension:
    """Protect all objects of a chain, and the collection's identity, at least until `until`. No lock gets shorter. May be
    killed anywhere and run again: it then passes over what is done. `on_object` is called for each object.

    Raises NotFound where there is no collection; BadInput when its store cannot lock objects, or when an object has no mode
    and the store is given none.
    """
    read_collection(storage)
    if not isinstance(storage, LockableStorage):
        raise BadInput(f"{storage.display_uri} is in a store whose object locks Spanvault cannot extend.")
    able = [storage, *(place for place in places if isinstance(place, LockableStorage))]
    own: Iterable[_Object] = ((storage, COLLECTION_KEY),)
    objects = itertools.chain(own, _documents(storage, subdir), _others(storage, subdir, able))
    without = {place.display_uri for place in places if not isinstance(place, LockableStorage)}

    def extend(each: _Object) -> bool | None:
        place, key = each
        try:
            return None if place.display_uri in without else place.extend_lock(key, until.timestamp())
        except NotFound:  # garbage that is swept at this moment
            return None
        except NoLocks:
            if place is storage:
                raise
            without.add(place.display_uri)
            return None

    counts = {True: 0, False: 0, None: 0}
    for outcome in _each(objects, extend):
        counts[outcome] += 1
        on_object()
    lacking = tuple(place.display_uri for place in places if place.display_uri in without)
    return Extension(subdir=subdir, until=until, extended=counts[True], unchanged=counts[False], without=lacking)


def _any(_: ObjectInfo) -> bool:
    return True


def _may_be_locked(info: ObjectInfo) -> bool:
    """False where the listing itself says that nothing protects the object: then nobody need ask for each."""
    return info.locked is not False


def _documents(storage: LockableStorage, subdir: str, wanted: Callable[[ObjectInfo], bool] = _any) -> Iterator[_Object]:
    """What is written last of each layer, and what opens it; of what is listed only the `wanted`."""
    for first, number in any_names(storage, subdir).manifests:
        yield storage, index_key(subdir, number, first)
    for prefix in _DOCUMENTS:
        yield from ((storage, info.key) for info in storage.list(f"{subdir}/{prefix}") if wanted(info))


def _others(
    storage: Storage, subdir: str, able: Iterable[LockableStorage], wanted: Callable[[ObjectInfo], bool] = _any
) -> Iterator[_Object]:
    """The rest of a chain, as far as it is `wanted` and lies in the places `able`: the collection, and incremental locations."""
    documents = tuple(f"{subdir}/{prefix}" for prefix in _DOCUMENTS)
    for place in able:
        for info in filter(wanted, place.list(f"{subdir}/")):
            belongs = not info.key.startswith(documents)
            if belongs if place is storage else path_kind(info.key.removeprefix(f"{subdir}/")) in BESIDE_DATA:
                yield place, info.key


def _newest(subdir: str, objects: Iterable[_Object]) -> ChainLock | None:
    """The lock that ends last; a legal hold ends after all of them."""
    last: tuple[float, str] | None = None
    for key, end in _each(objects, _end_of):
        if end and (last is None or end > last[0]):
            last = (end, key)
    if last is None:
        return None
    end, key = last
    if end == float("inf"):
        return ChainLock(subdir=subdir, until=None, reason=f"a legal hold protects {key}")
    until = datetime.fromtimestamp(end, UTC)
    return ChainLock(subdir=subdir, until=until, reason=f"{key} is protected until {until:%Y-%m-%d %H:%M:%S} UTC")


def _end_of(each: _Object) -> tuple[str, float]:
    """The key, and the end of its lock in Unix seconds: 0 without a lock, infinity with a legal hold."""
    place, key = each
    lock = None
    with contextlib.suppress(NotFound):
        lock = place.lock_of(key)
    if lock is None:
        return key, 0.0
    return key, float("inf") if lock.legal_hold else lock.until


def _each(objects: Iterable[_Object], work: Callable[[_Object], _T]) -> Iterator[_T]:
    """The results in order, of any number of objects in bounded memory."""
    remaining = iter(objects)
    with ThreadPoolExecutor(_CALLS) as pool:
        while batch := list(itertools.islice(remaining, _BATCH)):
            yield from pool.map(work, batch)
