"""Cutting a stream of COPY's text format into blocks of whole rows, however long a row is.

Arrow parses a block in one piece and needs every row whole. A row ends at a newline, and no newline is anywhere else: in
values it is `\\n`. PostgreSQL sends one message per row
(https://www.postgresql.org/docs/18/protocol-flow.html#PROTOCOL-COPY), so a block usually ends with a row; nothing here
relies on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def whole_rows(chunks: Iterable[bytes], block_bytes: int) -> Iterator[bytes]:
    """Blocks of whole rows that together are the bytes of `chunks`.

    A block has about `block_bytes` bytes, and more where a row is longer. Each byte is looked at a bounded number of times,
    also in a row of many blocks' length. A block is not held here while the caller works on it.
    """
    waiting = _Waiting(block_bytes)
    for chunk in chunks:
        if waiting.size + len(chunk) >= waiting.wanted:
            # Before a long chunk, so that it need not be copied behind what waits.
            yield from waiting.take()
        waiting.add(chunk)
        del chunk
        if waiting.size >= waiting.wanted:
            yield from waiting.take()
    if waiting.size:
        yield waiting.rest()


class _Waiting:
    """Bytes from the start of a row on. `wanted` is the size at which to look for a row's end again."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._parts: list[bytes] = []
        self.size = 0
        self.wanted = block_bytes

    def add(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self.size += len(chunk)

    def take(self) -> Iterator[bytes]:
        """The whole rows so far, in one block, if there are any."""
        block = self.rest()
        end = end_of_last_row(block)
        if end < len(block):
            self.add(block[end:])
        # Doubling keeps the work linear while a long row is still arriving.
        self.wanted = self._block_bytes if end else 2 * self.size
        ready = [block if end == len(block) else block[:end]] if end else []
        del block
        while ready:
            yield ready.pop()

    def rest(self) -> bytes:
        """All bytes, which then no longer wait."""
        parts, self._parts, self.size = self._parts, [], 0
        return b"".join(parts)


def end_of_last_row(block: bytes) -> int:
    """The offset behind the last row that is complete in `block`; 0 if none is."""
    return block.rfind(b"\n") + 1
