"""Reading spans on a node, be it the primary or a standby: whether it may be used, and how far its rows can reach.

A standby's snapshot is a state that the primary was in, but which one is known only roughly: it holds all that was replayed
before it was taken. So what has been replayed, and on which timeline, is read in statements of their own before a span's
transaction begins, not within it. It must reach behind the wait for writers, not only to the protection's start: a
transaction that was open while its table was published is not wholly in the log, and ends before the wait does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from spanvault.backup.context import Run
from spanvault.backup.throttle import Turns, pause_while_loaded
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import connection_parameters
from spanvault.database.postgres.copy_out import CopySession
from spanvault.database.postgres.nodes import Walsender, replay_lsn
from spanvault.database.postgres.server import TIMELINE
from spanvault.errors import Busy, Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import PlannedDatabase
from spanvault.storage.base import Storage
from spanvault.storage.limit import limited

_FLUSH_WAIT_SECONDS = 30.0
_WHO = "SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_catalog.pg_control_system())"
# The record that is being replayed may show already, and counts as replayed only afterwards; it has been received.
_STANDBY_SEEN = (
    "SELECT pg_catalog.pg_is_in_recovery(),"
    " greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())::text"
)


class SpanSession:
    """A session on a database of one node. `copy` runs the statements, `data` is where its files go, `tier` the locality
    whose URI that is (None: the default)."""

    def __init__(
        self, run: Run, endpoint: Endpoint, planned: PlannedDatabase, *, copy: CopySession, turns: Turns, patience: float
    ) -> None:
        self.copy = copy
        self.endpoint = endpoint
        self.tier = run.places.choose(endpoint.locality)
        self.data: Storage = limited(run.data, endpoint.session_rate)
        self._run = run
        self._ready = planned.ready
        self._turns = turns
        self._patience = patience
        self._walsender: Walsender | None = None

    def recognize(self, stack: ExitStack) -> None:
        """Find out the node's role. Raises Refused for a server of another system or history."""
        recovering, system_identifier = self.copy.fetch_row(_WHO) or (False, "")
        if system_identifier != self._run.plan.source.system_identifier:
            raise Refused(
                f"Node {self.endpoint.node} belongs to another system ({system_identifier}) than the one that the backup was"
                f" planned on ({self._run.plan.source.system_identifier}); correct clusters.yaml."
            )
        if recovering:
            self._walsender = stack.enter_context(Walsender(self.endpoint))
        else:
            self._check_timeline(int(value(self.copy, TIMELINE)))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The time for one span: within the node's limits, and on a standby with all replayed that the span must show.

        Raises Busy when the node is not ready in time, Refused after a promotion.
        """
        with self._turns.one():
            standby = self._walsender is not None
            pause_while_loaded(self._run, self.endpoint, self.copy.fetch_row, standby=standby, patience=self._patience)
            if self._walsender is not None:
                self._wait_until_replayed()
                self._check_timeline(self._walsender.identify()[1])
            yield

    def _wait_until_replayed(self) -> None:
        deadline = time.monotonic() + self._run.wait_seconds
        if self._ready is None:
            raise Refused(f"The backup was planned for a primary alone, and node {self.endpoint.node} is a standby.")
        while (replayed := replay_lsn(self.copy.fetch_row)) < self._ready:
            if time.monotonic() > deadline:
                raise Busy(
                    f"Standby {self.endpoint.node} has replayed the log up to {replayed} only, and can be read from"
                    f" {self._ready} on; it did not get there within {self._run.wait_seconds:g} s."
                )
            time.sleep(0.05)

    def seen(self) -> tuple[Lsn, int]:
        """A position beyond all that the open transaction's snapshot shows, and the timeline."""
        if self._walsender is None:
            return Lsn.parse(value(self.copy, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text")), int(
                value(self.copy, TIMELINE)
            )
        recovering, seen = self.copy.fetch_row(_STANDBY_SEEN) or (False, "0/0")
        timeline = self._check_timeline(self._walsender.identify()[1])
        if not recovering:
            raise self._promoted(timeline)
        return Lsn.parse(seen), timeline

    def settle(self, seen: Lsn) -> None:
        """After the transaction: return when nothing that it saw can be lost any more.

        Asynchronous commits are visible on a primary before they are durable, and a receipt may only vouch for what a crash
        keeps. A standby gets what its primary has flushed; its timeline must still be the same.
        """
        if self._walsender is None:
            _wait_until_flushed(self.copy, seen)
        else:
            self._check_timeline(self._walsender.identify()[1])

    def _check_timeline(self, timeline: int) -> int:
        if timeline != self._run.plan.source.timeline:
            raise self._promoted(timeline)
        return timeline

    def _promoted(self, timeline: int) -> Refused:
        return Refused(
            f"There was a promotion during the backup: node {self.endpoint.node} is on timeline {timeline}, and the backup was"
            f" planned on timeline {self._run.plan.source.timeline}, so its spans may show what is no longer there. If the"
            f" primary is still on timeline {self._run.plan.source.timeline}, take {self.endpoint.node} out of clusters.yaml and"
            " run the same again, which goes on; else start a new full backup."
        )


@contextmanager
def open_node(run: Run, endpoint: Endpoint, planned: PlannedDatabase, patience: float) -> Iterator[SpanSession]:
    """A session for spans of a database on a node. `patience`: how many seconds to wait where the node has other work.

    Raises Refused for a node that must not be used, what CopySession raises for one that cannot be reached.
    """
    if run.plan.request.options.strict and run.places.choose(endpoint.locality) is None:
        raise Refused(
            f"With strict, node {endpoint.node} ({str(endpoint.locality) or 'no locality'}) must not export: none of the URIs is"
            " for its locality."
        )
    with ExitStack() as stack:
        turns = stack.enter_context(Turns(run, endpoint, patience))
        copy = stack.enter_context(CopySession(connection_parameters(endpoint, planned.database.name, "export")))
        session = SpanSession(run, endpoint, planned, copy=copy, turns=turns, patience=patience)
        session.recognize(stack)
        yield session


def value(session: CopySession, query: str) -> Any:
    """The single value of a query that always gives a row."""
    row = session.fetch_row(query)
    return row[0] if row else None


def _wait_until_flushed(session: CopySession, seen: Lsn) -> None:
    # Committing anything synchronously flushes the log up to there, long before the server's log writer would.
    if _flushed(session) >= seen:
        return
    session.execute("BEGIN")
    session.execute("SET LOCAL synchronous_commit = 'local'")
    session.execute("SELECT pg_catalog.pg_logical_emit_message(true, 'spanvault', 'flush')")
    session.execute("COMMIT")
    deadline = time.monotonic() + _FLUSH_WAIT_SECONDS
    while _flushed(session) < seen:
        if time.monotonic() > deadline:
            raise Busy(f"The source's log was not flushed up to {seen} within {_FLUSH_WAIT_SECONDS:g} s.")
        time.sleep(0.02)


def _flushed(session: CopySession) -> Lsn:
    return Lsn.parse(value(session, "SELECT pg_catalog.pg_current_wal_flush_lsn()::text"))
