"""PostgreSQL's error codes as our errors (https://www.postgresql.org/docs/18/errcodes-appendix.html)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from spanvault.errors import AlreadyExists, BadInput, Busy, NotFound, Permanent, Retryable, SpanvaultError

# By whole code first, then by class, its first two characters.
_BY_CODE: dict[str, type[SpanvaultError]] = {
    "55P03": Busy,  # lock_not_available
    "55006": Busy,  # object_in_use
    "40001": Retryable,  # serialization_failure, also a standby's recovery conflict
    "40P01": Retryable,  # deadlock_detected
    "57014": Retryable,  # query_canceled
    "57P01": Retryable,  # admin_shutdown
    "57P02": Retryable,  # crash_shutdown
    "57P03": Retryable,  # cannot_connect_now
    "57P05": Retryable,  # idle_session_timeout
    "22021": BadInput,  # character_not_in_repertoire: text in a SQL_ASCII database that is not UTF-8
    "42501": BadInput,  # insufficient_privilege
    "3D000": NotFound,  # invalid_catalog_name: no such database
    "3F000": NotFound,  # invalid_schema_name
    "42P01": NotFound,  # undefined_table
    "42710": AlreadyExists,  # duplicate_object
    "42P04": AlreadyExists,  # duplicate_database
    "42P06": AlreadyExists,  # duplicate_schema
    "42P07": AlreadyExists,  # duplicate_table
}
_BY_CLASS: dict[str, type[SpanvaultError]] = {
    "08": Retryable,  # connection exception
    "25": Retryable,  # invalid transaction state: ended by a timeout
    "28": BadInput,  # invalid authorization
    "53": Retryable,  # insufficient resources
    "58": Retryable,  # system error outside PostgreSQL
}


def translate(sqlstate: str | None, message: str, what: str) -> SpanvaultError:
    """The server's error as one of ours, which keeps `sqlstate`; `what` says in a few words what was being done.

    Without a code the connection itself failed: Retryable.
    """
    kind = Retryable if not sqlstate else _BY_CODE.get(sqlstate) or _BY_CLASS.get(sqlstate[:2], Permanent)
    reason = " ".join(message.split()).rstrip(".")
    error = kind(f"{what} failed: {reason}{f' ({sqlstate})' if sqlstate else ''}.")
    error.sqlstate = sqlstate
    return error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Server errors and lost connections in the block, or in a function that this decorates, come out as ours; `what`
    says in a few words what was being done."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
            raise  # psycopg was used wrongly: a defect, which no further try mends
        # Not the error's context: it quotes rows.
        raise translate(error.sqlstate, error.diag.message_primary or str(error), what) from None
