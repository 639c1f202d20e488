"""The properties of streams and locks that storage/check.py tries, in the manner of storage/check_properties.py."""

from __future__ import annotations

import time

from spanvault.errors import Locked
from spanvault.storage.base import LockableStorage
from spanvault.storage.check_properties import CONTENT, Broken, Place, unfinished

# S3 parts and Azure blocks have 8 MiB: such a stream is sent in several.
_SEVERAL_PARTS = 20 << 20
_BLOCK = 1 << 20


class _Stopped(BaseException):
    """Stands in for whatever ends a writer, Ctrl-C too."""


def interrupted_stream(place: Place) -> str:
    """Nothing of a stream is visible before its end, and nothing at all if it is interrupted."""
    for name, size in (("small", 1 << 10), ("large", _SEVERAL_PARTS)):
        key = place.key(f"stream/{name}")
        _interrupt(place, key, size)
        info = place.reader.head(key)
        if info is not None or place.listed("stream/"):
            raise Broken(f"After an exception in the middle of a stream an object is visible ({info.size if info else 0} bytes).")
    key = place.key("stream/kept")
    place.writer.put(key, CONTENT)
    _interrupt(place, key, 1 << 10)
    if place.reader.get(key) != CONTENT:
        raise Broken("An exception in the middle of a stream destroyed the object that it was to replace.")
    return "An interrupted stream leaves no object, and what it was to replace stays as it was."


def _interrupt(place: Place, key: str, size: int) -> None:
    existed = place.reader.head(key)
    try:
        with place.writer.open_write(key) as writer:
            for start in range(0, size, _BLOCK):
                writer.write(bytes(min(_BLOCK, size - start)))
            seen = place.reader.head(key)
            if (seen and seen.size) != (existed and existed.size):
                raise Broken("A stream is visible before its end.")
            raise _Stopped
    except _Stopped:
        return
    raise Broken("An exception in the middle of a stream was swallowed.")


def unfinished_writes(place: Place) -> str:
    """Interrupted streams leave nothing that costs space unseen."""
    left = list(unfinished(place))
    if left:
        raise Broken(
            f"Interrupted streams left {len(left)} unfinished uploads, which cost space until a sweep or a lifecycle rule "
            "removes them."
        )
    return "Interrupted streams left no unfinished upload."


def object_lock(place: Place) -> str:
    """Objects get the lock that is asked for when they are written, and cannot be deleted before it ends."""
    if place.lock is None or place.lock.mode is None or not isinstance(place.locking, LockableStorage):
        raise Broken("A legal hold is not tried, because what has one stays until somebody takes it off.")
    until = time.time() + place.lock_seconds
    for name in ("put", "stream"):
        key = place.key(f"lock/{name}")
        place.locked_keys.append(key)
        try:
            _write_locked(place.locking, key, streamed=name == "stream")
        finally:
            # No lock that was asked for until now ends later, also if the answer never came.
            place.locked_until = time.time() + place.lock_seconds
        lock = place.locking.lock_of(key)
        if lock is None or lock.mode != place.lock.mode:
            _require_time(until)
            raise Broken(f"The store took an object and the lock that it was to get ({place.lock.mode}), and did not set it.")
        # Stores keep whole seconds.
        if lock.until < until - 1:
            raise Broken("The store set a lock that ends earlier than was asked for.")
    _require_refusal(place, until)
    hold = "; the legal hold was not tried, because it would have no end." if place.lock.legal_hold else "."
    asked = f"{place.lock.mode} lock of {place.lock_seconds:g} s was set on writing, and deletion was refused"
    return f"A {asked}{hold} Backups get {place.lock.days:g} days."


def _write_locked(storage: LockableStorage, key: str, *, streamed: bool) -> None:
    if not streamed:
        storage.put(key, CONTENT, create_only=True)
        return
    with storage.open_write(key) as writer:
        for _ in range(0, _SEVERAL_PARTS, _BLOCK):
            writer.write(bytes(_BLOCK))


def _require_refusal(place: Place, until: float) -> None:
    for key in place.locked_keys:
        try:
            place.writer.delete(key)
        except Locked:
            continue
        _require_time(until)
        raise Broken("An object that is locked was deleted all the same.")


def _require_time(until: float) -> None:
    """A lock that has ended while it was tried says nothing."""
    if time.time() >= until:
        raise Broken("The lock could not be checked: the place was so slow that the lock had ended by then.")
