"""A storage over several places: each object at the place that its key names, all others at the default.

A key names a place as a folder below `data` or in the name of a part's description (place_of). Reads look into the other
places, too: files may have been moved, or gathered in one of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

from spanvault.errors import BadInput, Locked, NotFound, Retryable
from spanvault.model.places import place_name
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, LockInfo, ObjectInfo, Storage, Unfinished, Writer
from spanvault.storage.keys import check_key, place_of

_Found = TypeVar("_Found")


def spread(default: Storage, others: Mapping[str, Storage]) -> SpreadStorage:
    """`default` and the storages of `others` (by locality, as `region=eu`) as one; it can lock objects if any of them can."""
    lockable = any(isinstance(storage, LockableStorage) for storage in (default, *others.values()))
    return (LockableSpreadStorage if lockable else SpreadStorage)(default, others)


class SpreadStorage:
    """A Storage (storage/base.py is the contract) over a default and the places of localities."""

    def __init__(self, default: Storage, others: Mapping[str, Storage]) -> None:
        self._default = default
        self._others = {place_name(tier): storage for tier, storage in others.items()}
        self._tiers = {place_name(tier): tier for tier in others}
        self._all = (default, *others.values())

    @property
    def display_uri(self) -> str:
        """The default's root without secrets."""
        return self._default.display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole, at its place."""
        self._place(key).put(key, data, create_only=create_only)

    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        """Stream an object to its place."""
        return self._place(key).open_write(key)

    def get(self, key: str) -> bytes:
        """The whole object, from wherever it is. Raises NotFound."""
        return self._first(key, lambda storage: storage.get(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order, from wherever it is. Raises NotFound."""

        def begun(storage: Storage) -> tuple[bytes | None, Iterator[bytes]]:
            chunks = storage.read_chunks(key, chunk_size)
            return next(chunks, None), chunks

        first, rest = self._first(key, begun)
        if first is not None:
            yield first
            yield from rest

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None. Raises NotFound for a missing bucket."""
        failure: Retryable | None = None
        for storage in self._candidates(key):
            try:
                found = storage.head(key)
            except Retryable as error:
                failure = error
                continue
            if found is not None:
                return found
        if failure is not None:
            raise failure
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects of all places whose key starts with `prefix`, ascending, each once."""
        return _each_once(self._listed(prefix), lambda info: info.key)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix` in any place, ascending, each once."""
        return _each_once((storage.list_folders(prefix) for storage in self._all), lambda folder: folder)

    def delete(self, key: str) -> None:
        """Remove the object wherever it is. Raises Locked if it is protected somewhere; then it may be gone elsewhere."""
        locked: Locked | None = None
        for storage in self._candidates(key):
            try:
                storage.delete(key)
            except Locked as error:
                locked = error
        if locked is not None:
            raise locked

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Writes that have not ended, in all places."""
        for index, storage in enumerate(self._all):
            for one in storage.list_unfinished():
                yield one.model_copy(update={"handle": f"{index}/{one.handle}"})

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove what an interrupted write left."""
        index, _, handle = unfinished.handle.partition("/")
        self._all[int(index)].remove_unfinished(unfinished.model_copy(update={"handle": handle}))

    def _listed(self, prefix: str) -> Iterable[Iterator[ObjectInfo]]:
        return (storage.list(prefix) for storage in self._all)

    def _place(self, key: str) -> Storage:
        name = place_of(check_key(key))
        if name is None:
            return self._default
        if name not in self._others:
            raise BadInput(f"{key!r} belongs to the locality {name}, and none of the URIs given is for it; add its URI.")
        return self._others[name]

    def _candidates(self, key: str) -> Iterator[Storage]:
        """Where the object may be, the likeliest place first."""
        name = place_of(check_key(key))
        own = self._others.get(name) if name is not None else None
        if own is not None:
            yield own
        yield self._default
        if name is not None:
            yield from (storage for storage in self._others.values() if storage is not own)

    def _first(self, key: str, call: Callable[[Storage], _Found]) -> _Found:
        """What `call` gives for the first place that has the object. A place that cannot be asked may be the one that has
        it, so that its failure is told if no other has."""
        failure: Retryable | None = None
        missing: list[NotFound] = []
        for storage in self._candidates(key):
            try:
                return call(storage)
            except NotFound as error:
                missing.append(error)
            except Retryable as error:
                failure = error
        if failure is not None:
            raise failure
        if len(missing) == 1:
            raise missing[0]
        name = place_of(key) or ""
        raise NotFound(
            f"{str(missing[0]).removesuffix('.')}, nor in the other places given; it belongs to the locality"
            f" {self._tiers.get(name, name)}, whose URI may be missing or another one."
        )


class LockableSpreadStorage(SpreadStorage):
    """A SpreadStorage of which at least one place can lock objects."""

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with, at the first place that protects any."""
        locks = (storage.object_lock for storage in self._all if isinstance(storage, LockableStorage))
        return next((lock for lock in locks if lock is not None), None)

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected now. Raises NotFound."""

        def asked(storage: Storage) -> LockInfo | None:
            if isinstance(storage, LockableStorage):
                return storage.lock_of(key)
            _there(storage.head(key), key)
            return None

        return self._first(key, asked)

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object at least until `until` (Unix seconds); whether that had to be done. Raises NotFound, BadInput."""

        def extended(storage: Storage) -> bool:
            if isinstance(storage, LockableStorage):
                return storage.extend_lock(key, until)
            _there(storage.head(key), key)
            raise BadInput(f"{key!r} lies in {storage.display_uri}, which has no object locks.")

        return self._first(key, extended)


def _there(info: ObjectInfo | None, key: str) -> ObjectInfo:
    if info is None:
        raise NotFound(f"There is no object {key!r}.")
    return info


def _each_once(streams: Iterable[Iterator[_Found]], name: Callable[[_Found], str]) -> Iterator[_Found]:
    """Ascending streams as one, of equal names the first."""
    last: str | None = None
    for found in heapq.merge(*streams, key=lambda one: name(one).encode()):
        if name(found) != last:
            last = name(found)
            yield found
