"""Whether a snapshot reads a table as it is: locked, in the same file, with the same columns, under the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from spanvault.database.postgres.catalog import read_tables
from spanvault.database.postgres.quoting import literal, qualified
from spanvault.errors import Retryable
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.schema import Table

_LOCK_TIMEOUT = "10s"


class Session(Protocol):
    """What reading under a lock needs of a session."""

    def execute(self, sql: str, /) -> None:
        """Run a statement."""

    def fetch_all(self, sql: str, /) -> list[tuple[Any, ...]]:
        """All rows."""


class SnapshotTooOld(Retryable):
    """A table was rewritten between a snapshot and its lock: the snapshot would read it as empty."""


def lock_and_check(session: Session, table: Table, reached: Reached = pass_by) -> Table | None:
    """Lock the table in the open transaction and return it as the transaction's snapshot shows it, None if it is gone.

    Raises as `lock_and_check_all` does.
    """
    return lock_and_check_all(session, [table], reached).get(table.oid)


def lock_and_check_all(
    session: Session, tables: Sequence[Table], reached: Reached = pass_by, *, timeout: str = _LOCK_TIMEOUT
) -> dict[int, Table]:
    """Lock the tables in the open transaction; by OID those that are there, as the transaction's snapshot shows them.

    A snapshot that is older than a rewrite or TRUNCATE reads the table as empty, without an error. The lock keeps new
    ones away; the file as the snapshot sees it and the file of now must then be the same. Raises SnapshotTooOld when
    they are not, NotFound when a table's name is gone meanwhile, Busy when the lock is not to be had.
    """
    session.execute(f"SET LOCAL lock_timeout = '{timeout}'")
    seen = {table.oid: table for table in read_tables(session.fetch_all, [table.oid for table in tables])}
    if not seen:
        return {}
    reached("read.after_snapshot")
    names = {oid: qualified(table.schema_name, table.name) for oid, table in seen.items()}
    session.execute(f"LOCK TABLE {', '.join(f'ONLY {name}' for name in names.values())} IN ACCESS SHARE MODE")
    live = read_live(session, names)
    for table in tables:
        if table.oid in seen and table.oid not in live:
            raise SnapshotTooOld(f"The table {table.qualified} was rewritten, truncated, altered or renamed at this very moment.")
    return seen


def read_live(session: Session, names: dict[int, str]) -> set[int]:
    """The OIDs of those tables whose file and columns in the snapshot are the live ones, and whose name (quoted, qualified)
    still means them.

    A query's columns are looked up in the live catalogs, whatever the snapshot: a column that was dropped and added again
    would read as empty, and a whole row has the columns of now. pg_identify_object, too, tells how a column is now.
    """
    live = "(pg_catalog.pg_identify_object('pg_catalog.pg_class'::pg_catalog.regclass, c.oid, {})).identity"
    wanted = ", ".join(f"({oid}::pg_catalog.oid, {literal(name)})" for oid, name in names.items())
    rows = session.fetch_all(
        f"SELECT c.oid::int8 FROM pg_catalog.pg_class c JOIN (VALUES {wanted}) AS wanted (oid, name) ON wanted.oid = c.oid"
        f" WHERE c.oid IN ({', '.join(map(str, names))})"  # or a plan may try the functions on every relation there is
        " AND c.relfilenode = pg_catalog.pg_relation_filenode(c.oid) AND pg_catalog.to_regclass(wanted.name) = c.oid"
        f" AND {live.format('c.relnatts + 1')} IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a"
        "  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        f" AND {live.format('a.attnum')} IS DISTINCT FROM {live.format('0')} || '.' || pg_catalog.quote_ident(a.attname))"
    )
    return {int(oid) for (oid,) in rows}
