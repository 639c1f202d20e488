"""The figures of docs/scale.md are what the planner makes of the clusters that the page describes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from spanvault.backup.assign import assign
from spanvault.backup.plan import MAX_BATCHES, MAX_SPANS, span_size, spans_of
from spanvault.database.postgres.nodes import NodeState
from spanvault.model.locality import Locality
from spanvault.model.request import BackupOptions
from spanvault.model.schema import Column, Database, Table
from spanvault.model.span import Batch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()
ID = Column(attnum=1, name="id", type_oid=23, type_name="integer", typmod=-1, base_type="int4", type_kind="b")
GIB, TIB = 1 << 30, 1 << 40
CLUSTERS = [(50, 3, 10 * GIB), (500, 3, TIB), (5000, 12, 10 * TIB), (5000, 60, 100 * TIB)]


@dataclass(frozen=True)
class Figures:
    """What a plan consists of."""

    spans: int
    span_bytes: int
    batches: tuple[Batch, ...]

    @property
    def shares(self) -> Counter[str]:
        """The bytes that each node is chosen for."""
        found: Counter[str] = Counter()
        for batch in self.batches:
            found[batch.nodes[0]] += batch.estimated_bytes
        return found


@cache
def planned(tables: int, nodes: int, total: int) -> Figures:
    """A plan for tables of which the n-th largest has an n-th of the largest one's bytes, on idle nodes."""
    whole = sum(1 / rank for rank in range(1, tables + 1))
    listed = tuple(table(16384 + rank, int(total / rank / whole)) for rank in range(1, tables + 1))
    source = Database(name="d", oid=5, encoding="UTF8", collate="C", ctype="C", owner="o", tables=listed)
    options = BackupOptions()
    span_bytes = span_size([source], options.span_bytes)
    spans = list(spans_of(source, span_bytes))
    batches = assign(
        spans,
        [node("primary", "primary"), *(node(f"standby{number}", "standby") for number in range(1, nodes))],
        table_locality={},
        execution_locality="",
        strict_places=None,
        max_replay_lag=None,
        names={("d", one.oid): one.name for one in source.tables},
        workers=options.workers,
    )
    return Figures(len(spans), span_bytes, batches)


def table(oid: int, size: int) -> Table:
    return Table(
        oid=oid, schema_name="public", name=f"t{oid}", columns=(ID,), key=(1,), capture="log", pages=size >> 13, bytes=size
    )


def node(name: str, role: str) -> NodeState:
    return NodeState.model_validate({
        "name": name, "locality": Locality.parse(""), "role": role, "active": 0, "timeline": 1, "replay_lag": 0,
    })  # fmt: skip


def size_of(count: float) -> str:
    """Bytes as the page has them: with two digits at least below 10."""
    unit, name = next((unit, name) for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (1 << 20, "MiB")) if count >= unit)
    return f"{count / unit:.1f} {name}" if count < 10 * unit and count % unit else f"{count / unit:,.0f} {name}"


def row(tables: int, nodes: int, total: int) -> str:
    plan = planned(tables, nodes, total)
    largest = max(batch.estimated_bytes for batch in plan.batches)
    stored = sum(len(batch.to_json()) for batch in plan.batches)
    figures = [
        f"{tables:,}", str(nodes), size_of(total), f"{plan.spans:,}", size_of(plan.span_bytes), str(len(plan.batches)),
        size_of(largest), f"{stored / 1e6:.2g} MB",
    ]  # fmt: skip
    return f"| {' | '.join(figures)} |"


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_figures_are_the_planners(cluster: tuple[int, int, int]) -> None:
    assert row(*cluster) in PAGE.splitlines()


def test_no_other_figures_stand_there() -> None:
    assert len(re.findall(r"^\| [\d,]+ \| \d+ \|", PAGE, re.MULTILINE)) == len(CLUSTERS)


def test_what_is_said_of_the_largest_cluster_is_true() -> None:
    plan = planned(*CLUSTERS[-1])
    largest = max(batch.estimated_bytes for batch in plan.batches)
    assert f"a batch of {size_of(largest)} costs no more than {size_of(plan.span_bytes)}" in PAGE
    primary, *standbys = (plan.shares[name] // GIB for name in sorted(plan.shares))
    assert f"each standby gets {min(standbys):,} to {max(standbys):,} GiB and the primary {primary:,}" in PAGE


def test_the_limits_are_the_planners() -> None:
    assert f"about {MAX_SPANS:,} spans at most" in PAGE
    assert f"about\n{MAX_BATCHES:,} batches" in PAGE
    for cluster in CLUSTERS:
        plan = planned(*cluster)
        assert plan.spans <= MAX_SPANS + cluster[0]
        assert len(plan.batches) <= MAX_BATCHES
