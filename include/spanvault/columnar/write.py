"""Writing data files: Parquet, compressed with zstd, in row groups bounded by bytes."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanvault.columnar.csv_codec import one_array, text_to_typed
from spanvault.storage.base import Storage, Writer

# Of uncompressed Arrow data. Larger groups compress better and cost memory in every writer and reader.
ROW_GROUP_BYTES: Final = 64 << 20
ROW_GROUP_ROWS: Final = 1 << 20
_SAMPLE_ROWS: Final = 1 << 15
# A dictionary pays where a value comes several times within one; above that it costs more time than it saves bytes.
_DICTIONARY_SHARE: Final = 0.2


class DataFileWriter:
    """Writes one Parquet file of `schema` under `key`; a context manager.

    The object becomes visible when the block ends without an exception, and never otherwise. After the block `sha256`
    (hexadecimal), `bytes` and `rows` describe it. Errors are those of the storage.
    """

    def __init__(self, storage: Storage, key: str, schema: pa.Schema) -> None:
        self.rows = 0
        self.bytes = 0
        self.sha256 = ""
        self._schema = schema
        self._opened: AbstractContextManager[Writer] = storage.open_write(key)
        self._sink: _HashingSink | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._pending_rows = 0

    def __enter__(self) -> Self:
        self._sink = _HashingSink(self._opened.__enter__())
        return self

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append rows. `batch` must have the file's schema."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        self._pending_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._pending_bytes >= ROW_GROUP_BYTES or self._pending_rows >= ROW_GROUP_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._opened.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._opened.__exit__(kind, error, traceback)

    def _finish(self) -> None:
        self._flush()
        assert self._sink is not None and self._parquet is not None  # noqa: S101 -- set by _flush
        self._parquet.close()
        self.sha256 = self._sink.digest.hexdigest()
        self.bytes = self._sink.position

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        self._pending, self._pending_bytes, self._pending_rows = [], 0, 0
        if self._parquet is None:
            sink = pa.PythonFile(self._sink, mode="w")
            self._parquet = pq.ParquetWriter(sink, self._schema, compression="zstd", compression_level=1, **_encodings(table))
        if table.num_rows:
            self._parquet.write_table(table, row_group_size=table.num_rows)


class _HashingSink:
    """What pyarrow needs of a file, in front of a storage's Writer; digests and counts the bytes."""

    closed = False

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.digest = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._writer.write(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        """The storage decides when bytes go."""

    def close(self) -> None:
        self.closed = True


def _encodings(table: pa.Table) -> dict[str, Any]:
    """ParquetWriter's arguments for data like `table`, the first row group: dictionaries only where they pay, deltas
    for other integers and dates, and the lengths of text apart from its bytes."""
    sample = table.slice(0, _SAMPLE_ROWS)
    dictionaries = [field.name for field, column in zip(table.schema, sample.columns, strict=True) if _repeats(column)]
    encodings: dict[str, str] = {}
    for field in table.schema:
        encoding = _plain_encoding(field.type)
        if encoding and field.name not in dictionaries:
            encodings[field.name] = encoding
    return {
        "use_dictionary": dictionaries or False,
        "column_encoding": encodings or None,
        "store_decimal_as_integer": True,
        # Smallest and largest text costs a fifth of the time and helps no reader of whole files.
        "write_statistics": [field.name for field in table.schema if not _is_bytes(field.type)],
    }


def _repeats(column: pa.ChunkedArray) -> bool:
    present = len(column) - column.null_count
    if not present or pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        return False
    return bool(pc.count_distinct(column).as_py() <= present * _DICTIONARY_SHARE)


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_binary(data_type))


def _plain_encoding(data_type: pa.DataType) -> str | None:
    if _is_bytes(data_type):
        return "DELTA_LENGTH_BYTE_ARRAY"
    if pa.types.is_integer(data_type) or pa.types.is_date(data_type) or pa.types.is_timestamp(data_type):
        return "DELTA_BINARY_PACKED"
    if pa.types.is_decimal(data_type) and data_type.precision <= 18:
        return "DELTA_BINARY_PACKED"
    return None


def text_batch_to_typed(batch: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, frozenset[str]]:
    """A batch whose columns hold PostgreSQL's text, in the types of `schema` (matched by name, in its order).

    Returns it with the names of columns that hold a value which does not convert exactly; those stay text in it.
    """
    arrays, failed = [], set()
    for field in schema:
        text = one_array(batch.column(field.name)) if isinstance(batch, pa.Table) else batch.column(field.name)
        try:
            arrays.append(text_to_typed(text, field.type) if text.type != field.type else text)
        except pa.ArrowInvalid:
            arrays.append(text)
            failed.add(field.name)
    fields = [field.with_type(array.type) for field, array in zip(schema, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), frozenset(failed)
