"""Loading rows into PostgreSQL by COPY."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pyarrow as pa

from spanvault.columnar.csv_codec import encode_csv
from spanvault.database.postgres.quoting import quote
from spanvault.database.postgres.sqlstate import translate
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
    try:
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {table_sql}{names} FROM STDIN (FORMAT csv)".encode()) as copy,
        ):
            for batch in batches:
                copy.write(encode_csv(batch, columns))
                rows += batch.num_rows
    except psycopg.Error as error:
        raise translate(error.sqlstate, _reason(error), f"Loading rows into {table_sql}") from None
    return rows


def _reason(error: psycopg.Error) -> str:
    # Not the context: it quotes the row.
    return error.diag.message_primary or str(error)
