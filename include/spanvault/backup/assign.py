"""Which node reads what, of a cluster of several nodes. Pure.

A node's share of the bytes follows its weight, 1 / (1 + active / 10) with `active` sessions of others at work on it, halved
for the primary, which alone takes the writes. Batches are dealt out from the largest to the smallest, each to the node
whose bytes by weight come to the least with it; those that few nodes may read first. So, where all nodes may read
everything, for any two nodes: bytes(i) / weight(i) <= (bytes(j) + the largest batch) / weight(j).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from spanvault.backup.not_used import nowhere, why_not_used
from spanvault.backup.plan import BATCH_BYTES, MAX_BATCHES, MIN_BATCH_BYTES, numbered
from spanvault.database.postgres.nodes import NodeState, describe
from spanvault.errors import Refused, Retryable
from spanvault.model.locality import Locality
from spanvault.model.places import Places
from spanvault.model.span import Batch, Span

TableKey = tuple[str, int]

_HALVED_BY = 10  # sessions at work that halve a node's share
_PRIMARY_SHARE = 0.5


def assign(
    spans: Sequence[Span],
    states: Sequence[NodeState],
    *,
    table_locality: Mapping[TableKey, Locality],
    execution_locality: str,
    strict_places: Places | None,
    max_replay_lag: float | None,
    names: dict[TableKey, str],
    workers: int,
) -> tuple[Batch, ...]:
    """The batches of all spans, each with the nodes that may read it, the chosen one first.

    `table_locality` says, by database and OID, where tables belong: nodes there read them, any node if none is there. With
    `strict_places` a node whose locality has no URI among them reads nothing, and a table whose locality has no node is
    refused. Raises Refused for rules that no node fits, Retryable when those that fit cannot be used at the moment.
    """
    usable = usable_nodes(
        states, execution_locality=execution_locality, strict_places=strict_places, max_replay_lag=max_replay_lag
    )
    readers = {
        key: _readers(usable, table_locality.get(key)) for key in dict.fromkeys((span.database, span.table_oid) for span in spans)
    }
    if strict_places is not None:
        reasons = why_not_used(
            states, execution_locality=execution_locality, strict_places=strict_places, max_replay_lag=max_replay_lag
        )
        for key, found in readers.items():
            if not found:
                there = table_locality[key]
                raise Refused(
                    f"The table {names[key]} belongs to {there}, {nowhere(there, states, reasons)}, and strict allows none"
                    " elsewhere."
                )
    readers = {key: found or tuple(range(len(usable))) for key, found in readers.items()}
    packed = _pack(spans, readers, workers)
    chosen = _deal_out(packed, usable)
    groups = []
    for place in _interleaved(packed, chosen):
        group, able = packed[place]
        others = able if strict_places is not None else tuple(dict.fromkeys((*able, *range(len(usable)))))
        groups.append((group, _preferred(usable, chosen[place], able, others, turn=place)))
    return numbered(groups, spans, names)


def usable_nodes(
    states: Sequence[NodeState], *, execution_locality: str, strict_places: Places | None, max_replay_lag: float | None
) -> list[NodeState]:
    """The nodes that may read, and can at the moment; raises what assign raises."""
    primary = next((state for state in states if state.role == "primary"), None)
    if strict_places is not None and primary is not None and strict_places.choose(primary.locality) is None:
        raise Refused(
            f"With strict, the primary {primary.name} ({str(primary.locality) or 'no locality'}) needs a URI for its locality,"
            " for it writes the change log; add one with COCKROACH_LOCALITY, or leave out strict."
        )
    wanted = Locality.parse(execution_locality)
    there = [state for state in states if wanted.matches(state.locality)]
    if not there:
        raise Refused(f"No node matches EXECUTION LOCALITY = '{execution_locality}'; the nodes are {describe(states)}.")
    allowed = [state for state in there if strict_places is None or strict_places.choose(state.locality) is not None]
    if not allowed:
        raise Refused(f"With strict, no node is left: none has a URI for its locality among {describe(there)}.")
    reasons = why_not_used(
        states, execution_locality=execution_locality, strict_places=strict_places, max_replay_lag=max_replay_lag
    )
    usable = [state for state in states if state.name not in reasons]
    if not usable:
        told = [state.model_copy(update={"reason": reasons[state.name]}) for state in allowed]
        raise Retryable(f"No node that may read tables can be used at the moment: {describe(told)}.")
    return usable


def weight(state: NodeState) -> float:
    """The node's share of the work, relative to that of an idle standby."""
    return (_PRIMARY_SHARE if state.role == "primary" else 1.0) / (1 + state.active / _HALVED_BY)


