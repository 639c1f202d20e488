"""COPY's text format -> Arrow.

A row is a line, its values stand between tabs, NULL is `\\N`, and a backslash begins what stands for a character that would
be in the way (https://www.postgresql.org/docs/18/sql-copy.html, "Text Format"). It costs the server three quarters of the
CPU time of CSV, and rows are found without a look at quotes. A conversion is either exact or an error;
tests/postgres/test_values.py holds it against a real server, type by type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from spanvault.columnar.csv_codec import decoded, one_array
from spanvault.columnar.hexadecimal import array_of_bytes, bytes_of
from spanvault.columnar.types import file_schema
from spanvault.columnar.whole_rows import whole_rows
from spanvault.model.schema import Table

BLOCK_BYTES: Final = 8 << 20
_WIDE_BYTES: Final = 4 * BLOCK_BYTES
_BACKSLASH: Final = ord("\\")
_SEGMENT: Final = 1 << 20  # bytes looked at at a time: bounds what is needed beside a long value


def _meanings() -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """The byte that a backslash and each byte stand for, -1 where COPY writes no such pair (CopyAttributeOutText)."""
    table = np.full(256, -1, np.int16)
    for letter, meaning in zip("bfnrtv\\", "\b\f\n\r\t\v\\", strict=True):
        table[ord(letter)] = ord(meaning)
    return table


_MEANING: Final = _meanings()


class ConversionNeeded(Exception):
    """Values of `columns` (stored names) do not convert exactly: those columns must be kept as text."""

    def __init__(self, columns: frozenset[str]) -> None:
        super().__init__(f"columns to keep as text: {', '.join(sorted(columns))}")
        self.columns = columns


class TextReader:
    """Reads the bytes of `COPY (SELECT <table.data_columns>) TO STDOUT (FORMAT text)` as batches of `schema`."""

    def __init__(self, table: Table, text_columns: frozenset[str] = frozenset()) -> None:
        self.schema = file_schema(table, text_columns)
        self._table = table
        # bytea arrives as hexadecimal text.
        self._types = {field.name: pa.string() if pa.types.is_binary(field.type) else field.type for field in self.schema}

    def batches(self, chunks: Iterable[bytes], block_bytes: int = BLOCK_BYTES) -> Iterator[pa.RecordBatch]:
        """The rows in `chunks`, which may be cut anywhere, in batches of about `block_bytes` of text.

        Raises ConversionNeeded as read_block does.
        """
        for block in whole_rows(chunks, block_bytes):
            yield self.read_block(block)

    def read_block(self, block: bytes) -> pa.RecordBatch:
        """The rows of a block of whole rows.

        Raises ConversionNeeded with all columns of the block that must become text.
        """
        if not self._table.data_columns:
            # Without columns each row is an empty line.
            return pa.record_batch([pa.nulls(block.count(b"\n"), pa.bool_())], schema=self.schema)
        try:
            arrays = self._parse(block, list(self._types))
        except pa.ArrowInvalid:
            raise self._explain(block) from None
        if len(block) > _WIDE_BYTES:
            # Arrow's allocator would keep what a long row took for later use, several times the row's size.
            pa.default_memory_pool().release_unused()
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _parse(self, block: bytes, names: list[str]) -> list[pa.Array]:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=list(self._types)),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=self._types,
                include_columns=names,
                null_values=[r"\N"],
                strings_can_be_null=True,
                true_values=["t"],
                false_values=["f"],
            ),
        )
        escapes = b"\\" in block  # of NULLs at least
        return [self._finished(one_array(table.column(name)), name, escapes) for name in names]

    def _finished(self, array: pa.Array, name: str, escapes: bool) -> pa.Array:
        if escapes and pa.types.is_string(array.type):
            array = unescaped(array)
        return decoded(array, self.schema.field(name).type)

    def _explain(self, block: bytes) -> ConversionNeeded | RuntimeError:
        failing = frozenset(name for name in self._types if not self._converts(block, name))
        if not failing or any(pa.types.is_string(self.schema.field(name).type) for name in failing):
            return RuntimeError(f"rows of {self._table.qualified} are not the {len(self._types)} columns of UTF-8 expected")
        return ConversionNeeded(failing)

    def _converts(self, block: bytes, name: str) -> bool:
        try:
            self._parse(block, [name])
        except pa.ArrowInvalid:
            return False
        return True


def unescaped(text: pa.StringArray) -> pa.StringArray:
    """The values with what their backslashes stand for.

    Raises ArrowInvalid for a backslash in front of anything that COPY does not put behind one.
    """
    if not pc.any(pc.match_substring(text, "\\")).as_py():
        return text
    offsets, data = bytes_of(text)
    out = np.empty(data.size, np.uint8)
    found: list[np.ndarray[Any, Any]] = []
    start = filled = 0
    while start < data.size:
        segment = data[start : start + _SEGMENT]
        begins = _escapes(segment)
        if begins.size and begins[-1] == segment.size - 1:
            segment = data[start : start + _SEGMENT + 1]
        plain = _replaced(segment, begins)
        out[filled : filled + plain.size] = plain
        found.append(begins + start)
        filled += plain.size
        start += segment.size
    # What is in front of an offset is shorter by one byte for each backslash that went.
    offsets = offsets - offsets[0]
    return array_of_bytes(pa.string(), text, offsets - np.searchsorted(np.concatenate(found), offsets), out[:filled])


def _escapes(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where pairs begin: of several backslashes in a row every second one is the other half of a pair. (No value ends, and no
    segment begins, in the middle of a pair.)"""
    places = np.flatnonzero(data == _BACKSLASH)
    index = np.arange(places.size)
    firsts = np.maximum.accumulate(np.where(np.diff(places, prepend=-2) != 1, index, 0))
    begins: np.ndarray[Any, Any] = places[(index - firsts) % 2 == 0]
    return begins


def _replaced(data: np.ndarray[Any, Any], begins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not begins.size:
        return data
    meant = _MEANING[data[begins + 1]] if begins[-1] + 1 < data.size else np.full(1, -1)
    if meant.min() < 0:
        raise pa.ArrowInvalid("a backslash with nothing to stand for")
    data = data.copy()
    data[begins + 1] = meant
    kept = np.ones(data.size, np.bool_)
    kept[begins] = False
    plain: np.ndarray[Any, Any] = data[kept]
    return plain
