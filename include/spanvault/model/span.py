"""Spans, the units of export, and batches of them, the units of work."""

from __future__ import annotations

from spanvault.model.base import Value


class Span(Value):
    """A table, or the slice of one between two heap pages: `first_page <= page < end_page` (None: to the end, pages
    that the table grows included)."""

    id: str
    database: str
    table_oid: int
    first_page: int = 0
    end_page: int | None = None
    estimated_bytes: int = 0


class Batch(Value):
    """Spans that one task exports, in order. `label` is for people: which tables. `nodes` are the names of those that may
    read them, the chosen one first; none: the primary."""

    index: int
    label: str
    spans: tuple[Span, ...]
    estimated_bytes: int = 0
    nodes: tuple[str, ...] = ()


def span_id(database_oid: int, table_oid: int, first_page: int) -> str:
    """A span's name, the same in every planning of the same slice; sorts by table, then page."""
    return f"{database_oid}-{table_oid}-{first_page:010d}"
