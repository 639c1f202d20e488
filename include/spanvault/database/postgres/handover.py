"""Passing bytes from the thread that receives them to one that works on them, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

_T = TypeVar("_T")

# Bytes that may wait. A chunk that is longer (one long row) is worked on before the next is received.
_WAITING_BYTES: Final = 16 << 20


class _Stopped(Exception):
    """The working side has failed."""


class Handover(Generic[_T]):
    """Runs `work(chunks)` on a thread of its own while the `with` block feeds it by `put`.

    The block ends when `work` has ended. An exception of the block reaches `work` through its iterator, and one of
    `work` stops the block at its next `put` and is what comes out.
    """

    def __init__(self, work: Callable[[Iterator[bytes]], _T]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._chunks: list[bytes] = []
        self._size = 0
        self._working = False
        self._ended = False
        self._receiving_failed: BaseException | None = None
        self._working_failed: BaseException | None = None
        self._results: list[_T] = []
        self._thread = threading.Thread(target=self._run, name="spanvault-handover")

    def put(self, chunk: bytes) -> None:
        """Pass `chunk` on, after waiting while too much is waiting already."""
        with self._changed:
            while self._size and self._size + len(chunk) > _WAITING_BYTES and not self._working_failed:
                self._changed.wait()
            if self._working_failed:
                raise _Stopped
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._changed.notify_all()
            while len(chunk) > _WAITING_BYTES and (self._chunks or self._working) and not self._working_failed:
                self._changed.wait()

    def result(self) -> _T:
        """What `work` returned; after the block."""
        return self._results[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._receiving_failed = error
            self._changed.notify_all()
        self._thread.join()
        # Only what failed first comes out: the other side's exception follows from it.
        if self._working_failed and self._working_failed is not error:
            raise self._working_failed from None

    def _run(self) -> None:
        try:
            self._results.append(self._work(self._received()))
        except BaseException as error:  # noqa: BLE001 -- raised again on the receiving side
            with self._changed:
                self._working_failed = error
                self._changed.notify_all()

    def _received(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._working = False
                self._changed.notify_all()
                while not self._chunks and not self._ended:
                    self._changed.wait()
                chunks, self._chunks, self._size = self._chunks[::-1], [], 0
                self._working = True
                self._changed.notify_all()
                if self._receiving_failed:
                    raise self._receiving_failed
            if not chunks:
                return
            while chunks:
                yield chunks.pop()
