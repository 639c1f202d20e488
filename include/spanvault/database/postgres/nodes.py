"""The nodes of a cluster as they are now: which is the primary, how far each standby is, how busy each is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import psycopg

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres.connect import APPLICATION_NAME, connect
from spanvault.database.postgres.server import timeline
from spanvault.database.postgres.sqlstate import translated
from spanvault.errors import Refused, Retryable, SpanvaultError
from spanvault.model.base import Value
from spanvault.model.cut import Lsn
from spanvault.model.locality import Locality

_CONNECT_SECONDS = "4"
_STATEMENT_LIMIT = "SET statement_timeout = '10s'"
_CAUGHT_UP_SECONDS = 0.5
_THREADS = 32

Row = tuple[Any, ...] | None
FetchRow = Callable[[str], Row]

# Sessions that do something, but for Spanvault's own. Of other users' sessions a role sees this as a member of pg_monitor only.
ACTIVE_SESSIONS = (
    "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active'"
    f" AND pid <> pg_catalog.pg_backend_pid() AND application_name NOT LIKE '{APPLICATION_NAME}%'"
)
# The worst of a primary's standbys; logical subscribers are none. Lags that are not measured at the moment are null.
WORST_LAG = (
    "SELECT pg_catalog.date_part('epoch', pg_catalog.max(replay_lag))::float8 FROM pg_catalog.pg_stat_replication"
    " WHERE pid NOT IN (SELECT active_pid FROM pg_catalog.pg_replication_slots"
    " WHERE slot_type = 'logical' AND active_pid IS NOT NULL)"
)
_POSITIONS = (
    "SELECT pg_catalog.pg_last_wal_receive_lsn()::text, pg_catalog.pg_last_wal_replay_lsn()::text,"
    " EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver WHERE status = 'streaming'),"
    " pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::float8"
)


class NodeState(Value):
    """A node at one moment. `replay_lag` is in seconds, of standbys only; None: unknown. `active` counts the sessions of
    others at work. `reason` says why an unreachable node is so."""

    name: str
    locality: Locality = Locality()
    role: Literal["primary", "standby", "unreachable"]
    replay_lsn: Lsn | None = None
    replay_lag: float | None = None
    timeline: int | None = None
    system_identifier: str | None = None
    active: int = 0
    reason: str = ""


class Walsender:
    """A session that asks a node who it is, also one in recovery, where pg_walfile_name fails; a context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = connect(endpoint, purpose="node", replication=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    @translated("Asking for the timeline")
    def identify(self) -> tuple[str, int]:
        """System identifier and timeline, of a standby the one that it replays
        (https://www.postgresql.org/docs/18/protocol-replication.html, IDENTIFY_SYSTEM)."""
        # A walsender takes simple queries only.
        row = self._connection.execute("IDENTIFY_SYSTEM", prepare=False).fetchone()
        if row is None:
            raise Retryable("The node did not say which system it belongs to.")
        return str(row[0]), int(row[1])


def discover(cluster: Cluster) -> tuple[NodeState, ...]:
    """The states of the cluster's nodes, in its order; nothing, and no connection, for a cluster of one node."""
    return probe_all(cluster) if len(cluster.endpoints) > 1 else ()


def probe_all(cluster: Cluster) -> tuple[NodeState, ...]:
    """The states of the cluster's nodes, asked at the same time, in its order."""
    with ThreadPoolExecutor(min(_THREADS, len(cluster.endpoints))) as pool:
        return tuple(pool.map(probe, cluster.endpoints))


def probe(endpoint: Endpoint) -> NodeState:
    """The node's state. One that does not answer within a few seconds, or refuses the login, is unreachable."""
    parameters = {"connect_timeout": _CONNECT_SECONDS, **endpoint.parameters}
    hasty = endpoint.model_copy(update={"parameters": parameters})
    try:
        return _probe(hasty)
    except (SpanvaultError, psycopg.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return NodeState(name=endpoint.node, locality=endpoint.locality, role="unreachable", reason=reason)


@translated("Asking for the node's state")
def _probe(endpoint: Endpoint) -> NodeState:
    with connect(endpoint, purpose="node") as connection:
        connection.execute(_STATEMENT_LIMIT)

        def fetch_row(query: str) -> Row:
            return connection.execute(query.encode()).fetchone()

        active = _first(fetch_row, ACTIVE_SESSIONS)
        if not _first(fetch_row, "SELECT pg_catalog.pg_is_in_recovery()"):
            return NodeState(
                name=endpoint.node,
                locality=endpoint.locality,
                role="primary",
                timeline=timeline(connection),
                system_identifier=str(_first(fetch_row, "SELECT system_identifier FROM pg_catalog.pg_control_system()")),
                active=active,
            )
        with Walsender(endpoint) as walsender:
            system_identifier, replayed = walsender.identify()
        return NodeState(
            name=endpoint.node,
            locality=endpoint.locality,
            role="standby",
            replay_lsn=replay_lsn(fetch_row),
            replay_lag=replay_lag(fetch_row),
            timeline=replayed,
            system_identifier=system_identifier,
            active=active,
        )


def replay_lsn(fetch_row: FetchRow) -> Lsn:
    """Up to where a standby has replayed the log."""
    return Lsn.parse(_first(fetch_row, "SELECT pg_catalog.pg_last_wal_replay_lsn()::text") or "0/0")


def replay_lag(fetch_row: FetchRow, sleep: Callable[[float], None] = time.sleep) -> float | None:
    """How many seconds a standby is behind what its primary sends; None: it cannot tell.

    The time of the last replayed commit alone says nothing: after a quiet hour the next commit would look like an hour's
    lag. So a standby that streams and replays soon what it has received by now is not behind.
    """
    received, replayed, streaming, age = fetch_row(_POSITIONS) or (None, None, False, None)
    started = time.monotonic()
    while streaming and received is not None and replayed is not None:
        if Lsn.parse(replayed) >= Lsn.parse(received):
            return time.monotonic() - started
        if time.monotonic() - started > _CAUGHT_UP_SECONDS:
            break
        sleep(0.05)
        _, replayed, streaming, age = fetch_row(_POSITIONS) or (None, None, False, None)
    return None if age is None else float(age)


def _first(fetch_row: FetchRow, query: str) -> Any:
    row = fetch_row(query)
    return row[0] if row else None


def with_primary(cluster: Cluster, states: Sequence[NodeState]) -> Cluster:
    """The cluster whose first endpoint is the node that is the primary now; as it is without states (discover).

    Raises Refused for nodes of different systems and for two primaries, Retryable when there is none.
    """
    if not states:
        return cluster
    _check_one_system(cluster, states)
    primaries = [state for state in states if state.role == "primary"]
    if len(primaries) > 1:
        found = " and ".join(f"{state.name} (timeline {state.timeline})" for state in primaries)
        raise Refused(
            f"Of cluster {cluster.name!r} several nodes take writes: {found}. Take the one that is not the primary any more"
            " off, or out of clusters.yaml."
        )
    if not primaries:
        raise Retryable(f"Cluster {cluster.name!r} has no primary at the moment: {describe(states)}.")
    first = primaries[0].name
    return cluster.model_copy(update={"endpoints": tuple(sorted(cluster.endpoints, key=lambda node: node.node != first))})


def _check_one_system(cluster: Cluster, states: Sequence[NodeState]) -> None:
    systems: dict[str, list[str]] = {}
    for state in states:
        if state.system_identifier is not None:
            systems.setdefault(state.system_identifier, []).append(state.name)
    if len(systems) > 1:
        found = "; ".join(f"{', '.join(names)} to system {system}" for system, names in systems.items())
        raise Refused(f"The nodes of cluster {cluster.name!r} are not copies of one server: {found}. Correct clusters.yaml.")


def describe(states: Sequence[NodeState]) -> str:
    """Each node with its locality and state, for a sentence."""
    return "; ".join(
        f"{state.name} ({state.locality if state.locality.tiers else 'no locality'}, {state.role}"
        f"{': ' + state.reason.rstrip('.') if state.reason else ''})"
        for state in states
    )
