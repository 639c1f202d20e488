"""PostgreSQL's pgoutput messages, protocol version 1, decoded no further than needed.

Format: https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html. A row's tuple is skipped by its
lengths; only the key is taken out, and the rest of the message is kept as bytes until it is known to survive
(`TupleReader.values`). Text values arrive in the session's pinned form.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from spanvault.errors import Damaged

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

_BEGIN, _COMMIT, _ORIGIN, _RELATION, _INSERT, _UPDATE, _DELETE, _TRUNCATE = b"BCORIUDT"
_SKIPPED: Final = frozenset(b"YM")  # type, logical message
_NEW, _TEXT, _UNCHANGED_TOAST = b"Ntu"

_MAY_BE_UNCHANGED = re.compile(rb"u[nu]*(?:t[\x00-\x3f]|\Z)")

# Reading a number in place takes half the time of cutting its bytes out first.
_u16 = struct.Struct(">H").unpack_from
_u32 = struct.Struct(">I").unpack_from
_begin = struct.Struct(">QqI").unpack_from


class Unchanged:
    """The marker of a TOASTed value that an UPDATE did not touch: the log does not carry it."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged()
Value = bytes | None | Unchanged


class Change:
    """Where a change stands: its transaction's commit record (start), id and time, and its order in the window."""

    __slots__ = ("lsn", "sequence", "time", "xid")

    def __init__(self, lsn: int, xid: int, time: int, sequence: int) -> None:
        self.lsn = lsn
        self.xid = xid
        self.time = time
        self.sequence = sequence


