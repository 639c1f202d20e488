"""One Storage over several places: each object lies at the place of the locality that its key names, everything else at the
default. What reads and writes need not know of it.

Files of a locality may have been moved, or gathered in one place, since they were written. So what is not at its own place is
looked for at the default, then at the others, in the order in which they were given.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from spanvault.errors import BadInput, Locked, NotFound, Retryable, SpanvaultError
from spanvault.model.places import place_name
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, LockInfo, ObjectInfo, Storage, Unfinished, Writer
from spanvault.storage.keys import check_key, place_of

_T = TypeVar("_T")
_DEFAULT = ""
_SEPARATOR = ":"  # No place's name holds one.


def spread(default: Storage, others: Mapping[str, Storage]) -> SpreadStorage:
    """One Storage over `default` and the places of localities, by tier (`region=eu`). It can lock objects if any of them can.

    Raises BadInput if two tiers have the same name in files.
    """
    lockable = any(isinstance(place, LockableStorage) for place in (default, *others.values()))
    return (LockableSpreadStorage if lockable else SpreadStorage)(default, others)


class SpreadStorage:
    """A Storage that puts each object where its key says (storage/base.py is the contract).

    What creation excludes is another object at the same place; it does not see copies that somebody made elsewhere. An object
    of which there are copies is listed once; beside stores that list in another order (SeaweedFS, see the contract) it may be
    listed twice. What belongs to the default and lies at another place is nobody's: neither found nor listed.
    """

    def __init__(self, default: Storage, others: Mapping[str, Storage]) -> None:
        self._places = {_DEFAULT: default, **{place_name(tier): place for tier, place in others.items()}}
        self._ranks = {name: rank for rank, name in enumerate(self._places)}
        self._tiers = {place_name(tier): tier for tier in others}
        if len(self._tiers) < len(others):
            raise BadInput(f"Of the localities {', '.join(others)} two have the same name in files; rename one of them.")

    @property
    def display_uri(self) -> str:
        """The default's root without secrets."""
        return self._places[_DEFAULT].display_uri

    def holder(self, key: str) -> Storage:
        """The place that has the object, as far as that can be asked now; else the one that it belongs to, or the default if
        that is not here."""
        for place in self._order(key):
            with suppress(SpanvaultError):
                if place.head(key) is not None:
                    return place
        return self._places.get(place_of(key) or _DEFAULT, self._places[_DEFAULT])

    def has_place(self, name: str) -> bool:
        """Whether a place of the locality with this name in files is here."""
        return name in self._tiers

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole. Raises BadInput if its locality has no place here."""
        self._home(key).put(key, data, create_only=create_only)

    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        """Stream an object. Raises BadInput if its locality has no place here."""
        return self._home(key).open_write(key)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound if it is in none of the places, Retryable if it may be in one that cannot be
        reached."""
        return self._found(key, lambda place: place.get(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order, all from one place. Raises what `get` raises."""

        def begin(place: Storage) -> tuple[bytes | None, Iterator[bytes]]:
            chunks = place.read_chunks(key, chunk_size)
            return next(chunks, None), chunks

        first, rest = self._found(key, begin)
        if first is not None:
            yield first
            yield from rest

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None. Raises Retryable if it may be in a place that cannot be reached, and NotFound
        for a missing bucket if it is nowhere else."""
        if place_of(key) is None:
            return self._places[_DEFAULT].head(key)
        failures: list[SpanvaultError] = []
        for place in self._order(key):
            try:
                info = place.head(key)
            except (NotFound, Retryable) as error:
                failures.append(error)
            else:
                if info is not None:
                    return info
        if unreachable := next((failure for failure in failures if isinstance(failure, Retryable)), None):
            raise _perhaps(key, unreachable) from unreachable
        if failures:
            raise failures[0]
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, page by page of each place."""
        last = None
        for key, _, info in heapq.merge(*(self._listed(name, prefix) for name in self._places), key=lambda entry: entry[:2]):
            if key != last:
                yield info
            last = key

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix`, ascending. Holds their names in memory."""
        seen: set[str] = set()
        for folder, name in heapq.merge(*(self._folders(name, prefix) for name in self._places)):
            if folder not in seen and (name == _DEFAULT or self._holds_placed(name, prefix + folder)):
                seen.add(folder)
                yield folder

    def delete(self, key: str) -> None:
        """Remove the object, and copies of it at other places. Raises Locked, then the object stays visible; a place that
        refuses or fails does not keep it at the others."""
        errors: list[SpanvaultError] = []
        for place in self._order(key):
            try:
                place.delete(key)
            except SpanvaultError as error:
                errors.append(error)
        if errors:
            raise next((error for error in errors if isinstance(error, Locked)), errors[0])

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Writes under way and what interrupted ones left, at all places."""
        for name, place in self._places.items():
            for unfinished in place.list_unfinished():
                yield unfinished.model_copy(update={"handle": f"{name}{_SEPARATOR}{unfinished.handle}"})

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove what an interrupted write left, where it is. Raises BadInput for a handle of another storage."""
        name, separator, handle = unfinished.handle.partition(_SEPARATOR)
        if not separator or name not in self._places:
            raise BadInput(f"{unfinished.handle!r} is not an unfinished write in {self.display_uri} or the places of localities.")
        self._places[name].remove_unfinished(unfinished.model_copy(update={"handle": handle}))

    def _home(self, key: str) -> Storage:
        """Where the object is written."""
        name = place_of(check_key(key)) or _DEFAULT
        if name not in self._places:
            raise BadInput(
                f"{key!r} belongs to the locality {name}, and none of the {len(self._places)} URIs given is for it: add the one"
                f" with COCKROACH_LOCALITY={name}."
            )
        return self._places[name]

    def _order(self, key: str) -> Iterator[Storage]:
        """Where the object is looked for."""
        home = place_of(key)
        if home in self._places:
            yield self._places[home]
        yield self._places[_DEFAULT]
        if home is not None:
            yield from (place for name, place in self._places.items() if name not in {home, _DEFAULT})

    def _found(self, key: str, ask: Callable[[Storage], _T]) -> _T:
        """What the first place answers that has the object."""
        name = place_of(key)
        if name is None:
            return ask(self._places[_DEFAULT])
        unreachable = None
        for place in self._order(key):
            try:
                return ask(place)
            except NotFound:
                continue
            except Retryable as error:
                unreachable = unreachable or error
        if unreachable:
            raise _perhaps(key, unreachable) from unreachable
        if self.head(key) is not None:  # Raises NotFound for a bucket that is not there.
            raise Retryable(f"{key!r} was moved from one place to another while it was looked for.")
        raise NotFound(
            f"There is no object {key!r} in any of the {len(self._places)} places given; it belongs to the locality"
            f" {self._tiers.get(name, name)}: give the URI of that locality, or of the place that its files were moved to."
        )

    def _listed(self, name: str, prefix: str) -> Iterator[tuple[str, int, ObjectInfo]]:
        """What the merged listing takes from one place. Of copies the one comes first that is read."""
        for info in self._places[name].list(prefix):
            home = place_of(info.key)
            if name == _DEFAULT or home is not None:
                yield info.key, 0 if home == name else 1 + self._ranks[name], info

    def _folders(self, name: str, prefix: str) -> Iterator[tuple[str, str]]:
        """The folders of one place; the default's name is the smallest."""
        return ((folder, name) for folder in self._places[name].list_folders(prefix))

    def _holds_placed(self, name: str, prefix: str) -> bool:
        return any(place_of(info.key) is not None for info in self._places[name].list(prefix))


class LockableSpreadStorage(SpreadStorage):
    """A SpreadStorage of which at least one place can lock objects."""

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with at the first place that protects them."""
        able = (place for place in self._places.values() if isinstance(place, LockableStorage))
        return next((place.object_lock for place in able if place.object_lock is not None), None)

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected where it is read; None where objects cannot be locked. Raises what `get` raises."""

        def ask(place: Storage) -> LockInfo | None:
            if isinstance(place, LockableStorage):
                return place.lock_of(key)
            _require(place, key)
            return None

        return self._found(key, ask)

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object where it is read, at least until `until` (Unix seconds); whether that had to be done. Raises what
        `get` raises, and BadInput where objects cannot be locked."""

        def ask(place: Storage) -> bool:
            if isinstance(place, LockableStorage):
                return place.extend_lock(key, until)
            _require(place, key)
            raise BadInput(f"{key!r} is in {place.display_uri}, a store whose object locks Spanvault cannot extend.")

        return self._found(key, ask)


def _require(place: Storage, key: str) -> None:
    if place.head(key) is None:
        raise NotFound(f"There is no object {key!r} in {place.display_uri}.")


def _perhaps(key: str, unreachable: Retryable) -> Retryable:
    return Retryable(f"{key!r} may be in a place that cannot be reached now, and is in none of the others: {unreachable}")
