"""The planner: every page of every table exactly once, in batches that fit Airflow."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.backup.plan import (
    MAX_BATCHES,
    MAX_SPANS,
    MIN_BATCH_BYTES,
    batches_of,
    databases_of,
    select_tables,
    slices_of,
    span_size,
    spans_of,
)
from spanvault.model.schema import Column, Database, Table
from spanvault.model.target import SchemaTarget, TablePattern, TableTarget

ID = Column(attnum=1, name="id", type_oid=23, type_name="integer", typmod=-1, base_type="int4", type_kind="b")


def table(oid: int, pages: int, size: int, name: str = "") -> Table:
    return Table(
        oid=oid, schema_name="public", name=name or f"t{oid}", columns=(ID,), key=(1,), capture="log", pages=pages, bytes=size
    )


def database(*tables: Table) -> Database:
    return Database(name="d", oid=5, encoding="UTF8", collate="C", ctype="C", owner="o", tables=tables)


@settings(deadline=None, max_examples=50)
@given(pages=st.integers(0, 10_000_000), bytes_a_page=st.integers(0, 100_000), span_bytes=st.integers(64 << 20, 1 << 34))
def test_slices_cover_every_page_once(pages: int, bytes_a_page: int, span_bytes: int) -> None:
    slices = slices_of(table(1, pages, pages * bytes_a_page), span_bytes)
    assert slices[0][0] == 0
    assert slices[-1][1] is None, "pages that the table grows meanwhile belong to the last slice"
    for (_, end), (first, _) in pairwise(slices):
        assert end == first
        assert first > 0
    assert len(slices) == 1 or all(first < pages for first, _ in slices)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=60),
    span_bytes=st.sampled_from([1 << 20, 64 << 20]),
    workers=st.integers(1, 64),
)
def test_batches_hold_every_span_once_in_order(sizes: list[int], span_bytes: int, workers: int) -> None:
    source = database(*(table(100 + index, pages, pages * 8192) for index, pages in enumerate(sizes)))
    spans = list(spans_of(source, span_bytes))
    batches = batches_of(spans, {("d", t.oid): t.name for t in source.tables}, workers)
    assert [span for batch in batches for span in batch.spans] == spans
    assert len({span.id for span in spans}) == len(spans)
    assert len(batches) <= MAX_BATCHES
    assert [batch.index for batch in batches] == list(range(len(batches)))
    largest = max((span.estimated_bytes for span in spans), default=0)
    total = sum(span.estimated_bytes for span in spans)
    if len(spans) <= MAX_BATCHES:
        assert all(b.estimated_bytes <= max(MIN_BATCH_BYTES, -(-total // (workers * 4))) + largest for b in batches)


def test_a_hundred_terabytes_fit_into_airflows_limit_of_mapped_tasks() -> None:
    source = database(*(table(oid, 2**31, 2**31 * 8192) for oid in range(1, 7)))
    spans = list(spans_of(source, span_size([source], 64 << 20)))
    assert len(spans) <= MAX_SPANS + len(source.tables)
    batches = batches_of(spans, {("d", t.oid): t.name for t in source.tables}, 60)
    assert len(batches) <= 1000
    mean = sum(batch.estimated_bytes for batch in batches) / len(batches)
    assert max(batch.estimated_bytes for batch in batches) < 2.1 * mean


def test_labels_say_which_slices_of_which_tables() -> None:
    source = database(table(1, 6000, 6000 * 8192, "orders"), table(2, 1, 8192, "notes"))
    spans = list(spans_of(source, 8 << 20))
    labels = [batch.label for batch in batches_of(spans, {("d", 1): "public.orders", ("d", 2): "public.notes"}, 1)]
    assert labels == ["public.orders 1-4/6", "public.orders 5-6/6, public.notes"]


def test_targets_select_by_schema_and_pattern_of_their_own_database() -> None:
    tables = [table(1, 1, 1, "a"), table(2, 1, 1, "b").model_copy(update={"schema_name": "s"})]
    only_s = SchemaTarget(names=((None, "s"), ("other", "public")))
    assert [t.name for t in select_tables(only_s, "d", "d", tables)] == ["b"]
    patterns = TableTarget(patterns=(TablePattern(database="other", name="a"), TablePattern(schema_name="s")))
    assert [t.name for t in select_tables(patterns, "d", "d", tables)] == ["b"]
    assert [t.name for t in select_tables(patterns, "other", "d", tables)] == ["a"]
    assert databases_of(patterns, ["d", "other"], "d") == ["other", "d"]
