"""Planning: which tables, which spans, which batches. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from spanvault.errors import NotFound
from spanvault.model.schema import Database, Table
from spanvault.model.sentences import few
from spanvault.model.span import Batch, Span, span_id
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, Target

# Airflow maps one task to each batch and refuses more than 1,024.
MAX_BATCHES = 1000
# The plan names every span, and stays a document that one can read at once.
MAX_SPANS = 50_000
BATCH_BYTES = 256 << 20
MIN_BATCH_BYTES = 32 << 20


def databases_of(target: Target, existing: Sequence[str], connected: str) -> list[str]:
    """The databases that a target touches, in order. Raises NotFound naming those that do not exist."""
    if isinstance(target, ClusterTarget):
        return list(existing)
    if isinstance(target, DatabaseTarget):
        wanted = list(target.names)
    elif isinstance(target, SchemaTarget):
        wanted = [database or connected for database, _ in target.names]
    else:
        wanted = [pattern.database or connected for pattern in target.patterns]
    missing = sorted(set(wanted) - set(existing))
    if missing:
        raise NotFound(f"The cluster has no database {', '.join(map(repr, missing))}; it has {', '.join(existing)}.")
    return list(dict.fromkeys(wanted))


def takes_whole(target: Target) -> bool:
    """Whether the target is of whole databases: large objects and extensions' configuration are in no part of one."""
    return isinstance(target, ClusterTarget | DatabaseTarget)


def select_tables(target: Target, database: str, connected: str, tables: Iterable[Table]) -> tuple[Table, ...]:
    """The tables of `database` that the target names."""
    if isinstance(target, ClusterTarget | DatabaseTarget):
        return tuple(tables)
    tables = [table for table in tables if not table.whole_only]
    if isinstance(target, SchemaTarget):
        schemas = {schema for name, schema in target.names if (name or connected) == database}
        return tuple(table for table in tables if table.schema_name in schemas)
    patterns = [pattern for pattern in target.patterns if (pattern.database or connected) == database]
    return tuple(table for table in tables if any(_means(pattern, table) for pattern in patterns))


def _means(pattern: TablePattern, table: Table) -> bool:
    """Whether the pattern names the table, or one whose rows its rows are in PostgreSQL's eyes."""
    named = pattern.name is not None and any(matches(pattern, *above) for above in table.below)
    return named or matches(pattern, table.schema_name, table.name)


def matches(pattern: TablePattern, schema: str, name: str) -> bool:
    """Whether a table or view is meant by the pattern (its database left aside)."""
    return pattern.schema_name == schema and pattern.name in {None, name}


def slices_of(table: Table, span_bytes: int) -> list[tuple[int, int | None]]:
    """The table's slices as ranges of heap pages `first <= page < end`, sized by its bytes with TOAST; the last is
    open-ended (end None), so that pages which the table grows meanwhile belong to it. An extension's table is one slice:
    its condition is SQL that nothing can be added to."""
    if table.extension is not None:
        return [(0, None)]
    slices = max(1, min(table.pages, -(-table.bytes // span_bytes)))
    width = max(1, -(-table.pages // slices))
    firsts = list(range(0, table.pages, width)) or [0]
    return list(zip(firsts, [*firsts[1:], None], strict=True))


def span_size(databases: Iterable[Database], wanted: int) -> int:
    """The table bytes of a span: as wanted, but so that no more than MAX_SPANS come out of all databases."""
    total = sum(table.bytes for database in databases for table in database.tables)
    return max(wanted, -(-total // MAX_SPANS))


def spans_of(database: Database, span_bytes: int) -> Iterator[Span]:
    """The slices of all tables that are exported fuzzily, in the database's order of tables."""
    for table in database.tables:
        if table.capture != "log":
            continue
        slices = slices_of(table, span_bytes)
        for first, end in slices:
            yield Span(
                id=span_id(database.oid, table.oid, first),
                database=database.name,
                table_oid=table.oid,
                first_page=first,
                end_page=end,
                estimated_bytes=table.bytes // len(slices),
            )


def batches_of(spans: Sequence[Span], names: dict[tuple[str, int], str], workers: int) -> tuple[Batch, ...]:
    """Spans packed into batches of about equal size, at most MAX_BATCHES; neighbours stay together.

    Aims at BATCH_BYTES, but at no fewer than four batches a worker, so that the last ones do not leave workers idle; yet
    at MIN_BATCH_BYTES at least, below which a task costs more to start than to do.
    """
    total = sum(span.estimated_bytes for span in spans)
    aim = max(MIN_BATCH_BYTES, min(BATCH_BYTES, total // (workers * 4)), -(-total // (MAX_BATCHES // 2)))
    most = -(-len(spans) // MAX_BATCHES) if len(spans) > MAX_BATCHES else 0
    groups: list[list[Span]] = []
    size = 0
    for span in spans:
        full = bool(groups) and (size + span.estimated_bytes > aim and len(groups[-1]) >= most)
        if not groups or (full and len(groups) < MAX_BATCHES):
            groups.append([])
            size = 0
        groups[-1].append(span)
        size += span.estimated_bytes
    return numbered([(group, ()) for group in groups], spans, names)


def numbered(
    groups: Iterable[tuple[Sequence[Span], tuple[str, ...]]], spans: Iterable[Span], names: dict[tuple[str, int], str]
) -> tuple[Batch, ...]:
    """Groups of spans with the nodes that may read them as batches in this order; `spans` are all of them in the tables'
    order, for the labels."""
    spans = list(spans)
    slices = Counter((span.database, span.table_oid) for span in spans)
    seen: Counter[tuple[str, int]] = Counter()
    places: dict[str, int] = {}
    for span in spans:
        seen[span.database, span.table_oid] += 1
        places[span.id] = seen[span.database, span.table_oid]
    return tuple(
        Batch(
            index=index,
            label=_label(group, names, slices, places),
            spans=tuple(group),
            estimated_bytes=sum(span.estimated_bytes for span in group),
            nodes=nodes,
        )
        for index, (group, nodes) in enumerate(groups)
    )


def _label(
    spans: Sequence[Span], names: dict[tuple[str, int], str], slices: Counter[tuple[str, int]], places: dict[str, int]
) -> str:
    """For people: `public.orders 3-4/8, public.notes and 2 more`."""
    found = []
    for table in dict.fromkeys((span.database, span.table_oid) for span in spans):
        own = [places[span.id] for span in spans if (span.database, span.table_oid) == table]
        part = f" {own[0]}-{own[-1]}/{slices[table]}" if len(own) > 1 else f" {own[0]}/{slices[table]}"
        found.append(names[table] + (part if len(own) < slices[table] else ""))
    return few(found, 2)