class TableSink(Protocol):
    """Receives one table's changes in log order. `at` is where in the message the tuple begins."""

    def relation(self, columns: list[str], identity: set[int]) -> None:
        """The published columns, in the order of the tuples that follow, and which places are the replica identity."""

    def insert(self, message: bytes, at: int, change: Change) -> None:
        """A new row."""

    def update(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        """A changed row; `old_at` is 0 unless the message carries the old key or row."""

    def delete(self, message: bytes, at: int, change: Change) -> None:
        """A row is gone; the tuple holds its old key or row."""

    def truncate(self, change: Change) -> None:
        """All rows are gone."""


class TransactionSink(Protocol):
    """Hears of the transactions of a window, in log order."""

    def begin(self, lsn: int, xid: int, time: int) -> None:
        """A transaction of the window begins: its commit record's start, id, and time (microseconds since 2000)."""

    def repeated(self, lsn: int, xid: int, time: int) -> None:
        """A transaction from before the window: the slot lags behind what is on storage."""

    def origin(self) -> None:
        """The transaction that just began was replicated from elsewhere: its time is another server's."""


class Window:
    """What was seen of a decoded window: transactions inside, and the newest commit time in it (microseconds since
    2000, 0 if none). That is of transactions of this server alone, and none after `latest`: replicated ones have the time
    of the server that they were made on, and what lies in the future a wrong clock has written."""

    def __init__(self, latest: int = sys.maxsize) -> None:
        self.latest = latest
        self.transactions = 0
        self.changes = 0
        self.newest_time = 0
        self.last_commit: tuple[int, int, int] | None = None


def decode(  # noqa: PLR0912  # one flat dispatch: calls per message would halve its speed
    messages: Iterable[bytes],
    sinks: dict[int, TableSink],
    start: int,
    end: int,
    window: Window,
    transactions: TransactionSink | None = None,
) -> None:
    """Hand every change of the transactions with `start <= commit record < end` to its table's sink.

    A transaction belongs to the window by the *start* of its commit record (Begin's final LSN): that is what the
    server's own skip test compares, so windows that share a border neither miss nor repeat one. Changes of tables
    without a sink are skipped. Raises Damaged for a message of unknown kind.
    """
    inside = local = False
    lsn = xid = time = 0
    sequence = window.changes * 2
    for message in messages:
        kind = message[0]
        if kind == _UPDATE:
            if inside and (sink := sinks.get(_u32(message, 1)[0])) is not None:
                sequence += 2
                if message[5] == _NEW:
                    sink.update(message, 0, 6, Change(lsn, xid, time, sequence))
                else:
                    sink.update(message, 6, tuple_end(message, 6) + 1, Change(lsn, xid, time, sequence))
        elif kind == _INSERT:
            if inside and (sink := sinks.get(_u32(message, 1)[0])) is not None:
                sequence += 2
                sink.insert(message, 6, Change(lsn, xid, time, sequence))
        elif kind == _DELETE:
            if inside and (sink := sinks.get(_u32(message, 1)[0])) is not None:
                sequence += 2
                sink.delete(message, 6, Change(lsn, xid, time, sequence))
        elif kind == _BEGIN:
            lsn, time, xid = _begin(message, 1)
            inside = local = start <= lsn < end
            if inside:
                window.transactions += 1
                window.last_commit = (lsn, xid, time)
                if transactions is not None:
                    transactions.begin(lsn, xid, time)
            elif transactions is not None and lsn < start:
                transactions.repeated(lsn, xid, time)
        elif kind == _COMMIT:
            window.changes = sequence // 2
            if local and window.newest_time < time <= window.latest:
                window.newest_time = time
        elif kind == _RELATION:
            sink = sinks.get(_u32(message, 1)[0])
            if sink is not None:
                sink.relation(*relation_columns(message))
        elif kind == _TRUNCATE:
            if inside:
                sequence += 2
                for table in truncated_tables(message):
                    if table in sinks:
                        sinks[table].truncate(Change(lsn, xid, time, sequence))
        elif kind == _ORIGIN:
            local = False
            if inside and transactions is not None:
                transactions.origin()
        elif kind not in _SKIPPED:
            raise Damaged(f"The change log holds a message of unknown kind {chr(kind)!r}; it was not decoded.")
    window.changes = sequence // 2


def relation_columns(message: bytes) -> tuple[list[str], set[int]]:
    """The column names of a Relation message in order, and the places of those that are its replica identity."""
    at = message.index(0, 5) + 1  # past the schema's name
    at = message.index(0, at) + 2  # past the table's name and its replica identity
    count = _u16(message, at)[0]
    at += 2
    names: list[str] = []
    identity: set[int] = set()
    for place in range(count):
        if message[at] & 1:
            identity.add(place)
        stop = message.index(0, at + 1)
        names.append(message[at + 1 : stop].decode())
        at = stop + 9
    return names, identity


def truncated_tables(message: bytes) -> list[int]:
    """The OIDs of the published tables that a Truncate message empties."""
    count = _u32(message, 1)[0]
    return [_u32(message, at)[0] for at in range(6, 6 + 4 * count, 4)]


def tuple_end(message: bytes, at: int) -> int:
    """Where the tuple that begins at `at` ends."""
    count = _u16(message, at)[0]
    at += 2
    for _ in range(count):
        at += 5 + _u32(message, at + 1)[0] if message[at] == _TEXT else 1
    return at


def tuple_values(message: bytes, at: int) -> list[Value]:
    """All values of the tuple that begins at `at`, as the bytes of their text."""
    count = _u16(message, at)[0]
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = message[at]
        if kind == _TEXT:
            stop = at + 5 + _u32(message, at + 1)[0]
            values.append(message[at + 5 : stop])
            at = stop
        else:
            values.append(UNCHANGED if kind == _UNCHANGED_TOAST else None)
            at += 1
    return values


def has_unchanged(message: bytes, at: int) -> bool:
    """Whether the tuple that begins at `at` leaves out an unchanged TOASTed value."""
    # Of most tuples one search tells it, far cheaper than the walk: behind the marker stand other columns' kinds, and
    # then a length, whose first byte is small, or the end.
    if _MAY_BE_UNCHANGED.search(message, at) is None:
        return False
    count = _u16(message, at)[0]
    at += 2
    for _ in range(count):
        kind = message[at]
        if kind == _UNCHANGED_TOAST:
            return True
        at += 5 + _u32(message, at + 1)[0] if kind == _TEXT else 1
    return False


def key_parts(message: bytes, at: int, positions: tuple[int, ...]) -> tuple[bytes | None, ...]:
    """The values at `positions` (ascending) of the tuple that begins at `at`; None where it holds no text there."""
    at += 2
    found: list[bytes | None] = []
    position = 0
    for wanted in positions:
        while position < wanted:
            at += 5 + _u32(message, at + 1)[0] if message[at] == _TEXT else 1
            position += 1
        if message[at] == _TEXT:
            stop = at + 5 + _u32(message, at + 1)[0]
            found.append(message[at + 5 : stop])
            at = stop
        else:
            found.append(None)
            at += 1
        position += 1
    return tuple(found)


def read_transactions(messages: Iterable[bytes], start: int, transactions: TransactionSink) -> None:
    """Tell only the transactions from `start` on, and skip what they did."""
    inside = False
    for message in messages:
        kind = message[0]
        if kind == _BEGIN:
            lsn, time, xid = _begin(message, 1)
            inside = lsn >= start
            (transactions.begin if inside else transactions.repeated)(lsn, xid, time)
        elif kind == _ORIGIN and inside:
            transactions.origin()


def commit_time(microseconds: int) -> datetime:
    """A Begin message's time stamp as UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def microseconds_of(moment: datetime) -> int:
    """A moment as a Begin message has it: microseconds since 2000-01-01 UTC."""
    return (moment - EPOCH) // timedelta(microseconds=1)
