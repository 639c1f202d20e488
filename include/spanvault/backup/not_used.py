"""Why nodes of a cluster of several read nothing, and what is read elsewhere than it belongs because of that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spanvault.database.postgres.nodes import NodeState
from spanvault.model.locality import Locality
from spanvault.model.places import Places
from spanvault.model.sentences import few
from spanvault.model.span import Batch
from spanvault.model.uri import DEFAULT_LOCALITY

TableKey = tuple[str, int]
_SHOWN = 5  # names in a sentence


def why_not_used(
    states: Sequence[NodeState],
    *,
    execution_locality: str,
    strict_places: Places | None,
    max_replay_lag: float | None,
) -> dict[str, str]:
    """What keeps nodes from reading tables, by their names; those that may and can read are not in it."""
    primary = next((state for state in states if state.role == "primary"), None)
    wanted = Locality.parse(execution_locality)
    reasons = {}
    for state in states:
        if not wanted.matches(state.locality):
            reasons[state.name] = f"EXECUTION LOCALITY = '{execution_locality}' leaves it out"
        elif strict_places is not None and strict_places.choose(state.locality) is None:
            reasons[state.name] = _no_uri(state.locality)
        elif reason := _unusable(state, primary, max_replay_lag):
            reasons[state.name] = reason
    return reasons


def _no_uri(place: Locality) -> str:
    tiers = " or ".join(f"{key}={value}" for key, value in place.tiers)
    return f"no URI is given for {tiers}" if tiers else "it has no locality, and so no URI of its own"


def _unusable(state: NodeState, primary: NodeState | None, max_replay_lag: float | None) -> str:
    """Why the node cannot be used; empty if it can."""
    if state.role == "unreachable":
        return state.reason or "does not answer"
    if primary is not None and state.timeline != primary.timeline:
        return f"is on timeline {state.timeline}, the primary on {primary.timeline}"
    if state.role == "standby" and max_replay_lag is not None:
        if state.replay_lag is None:
            return "cannot tell how far behind it is"
        if state.replay_lag > max_replay_lag:
            return f"is {state.replay_lag:.0f} s behind, allowed are {max_replay_lag:g} s"
    return ""


def nowhere(place: Locality, states: Iterable[NodeState], reasons: Mapping[str, str]) -> str:
    """A clause that says why no node there reads: `where the cluster has no node`, or what keeps each from it."""
    there = [f"{state.name}: {reasons[state.name].rstrip('.')}" for state in states if place.matches(state.locality)]
    return f"where no node may read ({'; '.join(there)})" if there else "where the cluster has no node"


def read_elsewhere(
    batches: Sequence[Batch],
    states: Sequence[NodeState],
    reasons: Mapping[str, str],
    table_locality: Mapping[TableKey, Locality],
    names: Mapping[TableKey, str],
    places: Places,
) -> list[str]:
    """A sentence for each locality whose tables no node there reads, and one for each other node that cannot be used."""
    localities = {state.name: state.locality for state in states}
    told, blamed = [], set()
    unserved = {
        place: None
        for place in table_locality.values()
        if not any(place.matches(state.locality) and state.name not in reasons for state in states)
    }
    for place in unserved:
        spans = [
            (batch.nodes[0], (span.database, span.table_oid))
            for batch in batches
            for span in batch.spans
            if table_locality.get((span.database, span.table_oid)) == place
        ]
        if not spans:
            continue
        tables, readers = dict.fromkeys(key for _, key in spans), sorted({node for node, _ in spans})
        ends = sorted({places.choose(localities[node]) or DEFAULT_LOCALITY for node in readers})
        stored = f", and stored at the URI of {', '.join(ends)}" if places.others else ""
        blamed |= {state.name for state in states if place.matches(state.locality)}
        told.append(
            f"Tables that belong to {place}, {nowhere(place, states, reasons)}, are read by {', '.join(readers)}{stored}:"
            f" {few([names[key] for key in tables], _SHOWN)} (tables: {len(tables)}, spans: {len(spans)})."
        )
    told += [
        f"The node {state.name} ({str(state.locality) or 'no locality'}) reads nothing: {reasons[state.name].rstrip('.')}."
        for state in states
        if state.name in reasons and state.name not in blamed and not reasons[state.name].startswith("EXECUTION LOCALITY")
    ]
    return told
