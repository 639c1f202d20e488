"""Going easy on the nodes that are read: how many sessions at a time, how many bytes a second, and when to pause."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from spanvault.backup.context import Run
from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.nodes import ACTIVE_SESSIONS, WORST_LAG, FetchRow, replay_lag
from spanvault.database.postgres.server import scalar
from spanvault.database.postgres.sqlstate import translated
from spanvault.errors import Busy

# The first key of the advisory locks, the letters "spvt"; the second is the number of the turn.
TURN_LOCK = 0x73707674
_PAUSE_SECONDS = (0.1, 1.0)


class Turns:
    """Turns to read from a node, at most `max_connections` at a time over all workers; a context manager.

    A turn is an advisory lock on the node itself, which works on standbys, too, and goes with the session that holds it.
    Such locks belong to a database, so they are taken in the one that the node's connection names, whatever is read.
    """

    def __init__(self, run: Run, endpoint: Endpoint, patience: float) -> None:
        self._run = run
        self._endpoint = endpoint
        self._patience = patience
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._endpoint.max_connections is not None:
            self._holder = self._stack.enter_context(connect(self._endpoint, purpose="export turn"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Have a turn while the block lasts. Raises Busy when there is none in time."""
        most = self._endpoint.max_connections
        if most is None:
            yield
            return
        turn = self._wait_for_turn(most)
        yield
        with translated("Giving a turn back"):
            self._holder.execute(f"SELECT pg_catalog.pg_advisory_unlock({TURN_LOCK}, {turn})".encode())

    @translated("Waiting for a turn")
    def _wait_for_turn(self, most: int) -> int:
        found: list[int] = []

        def taken() -> str:
            for turn in range(most):
                if scalar(self._holder, f"SELECT pg_catalog.pg_try_advisory_lock({TURN_LOCK}, {turn})"):
                    found.append(turn)
                    return ""
            return f"all {most} of its sessions for exports (max_connections) are in use"

        wait_until_free(self._run, self._endpoint, taken, self._patience)
        return found[0]


def pause_while_loaded(run: Run, endpoint: Endpoint, fetch_row: FetchRow, *, standby: bool, patience: float) -> None:
    """Return when the node's load allows another span: by the cluster's max_replay_lag and max_active.

    Raises Busy when it does not in `patience` seconds.
    """
    wait_until_free(run, endpoint, lambda: overload(run.cluster, fetch_row, standby=standby), patience)


def overload(cluster: Cluster, fetch_row: FetchRow, *, standby: bool) -> str:
    """What passes the cluster's limits, in a phrase; empty if nothing does. A standby counts by its own lag, the primary by
    the worst of its standbys."""
    if (limit := cluster.max_replay_lag) is not None:
        lag = replay_lag(fetch_row) if standby else _number(fetch_row, WORST_LAG)
        if lag is None and standby:
            return "it cannot tell how far behind it is"
        if lag is not None and lag > limit:
            whose = "it is" if standby else "one of its standbys is"
            return f"{whose} {lag:.0f} s behind, allowed are {limit:g} s (max_replay_lag)"
    if (most := cluster.max_active) is not None:
        active = _number(fetch_row, ACTIVE_SESSIONS) or 0
        if active > most:
            return f"{active:.0f} sessions are at work there, allowed are {most} (max_active)"
    return ""


def _number(fetch_row: FetchRow, query: str) -> float | None:
    row = fetch_row(query)
    return None if row is None or row[0] is None else float(row[0])


def wait_until_free(run: Run, endpoint: Endpoint, why_not: Callable[[], str], patience: float) -> None:
    """Ask `why_not` again and again until it is empty; says once that it waits. Raises Busy after `patience` seconds.

    Pauses have random lengths, so that workers that wait do not all come back at once.
    """
    deadline = time.monotonic() + patience
    told = False
    while reason := why_not():
        if time.monotonic() >= deadline:
            raise Busy(f"Node {endpoint.node} was not free within {patience:g} s: {reason}.")
        if not told:
            run.progress.note(f"Waiting for node {endpoint.node}: {reason}.")
            told = True
        pause = random.uniform(*_PAUSE_SECONDS)  # noqa: S311 - not cryptography
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
