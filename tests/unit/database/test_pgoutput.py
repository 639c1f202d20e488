"""The decoder against messages put together by the protocol's documentation
(https://www.postgresql.org/docs/18/protocol-logicalrep-message-formats.html)."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest

from spanvault.database.postgres.pgoutput import (
    UNCHANGED,
    Change,
    TableSink,
    Window,
    commit_time,
    decode,
    has_unchanged,
    key_parts,
    tuple_end,
    tuple_values,
)
from spanvault.errors import Damaged

OID = 16385


def begin(lsn: int, xid: int = 7, time: int = 0) -> bytes:
    return b"B" + struct.pack(">QqI", lsn, time, xid)


def commit(lsn: int) -> bytes:
    return b"C\x00" + struct.pack(">QQq", lsn, lsn + 48, 0)


def relation(*names: str, oid: int = OID) -> bytes:
    columns = b"".join(
        (b"\x01" if name == "id" else b"\x00") + name.encode() + b"\x00" + struct.pack(">Ii", 25, -1) for name in names
    )
    return b"R" + struct.pack(">I", oid) + b"public\x00t\x00d" + struct.pack(">H", len(names)) + columns


def row(*values: str | object | None) -> bytes:
    parts = []
    for value in values:
        if value is None:
            parts.append(b"n")
        elif isinstance(value, str):
            parts.append(b"t" + struct.pack(">I", len(value.encode())) + value.encode())
        else:
            parts.append(b"u")
    return struct.pack(">H", len(values)) + b"".join(parts)


def insert(*values: str | object | None, oid: int = OID) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + row(*values)


def update(new: bytes, old: bytes = b"", kind: bytes = b"K") -> bytes:
    return b"U" + struct.pack(">I", OID) + (kind + old if old else b"") + b"N" + new


def truncate(*oids: int) -> bytes:
    return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids)


class Log(TableSink):
    """Keeps what it is told, decoded."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []
        self.order: list[int] = []

    def relation(self, columns: list[str], identity: set[int]) -> None:
        self.seen.append(("relation", *columns, identity))

    def insert(self, message: bytes, at: int, change: Change) -> None:
        self._keep("insert", change, tuple_values(message, at))

    def update(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        self._keep("update", change, tuple_values(message, old_at) if old_at else None, tuple_values(message, at))

    def delete(self, message: bytes, at: int, change: Change) -> None:
        self._keep("delete", change, tuple_values(message, at))

    def truncate(self, change: Change) -> None:
        self._keep("truncate", change)

    def _keep(self, what: str, change: Change, *values: object) -> None:
        self.seen.append((what, change.lsn, *values))
        self.order.append(change.sequence)


def decoded(messages: list[bytes], start: int = 0, end: int = 1 << 60) -> tuple[Log, Window]:
    log, window = Log(), Window()
    decode(messages, {OID: log}, start, end, window)
    return log, window


def test_a_window_holds_the_transactions_whose_commit_record_begins_in_it() -> None:
    """The end is exclusive and the start inclusive, so that windows with a common border share nothing and miss nothing."""
    messages = [part for lsn in (99, 100, 150, 200, 201) for part in (begin(lsn), insert(str(lsn)), commit(lsn))]
    inside, window = decoded(messages, 100, 200)
    assert [entry[1] for entry in inside.seen] == [100, 150]
    assert window.transactions == 2
    assert window.last_commit == (150, 7, 0)
    before, _ = decoded(messages, 0, 100)
    after, _ = decoded(messages, 200, 1000)
    assert [entry[1] for log in (before, inside, after) for entry in log.seen] == [99, 100, 150, 200, 201]


def test_every_kind_of_change() -> None:
    log, window = decoded([
        relation("v", "id"),
        begin(5),
        insert("1", None),
        update(row("1", "x")),
        update(row("2", UNCHANGED), row("1", None)),
        b"D" + struct.pack(">I", OID) + b"K" + row("2", None),
        truncate(1, OID, 2),
        commit(5),
    ])
    assert log.seen == [
        ("relation", "v", "id", {1}),
        ("insert", 5, [b"1", None]),
        ("update", 5, None, [b"1", b"x"]),
        ("update", 5, [b"1", None], [b"2", UNCHANGED]),
        ("delete", 5, [b"2", None]),
        ("truncate", 5),
    ]
    assert log.order == sorted(set(log.order))
    assert window.changes == 5


def test_changes_of_other_tables_and_other_messages_are_skipped() -> None:
    log, _ = decoded([
        begin(5),
        b"O" + struct.pack(">Q", 1) + b"origin\x00",
        insert("1", oid=99),
        b"Y....",
        insert("2"),
        commit(5),
    ])
    assert log.seen == [("insert", 5, [b"2"])]


def test_a_message_of_an_unknown_kind_is_not_passed_over() -> None:
    with pytest.raises(Damaged, match="unknown kind 'X'"):
        decoded([begin(5), b"X", commit(5)])


def test_tuples_are_walked_by_their_lengths() -> None:
    message = b"--" + row("a", None, UNCHANGED, "", "längst") + b"after"
    assert tuple_values(message, 2) == [b"a", None, UNCHANGED, b"", "längst".encode()]
    assert message[tuple_end(message, 2) :] == b"after"
    assert key_parts(message, 2, (0, 3, 4)) == (b"a", b"", "längst".encode())
    assert key_parts(message, 2, (1, 2)) == (None, None)


def test_a_value_with_the_letter_u_is_not_an_unchanged_one() -> None:
    assert not has_unchanged(row("unusual", "uu", None), 0)
    assert has_unchanged(row("unusual", UNCHANGED), 0)


def test_commit_times_count_microseconds_from_the_year_2000() -> None:
    assert commit_time(86_400_000_001) == datetime(2000, 1, 2, 0, 0, 0, 1, tzinfo=UTC)
    log, window = decoded([begin(5, time=1000), insert("1"), commit(5), begin(6, time=-5), commit(6)])
    assert window.newest_time == 1000
    assert len(log.seen) == 1


def test_the_newest_time_is_of_this_servers_own_commits_inside_the_window_and_of_none_in_the_future() -> None:
    messages = [begin(4, time=4000), commit(4), begin(5, time=1000), commit(5), begin(6, time=3000), b"O....", commit(6)]
    messages += [begin(7, time=900), commit(7), begin(8, time=2001), commit(8), begin(9, time=4000), commit(9)]
    window = Window(latest=2000)
    decode(messages, {}, 5, 9, window)
    assert (window.newest_time, window.transactions, window.last_commit) == (1000, 4, (8, 7, 2001))
    window = Window()
    decode(messages, {}, 5, 9, window)
    assert window.newest_time == 2001
