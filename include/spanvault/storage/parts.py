"""Writing an object of unknown size in bounded memory: whole if it is small, else in parts that are sent side by side.

What is common to S3 and Azure, where parts are sent in any order and one last call makes them an object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Generic, TypeVar

_THREADS = 4
_Sent = TypeVar("_Sent")


class PartWriter(ABC, Generic[_Sent]):
    """A Writer whose bytes become the object by `finish()`. A store's own writer says how parts are sent; it gives up what
    was sent after `stop()`.

    `part_bytes` is the size of a part by its number (from 1). `memory` bounds the bytes of parts on their way (always at
    least one part); one more part is being filled. `guard` translates the store's errors.
    """

    def __init__(
        self, *, part_bytes: Callable[[int], int], memory: int, guard: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._part_bytes = part_bytes
        self._memory = memory
        self._guard = guard
        self._buffer = BytesIO()
        self._number = 1  # Of the part that is being filled.
        self._threads: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Future[_Sent]]] = deque()
        self._sent: list[_Sent] = []
        self.publishing = False  # Whether a call was made that makes the object visible.

    @abstractmethod
    def _begin(self, part: bytes) -> Sequence[_Sent]:
        """Prepare the store for parts. Returns what came of the first one if it was sent here, else nothing."""

    @abstractmethod
    def _send_part(self, number: int, part: bytes) -> _Sent:
        """Send a part, in a thread of its own; what is to be told of it at the end."""

    @abstractmethod
    def _publish_whole(self, data: bytes) -> None:
        """Make an object of all its bytes."""

    @abstractmethod
    def _publish_parts(self, sent: list[_Sent]) -> None:
        """Make an object of the parts, which are given in order."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; waits while too many bytes are on their way."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            full = self._part_bytes(self._number)
            position += self._buffer.write(view[position : position + full - self._buffer.tell()])
            if self._buffer.tell() == full:
                with self._guard():
                    self._send()
        return len(view)

    def finish(self) -> None:
        """Make the object visible."""
        with self._guard():
            if self._number == 1:
                self.publishing = True
                self._publish_whole(self._buffer.getvalue())
                return
            if self._buffer.tell():
                self._send()
            while self._pending:
                self._collect()
            self.stop()
            self.publishing = True
            self._publish_parts(self._sent)

    def stop(self) -> None:
        """Wait for the parts that are on their way; send no more."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _send(self) -> None:
        part, self._buffer = self._buffer.getvalue(), BytesIO()
        number, self._number = self._number, self._number + 1
        if self._threads is None:
            self._sent.extend(self._begin(part))
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spanvault-upload")
            if self._sent:
                return
        while self._pending and sum(size for size, _ in self._pending) + len(part) > self._memory:
            self._collect()
        self._pending.append((len(part), self._threads.submit(self._send_part, number, part)))

    def _collect(self) -> None:
        _, future = self._pending.popleft()
        self._sent.append(future.result())