def _readers(usable: Sequence[NodeState], place: Locality | None) -> tuple[int, ...]:
    """The nodes, by their number, that are where the table belongs."""
    return tuple(number for number, state in enumerate(usable) if place is None or place.matches(state.locality))


def _pack(
    spans: Sequence[Span], readers: Mapping[TableKey, tuple[int, ...]], workers: int
) -> list[tuple[list[Span], tuple[int, ...]]]:
    """Spans that the same nodes may read, in their order, put together up to a size.

    Of neighbours that were not put together the sum exceeds it, so there are at most MAX_BATCHES of them.
    """
    total = sum(span.estimated_bytes for span in spans)
    most = max(1, MAX_BATCHES - len(set(readers.values())))
    aim = max(MIN_BATCH_BYTES, min(BATCH_BYTES, total // (workers * 4)), -(-2 * total // most))
    packed: list[tuple[list[Span], tuple[int, ...]]] = []
    last: dict[tuple[int, ...], list[Span]] = {}
    sizes: dict[tuple[int, ...], int] = {}
    for span in spans:
        able = readers[span.database, span.table_oid]
        if able not in last or sizes[able] + span.estimated_bytes > aim:
            last[able], sizes[able] = [], 0
            packed.append((last[able], able))
        last[able].append(span)
        sizes[able] += span.estimated_bytes
    return packed


def _bytes(spans: Iterable[Span]) -> int:
    return sum(span.estimated_bytes for span in spans)


def _deal_out(packed: Sequence[tuple[list[Span], tuple[int, ...]]], usable: Sequence[NodeState]) -> list[int]:
    """The node of each group."""
    loads = [0] * len(usable)
    weights = [weight(state) for state in usable]
    chosen = [0] * len(packed)
    sizes = [_bytes(group) for group, _ in packed]
    for place in sorted(range(len(packed)), key=lambda place: (len(packed[place][1]), -sizes[place], place)):
        size = sizes[place]
        best = min(packed[place][1], key=lambda node: ((loads[node] + size) / weights[node], -weights[node], node))
        chosen[place] = best
        loads[best] += size
    return chosen


def _interleaved(packed: Sequence[tuple[list[Span], tuple[int, ...]]], chosen: Sequence[int]) -> list[int]:
    """An order in which every node has its first group before any has its second, for work begins at the front."""
    turns: dict[int, int] = {}
    order = []
    for place in range(len(packed)):
        turn = turns[chosen[place]] = turns.get(chosen[place], 0) + 1
        order.append((turn, place))
    return [place for _, place in sorted(order)]


def _preferred(
    usable: Sequence[NodeState], first: int, able: Sequence[int], others: Sequence[int], *, turn: int
) -> tuple[str, ...]:
    """The chosen node, those that are where the table belongs, others; near ones before far ones, the primary last. Equal
    ones in another order each `turn`, so that a node that fails leaves its work to all."""
    tiers = set(usable[first].locality.tiers)

    def rank(node: int) -> tuple[bool, bool, int, int]:
        state = usable[node]
        shared = len(tiers & set(state.locality.tiers))
        return state.role == "primary", node not in able, -shared, (node - turn) % len(usable)

    return (usable[first].name, *(usable[node].name for node in sorted(set(others) - {first}, key=rank)))
