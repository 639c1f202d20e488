"""Loading rows into PostgreSQL by COPY."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pyarrow as pa

from spanvault.columnar.csv_codec import encode_csv
from spanvault.database.postgres.quoting import quote
from spanvault.database.postgres.sqlstate import translated
from spanvault.model.schema import Column


def copy_batches(
    connection: psycopg.Connection[Any], table_sql: str, columns: Sequence[Column], batches: Iterator[pa.RecordBatch]
) -> int:
    """Append rows to `table_sql` (a quoted, qualified name) in the connection's transaction; returns how many.

    `columns` are the table's data columns; batches hold them by stored name, typed or as text, two batches in memory at a
    time. Server errors come out as ours, with `.sqlstate`; then no row of this call is there.
    """
    names = f" ({', '.join(quote(column.name) for column in columns)})" if columns else ""
    rows = 0
    with (
        translated(f"Loading rows into {table_sql}"),
        connection.cursor() as cursor,
        cursor.copy(f"COPY {table_sql}{names} FROM STDIN (FORMAT csv)".encode()) as copy,
    ):
        for text, count in _encoded_ahead(batches, columns):
            copy.write(text)
            rows += count
    return rows


def _encoded_ahead(batches: Iterator[pa.RecordBatch], columns: Sequence[Column]) -> Iterator[tuple[bytes, int]]:
    """Each batch as CSV with its number of rows; the next one is read and encoded while the server takes this one."""

    def following() -> tuple[bytes, int] | None:
        batch = next(batches, None)
        return None if batch is None else (encode_csv(batch, columns), batch.num_rows)

    with ThreadPoolExecutor(1, thread_name_prefix="encode") as ahead:
        pending = ahead.submit(following)
        while (encoded := pending.result()) is not None:
            pending = ahead.submit(following)
            yield encoded
