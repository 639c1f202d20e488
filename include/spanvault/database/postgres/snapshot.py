"""A snapshot whose place in the log is known exactly: that of a temporary replication slot.

Creating a logical slot with an exported snapshot gives a consistent point E such that the snapshot shows precisely the
transactions whose commit record starts before E
(https://www.postgresql.org/docs/18/logicaldecoding-explanation.html, Exported Snapshots).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import errors as pg_errors

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.blockers import blockers
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.server import Connection, server_time
from spanvault.errors import BadInput, Busy
from spanvault.model.cut import Lsn


@dataclass(frozen=True)
class SealSnapshot:
    """The snapshot at `lsn` of one database. `holder` is an open transaction under it; `name` can be imported by other
    sessions of the same database for as long as the holder's transaction lasts. `time` is the server's clock shortly
    before."""

    database: str
    lsn: Lsn
    name: str
    time: datetime
    holder: Connection


@contextmanager
def snapshot_at_known_lsn(endpoint: Endpoint, database: str, wait_seconds: float) -> Iterator[SealSnapshot]:
    """Open a snapshot of `database` at a known position; it ends with the block.

    The slot is needed for a moment only: the holder imports its snapshot and exports it again under its own name.
    Raises Busy, naming the open writers of all databases, when they do not end in time.
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


def _create_slot(walsender: Connection, holder: Connection, wait_seconds: float) -> tuple[Lsn, str]:
    name = f"spanvault_seal_{holder.info.backend_pid}_{os.getpid()}"
    try:
        # lock_timeout bounds the wait for older transactions; statement_timeout would not on a walsender.
        walsender.execute(f"SET lock_timeout = {max(1, int(wait_seconds * 1000))}")
        row = walsender.execute(f'CREATE_REPLICATION_SLOT "{name}" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT').fetchone()
    except (pg_errors.LockNotAvailable, pg_errors.QueryCanceled):
        raise Busy(
            f"The cut could not be fixed because transactions stayed open for {wait_seconds:g} s: {blockers(holder)}. "
            "End them and run the backup again; it continues from what is exported."
        ) from None
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
