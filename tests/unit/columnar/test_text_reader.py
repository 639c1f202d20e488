"""The reader of COPY's text format without a server: cut streams, characters that stand for others, failing columns."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar import text_reader
from spanvault.columnar.text_reader import ConversionNeeded, TextReader, unescaped
from tests.kit.shapes import column, table

ESCAPES = {"\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def cell(value: str | None) -> str:
    """A value as COPY's documented rules write it."""
    return r"\N" if value is None else "".join(ESCAPES.get(character, character) for character in value)


def copy_text(rows: list[list[str | None]]) -> bytes:
    return "".join("\t".join(map(cell, row)) + "\n" for row in rows).encode()


awkward = (
    st.none()
    | st.text(st.sampled_from(list('"N,\n\r\\\\\\.xé 🐘\t\b\f\v')), max_size=12)
    | st.text(max_size=5).filter(lambda t: "\0" not in t)
)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(awkward, awkward).map(list), max_size=30),
    cuts=st.lists(st.integers(0, 600), max_size=20),
    block_bytes=st.integers(1, 200),
)
def test_a_stream_cut_anywhere_gives_the_same_rows(rows: list[list[str | None]], cuts: list[int], block_bytes: int) -> None:
    data = copy_text(rows)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[start:end] for start, end in itertools.pairwise(places)]
    reader = TextReader(table(column(1, "a", "text"), column(2, "b", "text")))
    batches = list(reader.batches(chunks, block_bytes))
    assert [list(row.values()) for batch in batches for row in batch.to_pylist()] == rows


@settings(deadline=None)
@given(st.lists(awkward, max_size=30))
def test_one_column_tells_null_from_empty(values: list[str | None]) -> None:
    reader = TextReader(table(column(1, "a", "text")))
    (batch,) = [*reader.batches([copy_text([[value] for value in values])])] or [pa.record_batch([[]], names=["a"])]
    assert batch.column("a").to_pylist() == values


@settings(deadline=None)
@given(st.lists(awkward, max_size=30), st.integers(0, 30), st.integers(1, 9))
def test_escapes_over_the_border_of_segments(values: list[str | None], skip: int, segment: int) -> None:
    """Also in a slice of an array, whose bytes do not begin with its buffer's."""
    written = pa.array([None if value is None else cell(value) for value in values], pa.string()).slice(skip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_reader, "_SEGMENT", segment)
        assert unescaped(written).to_pylist() == values[skip:]


@pytest.mark.parametrize("broken", ["\\", "a\\q", "\\\\\\", "\\N\\"])
def test_a_backslash_in_front_of_nothing_known_is_refused(broken: str) -> None:
    with pytest.raises(pa.ArrowInvalid):
        unescaped(pa.array(["a", broken]))


def test_typed_values_and_nulls() -> None:
    shape = table(column(1, "a", "boolean"), column(2, "b", "bytea"), column(3, "c", "bigint"), column(4, "d", "text"))
    block = b"t\t\\\\x00ff\t-1\tN\nf\t\\\\x\t\\N\t\\\\N\n\\N\t\\N\t7\t\n"
    assert [list(row.values()) for row in TextReader(shape).read_block(block).to_pylist()] == [
        [True, b"\0\xff", -1, "N"],
        [False, b"", None, r"\N"],
        [None, None, 7, ""],
    ]


def test_all_failing_columns_of_a_block_are_named() -> None:
    shape = table(column(1, "d", "date"), column(2, "_op", "integer"), column(3, "n", "numeric", (5 << 16) + 1 + 4))
    block = b"2020-01-01\t1\tNaN\ninfinity\t2\t1.0\n"
    with pytest.raises(ConversionNeeded) as caught:
        TextReader(shape).read_block(block)
    assert caught.value.columns == {"d", "n"}
    batch = TextReader(shape, caught.value.columns).read_block(block)
    assert batch.to_pylist() == [{"d": "2020-01-01", "__op": 1, "n": "NaN"}, {"d": "infinity", "__op": 2, "n": "1.0"}]


@pytest.mark.parametrize("block", [b"1\n", b"1\ta\tb\n", b"1\t\\q\n", b"1\t\xff\n"])
def test_rows_that_are_not_the_tables_are_no_conversion(block: bytes) -> None:
    with pytest.raises(RuntimeError, match=r"s\.t"):
        TextReader(table(column(1, "a", "integer"), column(2, "b", "text"))).read_block(block)


def test_rows_without_columns_count() -> None:
    (batch,) = TextReader(table()).batches([b"\n\n", b"\n"])
    assert batch.num_rows == 3
