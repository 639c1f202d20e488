"""Writing one blob of unknown size: one Put Blob if it is small, else blocks that a list makes visible, in bounded memory.

Blocks carry in their names when the writer began and which it is: the service keeps neither for blocks without a list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from azure.storage.blob import BlobBlock

from spanvault.storage.parts import PartWriter

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

FIRST_BLOCK_BYTES = 8 << 20
MAX_BLOCKS = 50_000
_BLOCKS_PER_SIZE = 1_000
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


class AzureWriter(PartWriter[BlobBlock]):
    """A Writer whose bytes become the blob by `finish()`. `memory` and `guard` are PartWriter's; `create` tells the
    blob's properties (metadata, and a lock that begins when it is asked)."""

    def __init__(
        self,
        blob: BlobClient,
        *,
        token: str,
        create: Callable[[], dict[str, Any]],
        memory: int,
        guard: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(part_bytes=block_bytes, memory=memory, guard=guard)
        self._blob = blob
        self._name = writer_name(token)
        self._create = create
        self.sent_blocks = False  # Whether any may have arrived, which a writer that gives up should remove.

    def _begin(self, part: bytes) -> Sequence[BlobBlock]:
        self.sent_blocks = True
        # Awaited, so that from here on `list_unfinished` shows the write.
        return [self._send_part(1, part)]

    def _send_part(self, number: int, part: bytes) -> BlobBlock:
        block = BlobBlock(f"{self._name}{number:06d}")
        self._blob.stage_block(block.id, part, validate_content=True)
        return block

    def _publish_whole(self, data: bytes) -> None:
        self._blob.upload_blob(data, overwrite=True, **self._create(), validate_content=True)

    def _publish_parts(self, sent: list[BlobBlock]) -> None:
        self._blob.commit_block_list(sent, **self._create())
