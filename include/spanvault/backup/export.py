"""Exporting spans: each in a short transaction of its own, on any worker, again after any failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from spanvault.backup.context import Run
from spanvault.backup.span_session import SpanSession, open_node
from spanvault.collection.layout import data_path, object_key
from spanvault.collection.receipts import put_receipt, read_receipts
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.catalog import read_tables
from spanvault.database.postgres.copy_out import WrittenFile, export_query
from spanvault.database.postgres.quoting import literal, qualified
from spanvault.database.postgres.rows import select_slice
from spanvault.errors import BadInput, NotFound, Retryable
from spanvault.model.base import Value
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile, PlannedDatabase, Receipt
from spanvault.model.schema import Table
from spanvault.model.span import Span
from spanvault.model.uri import DEFAULT_LOCALITY

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
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
    done = read_receipts(run.storage, run.plan.subdir, run.plan.number)
    work = _Work([span for span in batch.spans if span.id not in done])
    count = len(work.missing)
    *others, last = _endpoints(run, batch.nodes)
    told = []
    for endpoint in others:
        try:
            work.export_on(run, endpoint, run.wait_seconds)
        except (Retryable, BadInput) as error:
            told.append(f"{error} Node {endpoint.node} hands {len(work.missing)} spans on to the next one.")
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
                for span in [span for span in self.missing if span.database == database]:
                    run.reached("export.before_span")
                    with node.turn():
                        receipt = _export_span(run, node, by_name[database], span)
                    self.missing.remove(span)
                    self.rows += receipt.file.rows if receipt else 0
                    self.bytes += receipt.file.bytes if receipt else 0
                    run.progress.advance(rows=receipt.file.rows if receipt else 0, bytes_=span.estimated_bytes, units=1)


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
    receipt = Receipt(
        span=span.id,
        file=data_file(path, written, span.database, table, role="base", span=span.id, tier=node.tier),
        filenode=live.filenode,
        table_fingerprint=live.fingerprint(),
        seen_lsn=seen,
        timeline=timeline,
        node=node.endpoint.node,
        written_at=run.clock(),
    )
    winner = put_receipt(run.storage, run.plan.subdir, run.plan.number, receipt)
    run.reached("export.after_receipt")
    return winner


class Session(Protocol):
    """What reading under a lock needs of a session."""

    def execute(self, sql: str, /) -> None:
        """Run a statement."""

    def fetch_row(self, sql: str, /) -> tuple[Any, ...] | None:
        """The first row, or None."""

    def fetch_all(self, sql: str, /) -> list[tuple[Any, ...]]:
        """All rows."""


def lock_and_check(session: Session, table: Table, reached: Reached = pass_by) -> Table | None:
    """Lock the table in the open transaction and return it as the transaction's snapshot shows it, None if it is gone.

    A snapshot that is older than a rewrite or TRUNCATE reads the table as empty, without an error. The lock keeps new
    ones away; the file as the snapshot sees it and the file of now must then be the same. Raises SnapshotTooOld when
    they are not, NotFound when the table's name is gone meanwhile, Busy when the lock is not to be had.
    """
    session.execute(_LOCK_TIMEOUT)
    tables = read_tables(session.fetch_all, [table.oid])
    if not tables:
        return None
    reached("read.after_snapshot")
    seen = tables[0]
    name = qualified(seen.schema_name, seen.name)
    session.execute(f"LOCK TABLE ONLY {name} IN ACCESS SHARE MODE")
    if not reads_live_table(session, table, name):
        raise SnapshotTooOld(f"The table {table.qualified} was rewritten, truncated, altered or renamed at this very moment.")
    return seen


def reads_live_table(session: Session, table: Table, name: str) -> bool:
    """Whether the snapshot's file and columns of the table are the live ones, and `name` still means this table.

    A query's columns are looked up in the live catalogs, whatever the snapshot: a column that was dropped and added again
    would read as empty, and a whole row has the columns of now. pg_identify_object, too, tells how a column is now.
    """
    live = "(pg_catalog.pg_identify_object('pg_catalog.pg_class'::pg_catalog.regclass, c.oid, {})).identity"
    row = session.fetch_row(
        f"SELECT c.relfilenode::int8, pg_catalog.pg_relation_filenode(c.oid)::int8,"
        f" pg_catalog.to_regclass({literal(name)})::oid::int8,"
        f" {live.format('c.relnatts + 1')} IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a"
        "  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        f" AND {live.format('a.attnum')} IS DISTINCT FROM {live.format('0')} || '.' || pg_catalog.quote_ident(a.attname))"
        f" FROM pg_catalog.pg_class c WHERE c.oid = {table.oid}"
    )
    return row is not None and row[0] == row[1] and row[2] == table.oid and row[3]


class SnapshotTooOld(Retryable):
    """A table was rewritten between a snapshot and its lock: the snapshot would read it as empty."""


def data_file(
    path: str,
    written: WrittenFile,
    database: str,
    table: Table,
    *,
    role: Any,
    span: str | None = None,
    as_of: Lsn | None = None,
    tier: str | None = None,
) -> DataFile:
    """The file list's row for what was just written, at the URI of the locality `tier` if one is given."""
    return DataFile(
        path=path,
        sha256=written.sha256,
        bytes=written.bytes,
        rows=written.rows,
        database=database,
        table_oid=table.oid,
        role=role,
        span=span,
        as_of=as_of,
        locality=tier or DEFAULT_LOCALITY,
        text_columns=tuple(sorted(written.text_columns)),
    )
