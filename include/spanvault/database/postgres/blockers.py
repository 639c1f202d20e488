"""Waiting for writers: naming who holds us up, and the wait that makes a start position safe."""

from __future__ import annotations

import time

import psycopg
from psycopg.rows import TupleRow

from spanvault.errors import Busy

_BLOCKERS = """
SELECT 'process ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no application name') || ', database '
       || coalesce(datname, '-') || ', open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')'
FROM pg_catalog.pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' (database ' || database || ', prepared '
       || date_trunc('second', clock_timestamp() - prepared) || ' ago)'
FROM pg_catalog.pg_prepared_xacts
LIMIT 10
"""


def blockers(connection: psycopg.Connection[TupleRow]) -> str:
    """The open writing transactions of the whole cluster, for an error's sentence."""
    names = [row[0] for row in connection.execute(_BLOCKERS).fetchall()]
    return "; ".join(names) or "transactions that have ended meanwhile"


def wait_for_writers(connection: psycopg.Connection[TupleRow], limit_seconds: float) -> None:
    """Return once every transaction that was open when this was called has ended and its end is visible.

    A transaction's commit record is in the log before others see its rows (asynchronous visibility, synchronous
    replication), and a transaction that is open while its table joins the publication is logged only in part; after
    this wait neither can be missed by a later snapshot. It takes a transaction id and waits until the snapshot's xmin
    has passed it. Raises Busy, naming the writers and prepared transactions of all databases, after `limit_seconds`.
    """
    own = connection.execute("SELECT pg_catalog.pg_current_xact_id()::text::int8").fetchone()
    own_xid = int(own[0]) if own else 0
    deadline = time.monotonic() + limit_seconds
    pause = 0.005
    while True:
        row = connection.execute("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::int8").fetchone()
        if row is not None and int(row[0]) > own_xid:
            return
        if time.monotonic() > deadline:
            raise Busy(
                f"Transactions that were open before the backup have not ended within {limit_seconds:g} s: "
                f"{blockers(connection)}. End them, or start the backup again later."
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
