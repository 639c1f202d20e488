"""Cutting a stream of COPY CSV bytes into blocks of whole rows, however long a row is.

Arrow parses a block in one piece and needs every row whole. A row ends at a newline with an even number of quotes
before it, because PostgreSQL doubles the quotes inside a value. PostgreSQL sends one message per row
(https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-COPY), so a block usually ends with a row; nothing here
relies on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_QUOTE = ord('"')
_NEWLINE = ord("\n")
_PIECE = 128 << 10


def whole_rows(chunks: Iterable[bytes], block_bytes: int) -> Iterator[bytes]:
    """Blocks of whole rows that together are the bytes of `chunks`.

    A block has about `block_bytes` bytes, and more where a row is longer. Each byte is looked at a bounded number of times,
    also in a row of many blocks' length.
    """
    pending: list[bytes] = []
    size = 0
    wanted = block_bytes
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size < wanted:
            continue
        block = b"".join(pending)
        end = end_of_last_row(block)
        if end:
            yield block if end == size else block[:end]
        pending = [block[end:]] if end < size else []
        size -= end
        # Doubling keeps the work linear while a long row is still arriving.
        wanted = block_bytes if end else 2 * size
    if size:
        yield b"".join(pending)


def end_of_last_row(block: bytes) -> int:
    """The offset behind the last row that is complete in `block`, which starts with a row; 0 if none is."""
    if block.endswith(b"\n") and not _count(block, _QUOTE) % 2:
        return len(block)
    data = np.frombuffer(block, np.uint8)
    inside = np.logical_xor.accumulate(data == _QUOTE)
    ends = np.flatnonzero((data == _NEWLINE) & ~inside)
    return int(ends[-1]) + 1 if ends.size else 0


def _count(block: bytes, value: int) -> int:
    # In pieces that stay in the processor's cache.
    data = np.frombuffer(block, np.uint8)
    return sum(int(np.count_nonzero(data[start : start + _PIECE] == value)) for start in range(0, len(block), _PIECE))
