"""Writing one blob of unknown size: one Put Blob if it is small, else blocks that a list makes visible, in bounded memory.

Blocks carry in their names when the writer began and which it is: the service keeps neither for blocks without a list.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from azure.storage.blob import BlobBlock

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

FIRST_BLOCK_BYTES = 8 << 20
MAX_BLOCKS = 50_000
_BLOCKS_PER_SIZE = 1_000
_UPLOAD_THREADS = 4
_WRITER_LENGTH = 12 + 1 + 36


def block_bytes(number: int) -> int:
    """The size of block `number` (from 1): 8 MiB, growing by 8 MiB every 1,000 blocks, so that 50,000 blocks hold 9.7 TiB and
    none exceeds 4,000 MiB (https://learn.microsoft.com/azure/storage/blobs/scalability-targets)."""
    return FIRST_BLOCK_BYTES * (1 + (number - 1) // _BLOCKS_PER_SIZE)


def writer_name(token: str) -> str:
    """What the names of one writer's blocks begin with: when it began and its token (a UUID)."""
    return f"{time.time_ns() // 1_000_000:012x}-{token}"


def writer_of(block: str) -> str | None:
    """The writer's name in a block's name, or None if the block is not one of ours. All names are equally long, as the
    service demands, and at most 64 bytes."""
    writer, rest = block[:_WRITER_LENGTH], block[_WRITER_LENGTH:]
    return writer if len(rest) == 6 and writer[12:13] == "-" and writer.count("-") == 5 else None


def began(writer: str) -> float:
    """When a writer of this name began, in Unix seconds."""
    return int(writer[:12], 16) / 1_000


class AzureWriter:
    """A Writer whose bytes become the blob by `finish()`; what was sent without it stays invisible.

    `memory` bounds the bytes of blocks on their way (always at least one block); one more is being filled. `guard` translates
    the SDK's errors.
    """

    def __init__(
        self,
        blob: BlobClient,
        *,
        token: str,
        metadata: dict[str, str],
        memory: int,
        guard: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._blob = blob
        self._name = writer_name(token)
        self._metadata = metadata
        self._memory = memory
        self._guard = guard
        self._buffer = bytearray()
        self._blocks: list[BlobBlock] = []
        self._threads: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Future[None]]] = deque()
        self.sent_blocks = False  # Whether any may have arrived, which a writer that gives up should remove.
        self.publishing = False  # Whether a call was made that makes the blob visible.

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; waits while too many bytes are on their way."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            full = block_bytes(len(self._blocks) + 1)
            taken = view[position : position + full - len(self._buffer)]
            self._buffer += taken
            position += len(taken)
            if len(self._buffer) == full:
                with self._guard():
                    self._send()
        return len(view)

    def finish(self) -> None:
        """Make the blob visible."""
        with self._guard():
            if not self._blocks:
                self.publishing = True
                self._blob.upload_blob(bytes(self._buffer), overwrite=True, metadata=self._metadata, validate_content=True)
                return
            if self._buffer:
                self._send()
            while self._pending:
                self._collect()
            self.stop()
            self.publishing = True
            self._blob.commit_block_list(self._blocks, metadata=self._metadata)

    def stop(self) -> None:
        """Wait for the blocks that are on their way; send no more."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _send(self) -> None:
        block = BlobBlock(f"{self._name}{len(self._blocks) + 1:06d}")
        # The SDK takes a checksum of bytes only.
        data = bytes(self._buffer)
        self._buffer = bytearray()
        self.sent_blocks = True
        if self._threads is None:
            # Awaited, so that from here on `list_unfinished` shows the write.
            self._send_block(block.id, data)
            self._blocks.append(block)
            self._threads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="spanvault-upload")
            return
        while self._pending and sum(size for size, _ in self._pending) + len(data) > self._memory:
            self._collect()
        self._blocks.append(block)
        self._pending.append((len(data), self._threads.submit(self._send_block, block.id, data)))

    def _send_block(self, name: str, data: bytes) -> None:
        self._blob.stage_block(name, data, validate_content=True)

    def _collect(self) -> None:
        _, future = self._pending.popleft()
        future.result()
