"""Facts about the server as a whole: identity, timeline, log positions, settings."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from spanvault.errors import Damaged
from spanvault.model.cut import Lsn, utc
from spanvault.model.manifest import SourceIdentity

Connection = psycopg.Connection[TupleRow]


def scalar(connection: Connection, query: str, parameters: tuple[Any, ...] = ()) -> Any:
    """The first column of the first row, or None without a row."""
    row = connection.execute(query, parameters or None).fetchone()
    return row[0] if row else None


def identity(connection: Connection, cluster: str) -> SourceIdentity:
    """Which cluster and timeline this is. The timeline comes from the WAL's file name: pg_control_checkpoint() still
    shows the old one for a while after a promotion."""
    return SourceIdentity(
        cluster=cluster,
        system_identifier=str(scalar(connection, "SELECT system_identifier FROM pg_catalog.pg_control_system()")),
        timeline=timeline(connection),
        server_version=server_version(connection),
    )


TIMELINE = "SELECT ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int8"


def timeline(connection: Connection) -> int:
    """The primary's current timeline."""
    return int(scalar(connection, TIMELINE))


def insert_lsn(connection: Connection) -> Lsn:
    """Where the next log record will go: beyond everything that any snapshot taken so far can show."""
    return Lsn.parse(scalar(connection, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text"))


def flush_lsn(connection: Connection) -> Lsn:
    """Up to where the log is durable."""
    return Lsn.parse(scalar(connection, "SELECT pg_catalog.pg_current_wal_flush_lsn()::text"))


def mark_log(connection: Connection) -> Lsn:
    """A position behind every commit that is visible by now, written for the purpose and flushed: once a standby has
    replayed up to there it shows them all. The insert position would not do: in a quiet log nothing reaches it."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = 'local'")
        return Lsn.parse(scalar(connection, "SELECT pg_catalog.pg_logical_emit_message(true, 'spanvault', 'ready')::text"))


def open_transactions(connection: Connection) -> frozenset[int]:
    """The transactions that the session's snapshot takes for open, by their ids as the log has them, in 32 bits."""
    rows = connection.execute(
        "SELECT (xip::text::int8 % 4294967296) FROM pg_catalog.pg_snapshot_xip(pg_catalog.pg_current_snapshot()) AS xip"
    )
    return frozenset(int(row[0]) for row in rows)


def server_time(connection: Connection) -> datetime:
    """The server's clock, UTC."""
    return utc(scalar(connection, "SELECT pg_catalog.clock_timestamp()"))


def server_version(connection: Connection) -> str:
    """server_version as the server writes it: `18.1`, `19beta1`, `18.1 (Debian 18.1-1)`."""
    return str(scalar(connection, "SELECT pg_catalog.current_setting('server_version')"))


def major_version(text: str) -> int:
    """The major version that a server_version begins with."""
    found = re.match(r"\d+", text)
    if found is None:
        raise Damaged(f"{text!r} is not the version of a PostgreSQL server.")
    return int(found[0])


def version_number(connection: Connection) -> int:
    """server_version_num, such as 180001."""
    return int(scalar(connection, "SELECT pg_catalog.current_setting('server_version_num')"))
