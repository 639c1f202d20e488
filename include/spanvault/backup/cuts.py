"""From times to cuts: where in the log a layer for a time ends.

The cut for T is the start of the first commit in log order whose time is later than T, over all databases of the backup.
Every earlier commit has a time up to T, and whoever looks later finds the same one: commits are never inserted before it.
It is known only once such a commit is in the log, so each database gets one first: a fence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from spanvault.backup.clock_steps import CommitTimes
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.pgoutput import commit_time, read_transactions
from spanvault.database.postgres.server import Connection, flush_lsn, insert_lsn, server_time
from spanvault.database.postgres.window import peek
from spanvault.errors import BadInput, Retryable
from spanvault.model.cut import Cut, Lsn, format_time
from spanvault.model.manifest import LayerEnd, Protection

_FLUSH_WAIT_SECONDS = 30.0


def find_ends(
    cluster: Cluster, protections: Sequence[Protection], start: Cut, times: Sequence[datetime], max_skew: timedelta
) -> tuple[LayerEnd, ...]:
    """The cuts for `times` (ascending, all later than `start`), each at or behind the one before.

    Raises BadInput for a time that the source's clock has not reached, Refused when the times in the log run backwards
    by more than `max_skew`.
    """
    found: list[Lsn | None] = [None] * len(times)
    for protection in protections:
        fence, clock = _fence(cluster, protection.database, times[-1], max_skew)
        search = _Search(times, CommitTimes(start.time, max_skew, clock, start_lsn=start.lsn))
        with peek(cluster.primary, protection, start.lsn, fence, messages=True) as messages:
            read_transactions(messages, start.lsn, search)
        search.settle()
        for index, lsn in enumerate(search.found):
            if lsn is None:
                raise Retryable(f"The log of database {protection.database!r} does not show its fence yet; try again.")
            known = found[index]
            found[index] = Lsn(lsn) if known is None else min(known, Lsn(lsn))
    return tuple(LayerEnd(due=due, lsn=lsn) for due, lsn in zip(times, found, strict=True) if lsn is not None)


class _Search:
    """Looks for the first commit later than each of `times`; a `pgoutput.TransactionSink`."""

    def __init__(self, times: Sequence[datetime], stamps: CommitTimes) -> None:
        self.found: list[int | None] = [None] * len(times)
        self._times = times
        self._stamps = stamps
        self._next = 0
        self._pending: tuple[int, int] | None = None
        self._is_local = True

    def begin(self, lsn: int, xid: int, time: int) -> None:
        """A transaction in log order."""
        self.settle()
        self._pending, self._is_local = (lsn, time), True

    def origin(self) -> None:
        """Its time is another server's."""
        self._is_local = False

    def repeated(self, lsn: int, xid: int, time: int) -> None:
        """Before the window: no end can be there."""

    def settle(self) -> None:
        """Judge the last transaction."""
        if self._pending is None:
            return
        lsn, stamp = self._pending
        self._pending = None
        moment = self._stamps.local(lsn, commit_time(stamp)) if self._is_local else self._stamps.foreign()
        while self._next < len(self._times) and moment > self._times[self._next]:
            self.found[self._next] = lsn
            self._next += 1


def _fence(cluster: Cluster, database: str, after: datetime, max_skew: timedelta) -> tuple[Lsn, datetime]:
    """Commit something later than `after` in the database; a position behind it, flushed, and the server's clock."""
    with connect(cluster.primary, database, purpose="fence") as connection:
        _wait_for_clock(connection, after, max_skew)
        with connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = 'local'")
            connection.execute("SELECT pg_catalog.pg_logical_emit_message(true, 'spanvault', 'fence')")
        position = insert_lsn(connection)
        deadline = time.monotonic() + _FLUSH_WAIT_SECONDS
        while flush_lsn(connection) < position:
            if time.monotonic() > deadline:
                raise Retryable(f"The source's log was not flushed up to {position} within {_FLUSH_WAIT_SECONDS:g} s.")
            time.sleep(0.02)
        return position, server_time(connection)


def _wait_for_clock(connection: Connection, after: datetime, max_skew: timedelta) -> None:
    """The source's clock may be a little behind the one that started the run."""
    behind = after - server_time(connection)
    if behind > max_skew:
        raise BadInput(
            f"A backup cannot end in the future: {format_time(after)} is {behind.total_seconds():.0f} s ahead of the source's"
            " clock."
        )
    while server_time(connection) <= after:
        time.sleep(max(0.02, (after - server_time(connection)).total_seconds()))
