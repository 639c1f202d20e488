"""Reading a window of the change log from a slot without moving it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as pg_errors
from psycopg.rows import TupleRow

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.quoting import literal
from spanvault.errors import BadInput, BrokenChain, Busy, Retryable
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Protection

_COPY_HEADER_BYTES = 19
_ROW = struct.Struct(">HI")
_PEEK = (
    "COPY (SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes({slot}, {upto}, NULL,"
    " 'proto_version', '1', 'publication_names', {publication}, 'messages', '{messages}')) TO STDOUT (FORMAT binary)"
)


class UndecodableLog(BrokenChain):
    """The server fails to decode its own log, and would again: seen after a TRUNCATE in a transaction with rolled back
    savepoints ("could not map filenumber"). The slot is of no use from here on."""


@contextmanager
def peek(
    endpoint: Endpoint, protection: Protection, start: Lsn, upto: Lsn, *, messages: bool = False
) -> Iterator[Iterator[bytes]]:
    """The pgoutput messages from `start` or before up to the first commit at or beyond `upto`, as an iterator.

    With `messages` transactions that only emitted a logical message show, too.

    Reads a temporary copy of the slot, so that other readers are not locked out and nothing moves. Rows of a COPY in
    binary stream with bounded memory on this side; the server spills to its own disk. The window's exact borders are
    the decoder's business: the copy may begin earlier (a slot lags after a crash) and end one transaction later.

    Raises UndecodableLog when the server fails to decode, BrokenChain when the slot is gone, invalidated or ahead of
    `start` (the log between is then lost), Busy when no slot is free, Retryable on a lost connection.
    """
    connection = connect(endpoint, protection.database, purpose="window")
    copy_name = f"spanvault_copy_{connection.info.backend_pid}"
    try:
        connection.execute("SELECT pg_catalog.pg_copy_logical_replication_slot(%s, %s, true)", (protection.slot, copy_name))
        _check_position(connection, copy_name, protection, start)
        statement = _PEEK.format(
            slot=literal(copy_name),
            upto=literal(str(upto)),
            publication=literal(protection.publication),
            messages=str(messages).lower(),
        )
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            yield _unwrapped(copy)
    except (pg_errors.UndefinedObject, pg_errors.ObjectNotInPrerequisiteState) as error:
        raise BrokenChain(
            f"The change log of database {protection.database!r} is gone: {error.diag.message_primary}. Take a new full backup."
        ) from None
    except pg_errors.InternalError_ as error:
        raise UndecodableLog(
            f"PostgreSQL cannot decode its own change log of database {protection.database!r} "
            f"({error.diag.message_primary}); the protection was given up. Start a new full backup."
        ) from None
    except pg_errors.ConfigurationLimitExceeded:
        raise Busy("The server has no free replication slot for reading the change log; raise max_replication_slots.") from None
    except pg_errors.InsufficientPrivilege as error:
        raise BadInput(f"The change log cannot be read: {error.diag.message_primary}.") from None
    except psycopg.OperationalError as error:
        raise Retryable(f"Reading the change log of database {protection.database!r} stopped: {_first_line(error)}.") from None
    finally:
        connection.close()  # the temporary copy ends with its session


def _check_position(connection: psycopg.Connection[TupleRow], copy_name: str, protection: Protection, start: Lsn) -> None:
    """A slot that somebody made anew, or moved, silently begins later: what came before would be missing."""
    row = connection.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = %s", (copy_name,)
    ).fetchone()
    if row is None or Lsn.parse(row[0]) > start:
        raise BrokenChain(
            f"The slot {protection.slot!r} is ahead of this backup's start {start}: it was made anew, or another backup of "
            "this collection was committed meanwhile. The log in between is lost to this backup; start a new one."
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unwrapped(rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """The single column of each row of a binary COPY.

    Format: https://www.postgresql.org/docs/18/sql-copy.html (File Formats, Binary Format).
    """
    for row in rows:
        # Nearly each chunk is a row alone: its count of columns, the value's length, the value.
        if len(row) >= _ROW.size and _ROW.unpack_from(row) == (1, len(row) - _ROW.size):
            yield bytes(row[_ROW.size :])
        else:
            yield from _unusual(memoryview(row))


def _unusual(view: memoryview) -> Iterator[bytes]:
    """The first chunk carries the file header, the last the trailer."""
    if len(view) >= _COPY_HEADER_BYTES and bytes(view[:11]) == b"PGCOPY\n\xff\r\n\x00":
        view = view[_COPY_HEADER_BYTES:]
    while len(view) >= _ROW.size and bytes(view[:2]) == b"\x00\x01":
        stop = _ROW.size + int.from_bytes(view[2:6])
        yield bytes(view[_ROW.size : stop])
        view = view[stop:]
