"""Exporting spans: each in a short transaction of its own, on any worker, again after any failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spanvault.backup.context import Run
from spanvault.backup.live_table import SnapshotTooOld, lock_and_check
from spanvault.backup.small_tables import export_together, together
from spanvault.backup.span_files import leave_receipt
from spanvault.backup.span_session import SpanSession, open_node
from spanvault.collection.layout import data_path, object_key
from spanvault.collection.receipts import spans_received
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.copy_out import export_query
from spanvault.database.postgres.rows import select_slice
from spanvault.errors import BadInput, NotFound, Retryable
from spanvault.model.base import Value
from spanvault.model.manifest import PlannedDatabase, Receipt
from spanvault.model.schema import Table
from spanvault.model.sentences import counted
from spanvault.model.span import Span

_SPAN_TRIES = 5
# A batch is tried on so many nodes; the last one, which has no other behind it, is waited for longer.
_MAX_NODES = 4
_LAST_NODES_PATIENCE = 10


class BatchSummary(Value):
    """What a batch came to. `skipped` spans had their receipt already. `told` are the notes that were made: a worker process
    has nobody to read them."""

    index: int
    spans: int
    skipped: int
    rows: int
    bytes: int
    told: tuple[str, ...] = ()


def export_batch(run: Run, index: int) -> BatchSummary:
    """Export the batch's spans that have no receipt yet, on the node that the plan chose, or on the next one that works.

    Safe to repeat and to run twice at once: data files have unique names and a span's first receipt wins. Raises
    Retryable for lost connections and locks, Refused after a promotion.
    """
    batch = run.plan.batches[index]
    done = spans_received(run.storage, run.plan.subdir, run.plan.number, [span.id for span in batch.spans])
    work = _Work([span for span in batch.spans if span.id not in done])
    count = len(work.missing)
    *others, last = _endpoints(run, batch.nodes)
    told = []
    for endpoint in others:
        try:
            work.export_on(run, endpoint, run.wait_seconds)
        except (Retryable, BadInput) as error:
            told.append(f"{error} Node {endpoint.node} hands {counted(len(work.missing), 'span')} on to the next one.")
            run.progress.note(told[-1])
    work.export_on(run, last, run.wait_seconds * _LAST_NODES_PATIENCE)
    skipped = len(batch.spans) - count
    return BatchSummary(index=index, spans=count, skipped=skipped, rows=work.rows, bytes=work.bytes, told=tuple(told))


def _endpoints(run: Run, nodes: Sequence[str]) -> list[Endpoint]:
    """The nodes that a batch is tried on: the first of those that the plan names, and the last, which is the primary if it
    may read."""
    if not nodes:
        return [run.cluster.primary]
    found = [endpoint for endpoint in map(run.cluster.endpoint, nodes) if endpoint is not None]
    if not found:
        raise NotFound(f"Cluster {run.cluster.name!r} has none of the nodes {', '.join(nodes)} any more, which were to be read.")
    return found if len(found) <= _MAX_NODES else [*found[: _MAX_NODES - 1], found[-1]]


@dataclass
class _Work:
    """The spans of a batch that are still to be read, and what those that were came to."""

    missing: list[Span]
    rows: int = 0
    bytes: int = 0

    def export_on(self, run: Run, endpoint: Endpoint, patience: float) -> None:
        by_name = {entry.database.name: entry for entry in run.plan.databases}
        for database in dict.fromkeys(span.database for span in self.missing):
            with open_node(run, endpoint, by_name[database], patience) as node:
                for spans in together([span for span in self.missing if span.database == database]):
                    run.reached("export.before_span")
                    with node.turn():
                        receipts = _export_spans(run, node, by_name[database], spans)
                    for span, receipt in zip(spans, receipts, strict=True):
                        self._done(run, span, receipt)

    def _done(self, run: Run, span: Span, receipt: Receipt | None) -> None:
        self.missing.remove(span)
        self.rows += receipt.file.rows if receipt else 0
        self.bytes += receipt.file.bytes if receipt else 0
        run.progress.advance(rows=receipt.file.rows if receipt else 0, bytes_=span.estimated_bytes, units=1)


def _export_spans(run: Run, node: SpanSession, planned: PlannedDatabase, spans: Sequence[Span]) -> list[Receipt | None]:
    """Read spans in one transaction if that goes smoothly, else each in its own."""
    if len(spans) > 1 and (receipts := export_together(run, node, planned.database, spans)) is not None:
        return [receipts.get(span.id) for span in spans]
    return [_export_span(run, node, planned, span) for span in spans]


def _export_span(run: Run, node: SpanSession, planned: PlannedDatabase, span: Span) -> Receipt | None:
    """Read one span and leave its receipt; None when its table is gone or has another shape (the seal deals with it)."""
    table = planned.database.table(span.table_oid)
    if table is None:
        return None
    for left in reversed(range(_SPAN_TRIES)):
        node.copy.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return _read_span(run, node, table, span)
        except (SnapshotTooOld, NotFound):
            # Rewritten, renamed or dropped between snapshot and lock: a new snapshot sees how it is now.
            node.copy.execute("ROLLBACK")
            if not left:
                raise
    return None


def _read_span(run: Run, node: SpanSession, table: Table, span: Span) -> Receipt | None:
    session = node.copy
    live = lock_and_check(session, table, run.reached)
    if live is None or live.fingerprint() != table.fingerprint():
        session.execute("ROLLBACK")
        return None
    path = data_path(run.plan.number, node.tier)
    query = select_slice(live, span.first_page, span.end_page)
    written = export_query(session, query, table, node.data, object_key(run.plan.subdir, path))
    run.reached("export.after_data")
    seen, timeline = node.seen()
    session.execute("COMMIT")
    node.settle(seen)
    return leave_receipt(run, node, span, live, path, written, seen, timeline)
