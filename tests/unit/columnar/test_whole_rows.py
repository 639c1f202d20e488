"""Blocks of whole rows, wherever the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar import whole_rows as module
from spanvault.columnar.whole_rows import end_of_last_row, whole_rows


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=30).map(lambda row: row.replace(b"\n", b"n")), max_size=20),
    st.integers(1, 60),
    st.integers(1, 17),
)
def test_every_block_is_whole_rows(rows: list[bytes], block_bytes: int, step: int) -> None:
    data = b"".join(row + b"\n" for row in rows)
    blocks = list(whole_rows((data[start : start + step] for start in range(0, len(data), step)), block_bytes))
    assert all(block.endswith(b"\n") for block in blocks)
    assert [row for block in blocks for row in block.split(b"\n")[:-1]] == rows


@pytest.mark.parametrize(("block", "end"), [(b"", 0), (b"a", 0), (b"a\n", 2), (b"a\nb", 2), (b"a\n\n", 3)])
def test_the_end_of_the_last_row(block: bytes, end: int) -> None:
    assert end_of_last_row(block) == end


def test_work_grows_linearly_with_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 64 MB with blocks of 1 MB must not be looked at again for each block."""
    looked_at = 0

    def counting(block: bytes) -> int:
        nonlocal looked_at
        looked_at += len(block)
        return end_of_last_row(block)

    monkeypatch.setattr(module, "end_of_last_row", counting)
    chunks = [b"a", *[b"abcd" * 16384] * 1000, b"\n", b"a\n"]
    blocks = list(whole_rows(chunks, 1 << 20))
    assert b"".join(blocks) == b"".join(chunks)
    assert looked_at < 4 * sum(map(len, chunks))
