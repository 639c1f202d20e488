"""COPY CSV text <-> Arrow.

PostgreSQL writes NULL as nothing and the empty string as `""` in CSV
(https://www.postgresql.org/docs/18/sql-copy.html#SQL-COPY-CSV-FORMAT), which Arrow's reader and writer tell apart too.
A conversion is either exact or an error; tests/postgres/test_values.py holds it against a real server, type by type.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from spanvault.columnar.hexadecimal import decode_hex, encode_hex
from spanvault.columnar.types import file_schema
from spanvault.columnar.wide_rows import whole_rows
from spanvault.model.schema import Column, Table

BLOCK_BYTES: Final = 8 << 20
_WIDE_BYTES: Final = 4 * BLOCK_BYTES


class ConversionNeeded(Exception):
    """Values of `columns` (stored names) do not convert exactly: those columns must be kept as text."""

    def __init__(self, columns: frozenset[str]) -> None:
        super().__init__(f"columns to keep as text: {', '.join(sorted(columns))}")
        self.columns = columns


class CsvReader:
    """Reads the CSV of `COPY (SELECT <table.data_columns>) TO STDOUT (FORMAT csv)` as batches of `schema`."""

    def __init__(self, table: Table, text_columns: frozenset[str] = frozenset()) -> None:
        self.schema = file_schema(table, text_columns)
        self._table = table
        # bytea arrives as hexadecimal text.
        self._csv_types = {field.name: pa.string() if pa.types.is_binary(field.type) else field.type for field in self.schema}

    def batches(self, chunks: Iterable[bytes], block_bytes: int = BLOCK_BYTES) -> Iterator[pa.RecordBatch]:
        """The rows in `chunks`, which may be cut anywhere, in batches of about `block_bytes` of CSV.

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
            arrays = self._parse(block, list(self._csv_types))
        except pa.ArrowInvalid:
            raise self._explain(block) from None
        if len(block) > _WIDE_BYTES:
            # Arrow's allocator would keep what a long row took for later use, several times the row's size.
            pa.default_memory_pool().release_unused()
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _parse(self, block: bytes, names: list[str]) -> list[pa.Array]:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=list(self._csv_types)),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types=self._csv_types,
                include_columns=names,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )
        return [_decoded(one_array(table.column(name)), self.schema.field(name).type) for name in names]

    def _explain(self, block: bytes) -> ConversionNeeded | RuntimeError:
        failing = frozenset(name for name in self._csv_types if not self._converts(block, name))
        if not failing or any(pa.types.is_string(self.schema.field(name).type) for name in failing):
            return RuntimeError(f"rows of {self._table.qualified} are not the {len(self._csv_types)} columns of UTF-8 expected")
        return ConversionNeeded(failing)

    def _converts(self, block: bytes, name: str) -> bool:
        try:
            self._parse(block, [name])
        except pa.ArrowInvalid:
            return False
        return True


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column's values in one array (without a copy if they are)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _decoded(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    if not pa.types.is_binary(data_type):
        return array
    try:
        return decode_hex(array)
    except ValueError:
        raise pa.ArrowInvalid("bytea is not in hexadecimal form") from None


def text_to_typed(text: pa.Array, data_type: pa.DataType) -> pa.Array:
    """PostgreSQL's text of values as `data_type`, one of the types of columnar/types.py.

    Raises ArrowInvalid when a value does not convert exactly.
    """
    if pa.types.is_boolean(data_type):
        known = pc.sum(pc.is_in(text, pa.array(["t", "f"])), min_count=0).as_py()
        if known != len(text) - text.null_count:
            raise pa.ArrowInvalid("not a boolean")
        return pc.equal(text, "t")
    if pa.types.is_binary(data_type):
        return _decoded(text, data_type)
    return pc.cast(text, data_type)


def encode_csv(batch: pa.RecordBatch | pa.Table, columns: Sequence[Column]) -> bytes:
    """The rows as input for `COPY ... (columns) FROM STDIN (FORMAT csv)`: NULL as nothing, text in quotes.

    Takes each column in its typed form or as text; `columns` are found by stored name. Without columns each row is an
    empty line.
    """
    if not columns:
        return b"\n" * int(batch.num_rows)
    arrays = [_encoded(batch.column(column.stored_as)) for column in columns]
    table = pa.Table.from_arrays(arrays, names=[str(index) for index in range(len(arrays))])
    sink = io.BytesIO()
    options = pa.csv.WriteOptions(include_header=False, quoting_style="needed", batch_size=16384)
    pa.csv.write_csv(table, sink, options)
    return sink.getvalue()


def _encoded(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    data_type = array.type
    if pa.types.is_binary(data_type):
        return _each_chunk(array, encode_hex)
    if pa.types.is_timestamp(data_type) and data_type.tz:
        # Through the naive form: printing a zoned one needs a time zone database, which small images lack.
        naive = pc.cast(pc.cast(array, pa.timestamp("us")), pa.string())
        return pc.binary_join_element_wise(naive, "+00", "")
    return array


def _each_chunk(array: pa.Array | pa.ChunkedArray, convert: Callable[[pa.Array], pa.Array]) -> pa.Array | pa.ChunkedArray:
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([convert(chunk) for chunk in array.chunks], pa.string())
    return convert(array)
