"""Arrow -> input for `COPY ... FROM STDIN (FORMAT csv)`, and PostgreSQL's text of values <-> Arrow's types.

In CSV NULL is nothing and the empty string is `""` (https://www.postgresql.org/docs/18/sql-copy.html, "CSV Format"), as
Arrow writes them, too. A conversion is either exact or an error; tests/postgres/test_values.py holds it against a real
server, type by type.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from spanvault.columnar.hexadecimal import decode_hex, encode_hex
from spanvault.model.schema import Column


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column's values in one array (without a copy if they are)."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def decoded(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    """The bytes of bytea's text where `data_type` is binary, else the array itself. Raises ArrowInvalid."""
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
        return decoded(text, data_type)
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
