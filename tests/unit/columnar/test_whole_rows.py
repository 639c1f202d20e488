"""Blocks of whole rows, whatever is inside quotes and wherever the stream is cut."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar import wide_rows
from spanvault.columnar.wide_rows import end_of_last_row, whole_rows


def rows_of(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.text(st.sampled_from('a",\n'), max_size=8), min_size=1, max_size=3), max_size=20),
    st.integers(1, 60),
    st.integers(1, 17),
)
def test_every_block_is_whole_rows(rows: list[list[str]], block_bytes: int, step: int) -> None:
    data = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows).encode()
    blocks = list(whole_rows((data[start : start + step] for start in range(0, len(data), step)), block_bytes))
    assert b"".join(blocks) == data
    assert [row for block in blocks for row in rows_of(block)] == rows


@pytest.mark.parametrize(
    ("block", "end"),
    [
        (b"", 0),
        (b"a", 0),
        (b"a\n", 2),
        (b"a\nb", 2),
        (b'"a\n', 0),
        (b'x\n"a\n', 2),
        (b'"a\n"\n', 5),
        (b'"a\n""', 0),
        (b'"a""\n', 0),
        (b'"a"""\n"\n', 6),
    ],
)
def test_the_end_of_the_last_row(block: bytes, end: int) -> None:
    assert end_of_last_row(block) == end


def test_work_grows_linearly_with_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 64 MB with blocks of 1 MB must not be looked at again for each block."""
    looked_at = 0

    def counting(block: bytes) -> int:
        nonlocal looked_at
        looked_at += len(block)
        return end_of_last_row(block)

    monkeypatch.setattr(wide_rows, "end_of_last_row", counting)
    chunks = [b'"', *[b'"",\n' * 16384] * 1000, b'"\n', b"a\n"]
    blocks = list(wide_rows.whole_rows(chunks, 1 << 20))
    assert b"".join(blocks) == b"".join(chunks)
    assert looked_at < 4 * sum(map(len, chunks))
