"""Sessions that read one table under a seal's snapshot, and let go of it at once.

The snapshot's holder itself never touches a user's table: its locks would last as long as the seal, and hold the
application's DDL up as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import errors as pg_errors

from spanvault.backup.captured import CapturedDatabase
from spanvault.backup.context import Run
from spanvault.backup.live_table import Session, SnapshotTooOld, lock_and_check
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.quoting import literal
from spanvault.database.postgres.server import Connection
from spanvault.errors import Busy, NotFound
from spanvault.model.schema import Table


class LockingSession:
    """A psycopg session as lock_and_check uses it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, text: str) -> None:
        """Run a statement. Raises Busy for a lock that could not be had, NotFound for a table that is gone."""
        try:
            self._connection.execute(text.encode())
        except pg_errors.LockNotAvailable as error:
            raise Busy(f"A lock for reading rows at the cut could not be had: {error.diag.message_primary}.") from None
        except pg_errors.UndefinedTable as error:
            raise NotFound(f"{error.diag.message_primary}.") from None

    def fetch_all(self, text: str) -> list[tuple[Any, ...]]:
        """All rows."""
        return self._connection.execute(text.encode()).fetchall()


@contextmanager
def reading(run: Run, entry: CapturedDatabase, table: Table) -> Iterator[Connection]:
    """A session under the seal's snapshot that has the table locked and known to be readable by that snapshot.

    Raises SnapshotTooOld when it is not, Busy when the lock is not to be had.
    """
    with connect(run.cluster.primary, entry.name, purpose="seal") as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET TRANSACTION SNAPSHOT {literal(entry.snapshot.name)}".encode())
        check_readable(LockingSession(connection), run, entry.name, table)
        yield connection
        connection.execute("COMMIT")


def check_readable(session: Session, run: Run, database: str, table: Table) -> Table:
    """Lock the table; its shape under the snapshot. Raises SnapshotTooOld if the snapshot does not read it any more: the
    next try of the seal then reads it first."""
    try:
        live = lock_and_check(session, table, run.reached)
    except NotFound:
        live = None
    except SnapshotTooOld:
        run.read_first.add((database, table.oid))
        raise
    if live is None:
        raise SnapshotTooOld(f"The table {table.qualified} was dropped or renamed at this very moment.")
    return live
