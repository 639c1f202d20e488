"""Loading rows into PostgreSQL by COPY."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    `columns` are the table's data columns; batches hold them by stored name, typed or as text, one batch in memory at a
    time. Server errors come out as ours, with `.sqlstate`; then no row of this call is there.
    """
    names = f" ({', '.join(quote(column.name) for column in columns)})" if columns else ""
    rows = 0
    with (
        translated(f"Loading rows into {table_sql}"),
        connection.cursor() as cursor,
        cursor.copy(f"COPY {table_sql}{names} FROM STDIN (FORMAT csv)".encode()) as copy,
    ):
        for batch in batches:
            copy.write(encode_csv(batch, columns))
            rows += batch.num_rows
    return rows
