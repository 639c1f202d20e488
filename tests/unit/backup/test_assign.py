"""Which node reads what: every page once, in fair shares, where it may be read."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.backup.assign import assign, weight
from spanvault.backup.not_used import read_elsewhere, why_not_used
from spanvault.backup.plan import BATCH_BYTES, MAX_BATCHES, MIN_BATCH_BYTES, span_size, spans_of
from spanvault.database.postgres.nodes import NodeState
from spanvault.errors import Refused, Retryable
from spanvault.model.locality import Locality
from spanvault.model.places import Places
from spanvault.model.schema import Column, Database, Table
from spanvault.model.span import Batch, Span

AIRFLOW_LIMIT = 1024
PLACES = ("region=eu,zone=a", "region=eu,zone=b", "region=us,zone=a", "")
ID = Column(attnum=1, name="id", type_oid=23, type_name="integer", typmod=-1, base_type="int4", type_kind="b")
BOTH = Places.of([
    "s3://default/x?COCKROACH_LOCALITY=default&AUTH=implicit",
    "s3://eu/x?COCKROACH_LOCALITY=region%3Deu&AUTH=implicit",
])


def node(name: str, place: str = "", role: str = "standby", active: int = 0, **others: object) -> NodeState:
    return NodeState.model_validate({
        "name": name,
        "locality": Locality.parse(place),
        "role": role,
        "active": active,
        "timeline": 1,
        "replay_lag": 0,
        **others,
    })


def spans(*pages: int, span_bytes: int = 64 << 20) -> list[Span]:
    tables = tuple(
        Table(
            oid=oid, schema_name="public", name=f"t{oid}", columns=(ID,), key=(1,), capture="log", pages=count, bytes=count << 13
        )
        for oid, count in enumerate(pages, start=1)
    )
    source = Database(name="d", oid=5, encoding="UTF8", collate="C", ctype="C", owner="o", tables=tables)
    return list(spans_of(source, span_size([source], span_bytes)))


def planned(
    found: list[Span],
    nodes: list[NodeState],
    *,
    where: dict[int, str] | None = None,
    execution: str = "",
    strict: Places | None = None,
    lag: float | None = None,
    workers: int = 2,
) -> tuple[Batch, ...]:
    return assign(
        found,
        nodes,
        table_locality={("d", oid): Locality.parse(place) for oid, place in (where or {}).items()},
        execution_locality=execution,
        strict_places=strict,
        max_replay_lag=lag,
        names={("d", span.table_oid): f"public.t{span.table_oid}" for span in found},
        workers=workers,
    )


NODES = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 60)), max_size=11).map(
    lambda standbys: [
        node("primary", PLACES[0], "primary"),
        *(node(f"s{i}", place, active=n) for i, (place, n) in enumerate(standbys)),
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    pages=st.lists(st.integers(0, 200_000), min_size=1, max_size=30),
    nodes=NODES,
    workers=st.integers(1, 64),
    span_bytes=st.sampled_from([4 << 20, 64 << 20]),
)
def test_every_page_once_in_fair_shares(pages: list[int], nodes: list[NodeState], workers: int, span_bytes: int) -> None:
    found = spans(*pages, span_bytes=span_bytes)
    batches = planned(found, nodes, workers=workers)
    assert batches == planned(found, nodes, workers=workers), "the same every time"
    assert len(batches) <= MAX_BATCHES
    assert [batch.index for batch in batches] == list(range(len(batches)))
    dealt = [span for batch in batches for span in batch.spans]
    assert len({span.id for span in dealt}) == len(dealt)
    for oid in range(1, len(pages) + 1):
        slices = sorted((s.first_page, s.end_page) for s in dealt if s.table_oid == oid)
        assert slices[0][0] == 0
        assert all(end == first for (_, end), (first, _) in pairwise(slices))
        assert slices[-1][1] is None
    total = sum(span.estimated_bytes for span in found)
    aim = max(MIN_BATCH_BYTES, min(BATCH_BYTES, total // (workers * 4)), 2 * total // (MAX_BATCHES - 1) + 1)
    assert all(batch.estimated_bytes <= max(aim, *(s.estimated_bytes for s in batch.spans)) for batch in batches)
    largest = max(batch.estimated_bytes for batch in batches)
    loads = {state.name: 0 for state in nodes}
    for batch in batches:
        loads[batch.nodes[0]] += batch.estimated_bytes
        assert sorted(batch.nodes) == sorted(loads), "any other node may take over"
        assert batch.nodes[0] == "primary" or batch.nodes[-1] == "primary", "the primary is asked last"
    for one in nodes:
        for other in nodes:
            assert loads[one.name] / weight(one) <= (loads[other.name] + largest) / weight(other) * (1 + 1e-9)


def test_a_hundred_terabytes_on_sixty_nodes() -> None:
    nodes = [node("primary", PLACES[0], "primary"), *(node(f"s{n}", PLACES[n % 3], active=n % 7) for n in range(59))]
    found = spans(*[2**31] * 6, span_bytes=64 << 20)  # six times 16 TiB
    where = {1: "region=eu", 2: "region=us,zone=a", 3: "region=eu,zone=b"}
    batches = planned(found, nodes, where=where, workers=64)
    assert len(batches) <= MAX_BATCHES < AIRFLOW_LIMIT
    assert Counter(span.id for batch in batches for span in batch.spans) == Counter(span.id for span in found)
    assert len({batch.nodes[0] for batch in batches}) == 60
    mean = sum(batch.estimated_bytes for batch in batches) / len(batches)
    assert max(batch.estimated_bytes for batch in batches) < 2.5 * mean
    assert len({batch.nodes[0] for batch in batches[:60]}) >= 55, "the first sixty workers keep nearly all nodes busy"


def test_a_busy_node_gets_less_and_the_primary_half() -> None:
    batches = planned(spans(800_000), [node("primary", role="primary"), node("idle"), node("busy", active=10)], workers=64)
    loads = Counter[str]()
    for batch in batches:
        loads[batch.nodes[0]] += batch.estimated_bytes
    assert 0.4 < loads["primary"] / loads["idle"] < 0.6
    assert 0.4 < loads["busy"] / loads["idle"] < 0.6


def test_tables_are_read_where_they_belong() -> None:
    nodes = [
        node("primary", "region=eu,zone=a", "primary"),
        node("b", "region=eu,zone=b"),
        node("c", "region=eu,zone=b"),
        node("us", "region=us"),
    ]
    batches = planned(spans(20_000, 20_000, 20_000), nodes, where={1: "region=us", 2: "region=eu,zone=b", 3: "region=asia"})
    for batch in batches:
        (oid,) = {span.table_oid for span in batch.spans}
        if oid == 1:
            assert batch.nodes[0] == "us"
        if oid == 2:
            assert set(batch.nodes[:2]) == {"b", "c"}, "near ones take over before far ones"
        assert batch.nodes[0] == "primary" or batch.nodes[-1] == "primary"
    with pytest.raises(
        Refused, match=r"public\.t3 belongs to region=eu,zone=c, where the cluster has no node, and strict allows"
    ):
        planned(spans(1, 1, 1), nodes[:3], where={3: "region=eu,zone=c"}, strict=BOTH)


def test_strict_never_hands_a_table_to_another_locality() -> None:
    nodes = [node("primary", "region=eu,zone=a", "primary"), node("b", "region=eu,zone=b"), node("us", "region=us")]
    batches = planned(spans(20_000, 20_000), nodes, where={1: "region=eu,zone=b"}, strict=BOTH)
    assert {batch.nodes for batch in batches if batch.spans[0].table_oid == 1} == {("b",)}
    assert {name for batch in batches for name in batch.nodes} == {"primary", "b"}


def test_strict_says_what_keeps_the_nodes_there_from_reading() -> None:
    nodes = [node("primary", "region=eu", "primary"), node("us", "region=us,zone=a"), node("b", "region=us", replay_lag=40)]
    with pytest.raises(Refused) as caught:
        planned(spans(1), nodes, where={1: "region=us"}, strict=BOTH)
    assert str(caught.value) == (
        "The table public.t1 belongs to region=us, where no node may read (us: no URI is given for region=us or zone=a;"
        " b: no URI is given for region=us), and strict allows none elsewhere."
    )
    three = Places.of([*BOTH.revealed().split("\n"), "s3://us/x?COCKROACH_LOCALITY=region%3Dus&AUTH=implicit"])
    lagging = [nodes[0], nodes[2]]
    with pytest.raises(Refused, match=r"where no node may read \(b: is 40 s behind, allowed are 30 s\), and strict allows"):
        planned(spans(1), lagging, where={1: "region=us"}, strict=three, lag=30)


def told_of(
    nodes: list[NodeState], where: dict[int, str], places: Places, *, execution: str = "", lag: float | None = None
) -> list[str]:
    found = spans(*[20_000] * len(where))
    return read_elsewhere(
        planned(found, nodes, where=where, execution=execution, lag=lag),
        nodes,
        why_not_used(nodes, execution_locality=execution, strict_places=None, max_replay_lag=lag),
        {("d", oid): Locality.parse(place) for oid, place in where.items()},
        {("d", oid): f"public.t{oid}" for oid in where},
        places,
    )


def test_what_is_read_elsewhere_than_it_belongs_is_told() -> None:
    where = {1: "region=us", 2: "region=mars", 3: "region=eu", 4: "region=us"}
    nodes = [
        node("primary", "region=eu,zone=a", "primary"),
        node("us", "region=us", role="unreachable", reason="no route."),
        node("late", "region=asia", replay_lag=31),
    ]
    assert told_of(nodes, where, BOTH, lag=30) == [
        "Tables that belong to region=us, where no node may read (us: no route), are read by primary, and stored at the URI of"
        " region=eu: public.t1, public.t4 (tables: 2, spans: 6).",
        "Tables that belong to region=mars, where the cluster has no node, are read by primary, and stored at the URI of"
        " region=eu: public.t2 (tables: 1, spans: 3).",
        "The node late (region=asia) reads nothing: is 31 s behind, allowed are 30 s.",
    ]
    well = [nodes[0], node("us", "region=us"), node("mars", "region=mars")]
    assert told_of(well, where, BOTH, lag=30) == []
    (left_out,) = told_of(well, {1: "region=us"}, Places.of(["s3://one/x?AUTH=implicit"]), execution="region=mars")
    assert left_out == (
        "Tables that belong to region=us, where no node may read (us: EXECUTION LOCALITY = 'region=mars' leaves it out), are read"
        " by mars: public.t1 (tables: 1, spans: 3)."
    )


def test_rules_that_no_node_fits_are_refused() -> None:
    nodes = [node("primary", "region=eu", "primary"), node("us", "region=us", role="unreachable", reason="no route.")]
    with pytest.raises(Refused) as caught:
        planned(spans(1), nodes, execution="region=asia")
    assert str(caught.value) == (
        "No node matches EXECUTION LOCALITY = 'region=asia';"
        " the nodes are primary (region=eu, primary); us (region=us, unreachable: no route)."
    )
    with pytest.raises(Retryable, match=r"at the moment: us \(region=us, unreachable: no route\)\."):
        planned(spans(1), nodes, execution="region=us")
    with pytest.raises(Refused, match=r"the primary primary \(region=us\) needs a URI for its locality"):
        planned(spans(1), [node("primary", "region=us", "primary"), node("b", "region=eu")], strict=BOTH)
    with pytest.raises(Refused, match="no node is left"):
        planned(spans(1), [node("primary", "region=eu", "primary"), node("b", "region=us")], execution="region=us", strict=BOTH)


def test_nodes_that_lag_or_are_elsewhere_in_history_are_not_used() -> None:
    nodes = [
        node("primary", role="primary"),
        node("late", replay_lag=31),
        node("unknown", replay_lag=None),
        node("old", timeline=2),
        node("good", replay_lag=30),
    ]
    batches = planned(spans(100_000), nodes, lag=30, workers=64)
    assert {name for batch in batches for name in batch.nodes} == {"primary", "good"}
    assert "late" in {name for batch in planned(spans(100_000), nodes) for name in batch.nodes}
