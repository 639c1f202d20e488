"""Limits on what goes to and comes from storages: bytes a second, and calls at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from spanvault.storage.base import LockableStorage, ObjectInfo, Storage, Unfinished, Writer
from spanvault.storage.lock_through import LocksOfInner

_SLICE_BYTES = 1 << 20


def limited(storage: Storage, bytes_per_second: int) -> Storage:
    """`storage` with at most `bytes_per_second` read and written together, over all threads that use the result; 0 is
    no limit."""
    return _behind(RateLimit(bytes_per_second), storage) if bytes_per_second else storage


def limited_in_process(storage: Storage, bytes_per_second: int) -> Storage:
    """`storage` with at most `bytes_per_second` read and written together by all storages of this process; 0 is no
    limit."""
    return _behind(_rate_of_process(bytes_per_second), storage) if bytes_per_second else storage


def _behind(limit: RateLimit, storage: Storage) -> LimitedStorage:
    return (LockableLimitedStorage if isinstance(storage, LockableStorage) else LimitedStorage)(storage, limit)


class CallLimit:
    """Turns for calls to object stores: at most `calls` at a time. A thread has one turn at most, so that a call within
    another, or after one that was interrupted, never waits for its own thread."""

    def __init__(self, calls: int) -> None:
        self._turns = threading.BoundedSemaphore(calls)
        self._thread = threading.local()

    @staticmethod
    def of(calls: int) -> CallLimit | None:
        """The limit that all storages of this process share; None if `calls` is 0."""
        return _calls_of_process(calls) if calls else None

    def enter(self) -> None:
        """Wait for a turn."""
        if not getattr(self._thread, "has_turn", False):
            self._turns.acquire()
            self._thread.has_turn = True

    def leave(self) -> None:
        """Give the turn back."""
        if getattr(self._thread, "has_turn", False):
            self._thread.has_turn = False
            self._turns.release()


class RateLimit:
    """A token bucket that holds at most one second's bytes. Threads share it; each call pays in the order it came."""

    def __init__(
        self, bytes_per_second: int, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = float(bytes_per_second)
        self._filled_at = clock()

    def take(self, count: int) -> None:
        """Wait until `count` bytes may pass. A count larger than the bucket goes into debt, which those after it wait for."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._rate, self._tokens + (now - self._filled_at) * self._rate) - count
            self._filled_at = now
            debt = -self._tokens
        if debt > 0:
            self._sleep(debt / self._rate)


@cache
def _rate_of_process(bytes_per_second: int) -> RateLimit:
    return RateLimit(bytes_per_second)


@cache
def _calls_of_process(calls: int) -> CallLimit:
    return CallLimit(calls)


class LimitedStorage:
    """A Storage whose bytes pay `limit` before they go, or when they have come; `inner` is the one that it wraps."""

    def __init__(self, storage: Storage, limit: RateLimit) -> None:
        self.inner = storage
        self._limit = limit

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self.inner.display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole."""
        self._limit.take(len(data))
        self.inner.put(key, data, create_only=create_only)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object."""
        with self.inner.open_write(key) as writer:
            yield _LimitedWriter(writer, self._limit)

    def get(self, key: str) -> bytes:
        """The whole object."""
        return b"".join(self.read_chunks(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order."""
        for chunk in self.inner.read_chunks(key, chunk_size):
            self._limit.take(len(chunk))
            yield chunk

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None."""
        return self.inner.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`."""
        return self.inner.list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix`."""
        return self.inner.list_folders(prefix)

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        self.inner.delete(key)

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Writes that have not ended."""
        return self.inner.list_unfinished()

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove what an interrupted write left."""
        self.inner.remove_unfinished(unfinished)


class LockableLimitedStorage(LocksOfInner, LimitedStorage):
    """A LimitedStorage over a storage that can lock objects."""

    inner: LockableStorage


class _LimitedWriter:
    """Pays slice by slice, so that one large write does not go out in a burst."""

    def __init__(self, writer: Writer, limit: RateLimit) -> None:
        self._writer = writer
        self._limit = limit

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _SLICE_BYTES):
            part = view[start : start + _SLICE_BYTES]
            self._limit.take(len(part))
            self._writer.write(part)
        return len(view)
