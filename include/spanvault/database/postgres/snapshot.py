"""A snapshot whose place in the log is known exactly: that of a temporary replication slot.

Creating a logical slot with an exported snapshot gives a consistent point E such that the snapshot shows precisely the
transactions whose commit record starts before E
(https://www.postgresql.org/docs/18/logicaldecoding-explanation.html, Exported Snapshots).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import errors as pg_errors

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.blockers import blockers
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.server import Connection, mark_log, server_time
from spanvault.errors import BadInput, Busy
from spanvault.model.cut import Lsn


class WritersOpen(Busy):
    """Transactions stayed open too long for a snapshot at a known position. `why` says which, `need` what such a snapshot
    is needed for, both as clauses."""

    def __init__(self, why: str, need: str = "") -> None:
        self.why, self.need = why, need
        reason = f" It cannot be done without: {need}." if need else ""
        super().__init__(
            f"The cut could not be fixed because {why}.{reason} End them and run the backup again; it continues from what is"
            " exported."
        )


@dataclass(frozen=True)
class SealSnapshot:
    """The snapshot at `lsn` of one database. `holder` is an open transaction under it; `name` can be imported by other
    sessions of the same database for as long as the holder's transaction lasts. `time` is the server's clock shortly
    before.

    `inexact`: why it only shows some state from before `lsn`. Then it has no name, and serves for the catalogs alone.
    """

    database: str
    lsn: Lsn
    name: str
    time: datetime
    holder: Connection
    inexact: WritersOpen | None = None


@contextmanager
def snapshot_at_known_lsn(endpoint: Endpoint, database: str, wait_seconds: float) -> Iterator[SealSnapshot]:
    """Open a snapshot of `database` at a known position; it ends with the block.

    The slot is needed for a moment only: the holder imports its snapshot and exports it again under its own name.
    Raises WritersOpen, naming the open writers of all databases, when they do not end in time; Busy without a free slot.
    """
    holder = connect(endpoint, database, purpose="seal", autocommit=True)
    try:
        time = server_time(holder)
        walsender = connect(endpoint, database, purpose="seal slot", replication=True)
        try:
            lsn, exported = _create_slot(walsender, holder, wait_seconds)
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            holder.execute(psycopg.sql.SQL("SET TRANSACTION SNAPSHOT {}").format(psycopg.sql.Literal(exported)))
            row = holder.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
        finally:
            walsender.close()
        yield SealSnapshot(database=database, lsn=lsn, name=str(row[0]) if row else "", time=time, holder=holder)
    finally:
        holder.close()


@contextmanager
def catalogs_before_lsn(
    endpoint: Endpoint, databases: Sequence[str], wait_seconds: float, inexact: WritersOpen
) -> Iterator[list[SealSnapshot]]:
    """For where writers do not end: one position of the log for all `databases`, flushed, and a snapshot of each database
    from shortly before it; they end with the block.

    Where the snapshots are is not known, so no rows may be read under them. Their catalogs are those at the position if
    a look from behind it finds the same (see CapturedDatabase.check_catalogs). Locks are waited for `wait_seconds` long:
    a transaction that stays open may hold one on a table.
    """
    with ExitStack() as stack:
        opened = []
        for database in databases:
            holder = connect(endpoint, database, purpose="seal", autocommit=True)
            stack.callback(holder.close)
            time = server_time(holder)
            limit_lock_waits(holder, wait_seconds)
            holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            holder.execute("SELECT pg_catalog.pg_current_snapshot()")  # the first statement takes the snapshot
            opened.append((database, time, holder))
        with connect(endpoint, purpose="seal") as control:
            lsn = mark_log(control)
        yield [SealSnapshot(database, lsn, "", time, holder, inexact) for database, time, holder in opened]


def limit_lock_waits(connection: Connection, seconds: float) -> None:
    """Let the session's statements wait for a lock for so long only; then they fail with LockNotAvailable."""
    connection.execute(f"SET lock_timeout = {max(1, int(seconds * 1000))}".encode())


def _create_slot(walsender: Connection, holder: Connection, wait_seconds: float) -> tuple[Lsn, str]:
    name = f"spanvault_seal_{holder.info.backend_pid}_{os.getpid()}"
    try:
        # lock_timeout bounds the wait for older transactions; statement_timeout would not on a walsender.
        walsender.execute(f"SET lock_timeout = {max(1, int(wait_seconds * 1000))}")
        row = walsender.execute(f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT').fetchone()
    except (pg_errors.LockNotAvailable, pg_errors.QueryCanceled):
        raise WritersOpen(f"transactions stayed open for {wait_seconds:g} s: {blockers(holder)}") from None
    except pg_errors.ConfigurationLimitExceeded:
        raise Busy(
            "The server has no free replication slot or walsender for the cut; raise max_replication_slots and "
            "max_wal_senders (2 above what is in use), then run the backup again."
        ) from None
    except (pg_errors.InsufficientPrivilege, pg_errors.ObjectNotInPrerequisiteState) as error:
        raise BadInput(f"The cut cannot be fixed: {error.diag.message_primary}.") from None
    if row is None:
        raise Busy("The server gave no position for the cut; try again.")
    return Lsn.parse(row[1]), str(row[2])
