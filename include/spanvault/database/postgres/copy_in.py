"""Loading rows into PostgreSQL by COPY."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pyarrow as pa

from spanvault.columnar.binary_codec import HEADER, TRAILER, encode_binary
from spanvault.columnar.csv_codec import encode_csv
from spanvault.database.postgres.quoting import quote
from spanvault.database.postgres.sqlstate import translated
from spanvault.model.schema import Column

# Of one batch, encoded.
_FEW_BYTES: Final = 1 << 20
_LONG_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class _Encoded:
    """A batch as COPY takes it."""

    data: bytes | memoryview
    rows: int
    binary: bool


def copy_batches(
    connection: psycopg.Connection[Any], table_sql: str, columns: Sequence[Column], batches: Iterator[pa.RecordBatch]
) -> int:
    """Append rows to `table_sql` (a quoted, qualified name) in the connection's transaction; returns how many.

    `columns` are the table's data columns; batches hold them by stored name, typed or as text, two batches in memory at a
    time. Server errors come out as ours, with `.sqlstate`; then no row of this call is there.
    """
    names = f" ({', '.join(quote(column.name) for column in columns)})" if columns else ""
    rows = 0
    with translated(f"Loading rows into {table_sql}"), connection.cursor() as cursor:
        for binary, group in itertools.groupby(_encoded_ahead(batches, columns), key=lambda batch: batch.binary):
            with cursor.copy(f"COPY {table_sql}{names} FROM STDIN (FORMAT {'binary' if binary else 'csv'})".encode()) as copy:
                copy.write(HEADER if binary else b"")
                for batch in group:
                    copy.write(batch.data)
                    rows += batch.rows
                    del batch
                copy.write(TRAILER if binary else b"")
    return rows


def _encoded_ahead(batches: Iterator[pa.RecordBatch], columns: Sequence[Column]) -> Iterator[_Encoded]:
    """Each batch encoded; unless they are small the next one is read and encoded while the server takes this one."""

    def following() -> _Encoded | None:
        batch = next(batches, None)
        return None if batch is None else _encode(batch, columns)

    while (encoded := following()) is not None and len(encoded.data) < _FEW_BYTES:
        yield encoded  # to begin a thread would take longer
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as ahead:
        while encoded is not None:
            # Long rows: both batches would be in memory some times over.
            pending = ahead.submit(following) if len(encoded.data) <= _LONG_BYTES else None
            yield encoded
            del encoded
            if pending is None:
                pa.default_memory_pool().release_unused()
                pending = ahead.submit(following)
            encoded = pending.result()


def _encode(batch: pa.RecordBatch, columns: Sequence[Column]) -> _Encoded:
    """In binary, which costs the server less, wherever the columns' types allow it."""
    data = encode_binary(batch, columns)
    if data is not None:
        return _Encoded(data, batch.num_rows, binary=True)
    return _Encoded(encode_csv(batch, columns), batch.num_rows, binary=False)
