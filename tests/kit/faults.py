"""Programmable faults: an error, a kill or a call of the test's own, at the n-th time that a point is reached.

A point is a name. `FaultyStorage` reaches `storage.<method>.before` and `storage.<method>.after` around each call (after:
the effect has happened, its answer is lost), with the key; the engine's steps reach the names they give (Faults.reach is
what a context's `reached` takes). Matching is by fnmatch patterns, so `storage.put.*` is any moment of a put.

    faults = Faults()
    faults.add_fault("storage.put.after", key="*/chain/*", action=Retryable("The answer was lost."))
    faults.add_fault("seal.after_change_files", nth=2, action=KILL)
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from spanvault.storage.base import ObjectInfo, Storage, Unfinished, Writer


class Killed(BaseException):
    """Stands in for the end of the process, in tests that go on in it. Clean-up that runs on any exception still runs;
    where that matters use KILL in a process of its own."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise_killed() -> None:
    raise Killed


KILLED: Callable[[], None] = _raise_killed  # Raises Killed.
KILL: Callable[[], None] = _die  # A real SIGKILL to this process.
Action = BaseException | Callable[[], object]


@dataclass
class Fault:
    """What happens at the `nth` (from 1) match of `point` and `key`, and at the `times` - 1 matches after it; `times` of
    None is for ever. `seen` and `fired` count."""

    point: str
    key: str
    nth: int
    action: Action
    times: int | None
    seen: int = 0
    fired: int = 0

    def counts(self, point: str, key: str) -> bool:
        """Count a reached point; whether this fault fires at it."""
        if not (fnmatchcase(point, self.point) and fnmatchcase(key, self.key)):
            return False
        self.seen += 1
        fires = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        self.fired += fires
        return fires


class Faults:
    """The faults of one test and a log of all points reached, as (point, key). Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []

    def add_fault(self, point: str, *, key: str = "*", nth: int = 1, action: Action, times: int | None = 1) -> Fault:
        """Arm a fault. An exception as action is raised, anything else is called (its result is ignored)."""
        fault = Fault(point, key, nth, action, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm all faults and forget the log: the same storage now works."""
        with self._lock:
            self._faults.clear()
            self.log.clear()

    def reach(self, point: str, key: str = "") -> None:
        """A point is reached: the first armed fault that matches fires."""
        with self._lock:
            self.log.append((point, key))
            fault = next((fault for fault in self._faults if fault.counts(point, key)), None)
        if fault is None:
            return
        if isinstance(fault.action, BaseException):
            raise fault.action
        fault.action()

    def count(self, point: str, key: str = "*") -> int:
        """How often a matching point was reached."""
        with self._lock:
            return sum(fnmatchcase(name, point) and fnmatchcase(where, key) for name, where in self.log)

    def points(self) -> list[str]:
        """The distinct points reached so far, in the order of their first time: where a test can place its faults."""
        with self._lock:
            return list(dict.fromkeys(name for name, _ in self.log))


class FaultyStorage:
    """A Storage that reaches a point before and after each call. `open_write` has the points `storage.open_write.before`,
    `storage.open_write.write` (before each write), `storage.open_write.publish` (all bytes written, nothing visible) and
    `storage.open_write.after` (visible)."""

    def __init__(self, storage: Storage, faults: Faults) -> None:
        self._storage = storage
        self._faults = faults

    @property
    def display_uri(self) -> str:
        return self._storage.display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        with self._points("put", key):
            self._storage.put(key, data, create_only=create_only)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        with self._points("open_write", key), self._storage.open_write(key) as writer:
            yield _FaultyWriter(writer, self._faults, key)
            self._faults.reach("storage.open_write.publish", key)

    def get(self, key: str) -> bytes:
        with self._points("get", key):
            return self._storage.get(key)

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        with self._points("read_chunks", key):
            for chunk in self._storage.read_chunks(key, chunk_size):
                self._faults.reach("storage.read_chunks.chunk", key)
                yield chunk

    def head(self, key: str) -> ObjectInfo | None:
        with self._points("head", key):
            return self._storage.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._points("list", prefix):
            yield from self._storage.list(prefix)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        with self._points("list_folders", prefix):
            yield from self._storage.list_folders(prefix)

    def delete(self, key: str) -> None:
        with self._points("delete", key):
            self._storage.delete(key)

    def list_unfinished(self) -> Iterator[Unfinished]:
        with self._points("list_unfinished", ""):
            yield from self._storage.list_unfinished()

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        with self._points("remove_unfinished", unfinished.key):
            self._storage.remove_unfinished(unfinished)

    @contextmanager
    def _points(self, method: str, key: str) -> Iterator[None]:
        self._faults.reach(f"storage.{method}.before", key)
        yield
        self._faults.reach(f"storage.{method}.after", key)


class _FaultyWriter:
    def __init__(self, writer: Writer, faults: Faults, key: str) -> None:
        self._writer = writer
        self._faults = faults
        self._key = key

    def write(self, data: bytes | memoryview, /) -> int:
        self._faults.reach("storage.open_write.write", self._key)
        return self._writer.write(data)
