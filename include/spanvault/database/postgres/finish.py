"""What follows the rows: sequences, materialized views, statistics, and the proof that the rows are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spanvault.database.postgres.quoting import qualified
from spanvault.database.postgres.rows import rows_fingerprint_sql
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection
from spanvault.errors import Damaged
from spanvault.model.schema import Fingerprint, SequenceValue, Table


def set_sequences(connection: Connection, sequences: Iterable[SequenceValue]) -> None:
    """Give sequences the state that they had."""
    with translated("Setting sequences"):
        for one in sequences:
            name = qualified(one.schema_name, one.name)
            connection.execute("SELECT pg_catalog.setval(%s::regclass, %s, %s)", [name, one.last_value, one.is_called])


def refresh_views(connection: Connection, views: Iterable[tuple[str, str]]) -> None:
    """Fill materialized views (schema, name) that are not filled, in the given order."""
    for schema, name in views:
        with translated(f"Refreshing the materialized view {schema}.{name}"):
            filled = connection.execute(
                "SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = %s::regclass", [qualified(schema, name)]
            ).fetchone()
            if filled == (False,):
                connection.execute(f"REFRESH MATERIALIZED VIEW {qualified(schema, name)}".encode())


def analyze(connection: Connection, tables: Sequence[tuple[str, str]]) -> None:
    """Collect the planner's statistics of these tables (schema, name)."""
    if tables:
        with translated("Collecting statistics"):
            connection.execute(f"ANALYZE {', '.join(qualified(*table) for table in tables)}".encode())


def verify_rows(connection: Connection, table: Table, expected: Fingerprint) -> None:
    """Let PostgreSQL compute the table's fingerprint again. Raises Damaged naming the table when it differs."""
    with translated(f"Computing the fingerprint of {table.qualified}"):
        found = connection.execute(rows_fingerprint_sql(table).encode()).fetchone()
    if found is None or (int(found[0]), str(found[1])) != (expected.rows, expected.hash):
        rows = found[0] if found else 0
        raise Damaged(
            f"Table {table.qualified} was restored with other rows than it had at the cut: {rows} rows here, {expected.rows}"
            f" there, or values that differ. Do not use it; validate the backup with all its data."
        )
