"""What follows the rows: sequences, materialized views, statistics, and the proof that the rows are right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spanvault.database.postgres.quoting import qualified
from spanvault.database.postgres.rows import rows_fingerprint_sql
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, passes
from spanvault.errors import Damaged, SpanvaultError
from spanvault.model.schema import Fingerprint, SequenceValue, Table


def set_sequences(connection: Connection, sequences: Iterable[SequenceValue]) -> None:
    """Give sequences the state that they had."""
    with translated("Setting sequences"):
        for one in sequences:
            name = qualified(one.schema_name, one.name)
            connection.execute("SELECT pg_catalog.setval(%s::regclass, %s, %s)", [name, one.last_value, one.is_called])


def refresh_views(connection: Connection, views: Iterable[tuple[str, str]]) -> list[str]:
    """Fill materialized views (schema, name) that are not filled; a sentence for each that cannot be filled now, such as one
    over a foreign server that is away: PostgreSQL refuses to read it, so nobody takes it for empty.

    The order is only tried first: a view may read another inside a function, which no catalog tells. Raises Retryable for a
    lost connection.
    """
    left = dict.fromkeys(views, "")
    before = -1
    while len(left) != before:
        before = len(left)
        left = {view: failure for view in left if (failure := _refresh(connection, *view)) is not None}
    return [f"{failure} It stays unfilled: mend what it reads and run REFRESH MATERIALIZED VIEW." for failure in left.values()]


def _refresh(connection: Connection, schema: str, name: str) -> str | None:
    """None when the view is filled, else why it cannot be."""
    try:
        with translated(f"Refreshing the materialized view {schema}.{name}"), connection.transaction():
            filled = connection.execute(
                "SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = %s::regclass", [qualified(schema, name)]
            ).fetchone()
            if filled == (False,):
                connection.execute(f"REFRESH MATERIALIZED VIEW {qualified(schema, name)}".encode())
    except SpanvaultError as error:
        if passes(connection, error):
            raise
        return str(error)
    return None


def analyze(connection: Connection, tables: Sequence[tuple[str, str]]) -> list[str]:
    """Collect the planner's statistics of these tables (schema, name); a sentence for each where that fails, as it runs the
    functions of indexes. Raises Retryable for a lost connection."""
    failures = []
    for table in tables:
        try:
            with translated(f"Collecting statistics of {'.'.join(table)}"):
                connection.execute(f"ANALYZE {qualified(*table)}".encode())
        except SpanvaultError as error:
            if passes(connection, error):
                raise
            failures.append(str(error))
    return failures


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
