"""Small tables, many in one transaction.

Alone each would cost a dozen answers of the server, two waits for the log or the disk and, on an object store, two requests
one after the other: for thousands of tables that is the whole time of a backup. Their rows fit into memory, so that files
and receipts are written side by side. Whatever does not go smoothly is left to the way that large tables go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from spanvault.backup.context import Run
from spanvault.backup.live_table import SnapshotTooOld, lock_and_check_all
from spanvault.backup.span_files import leave_receipt
from spanvault.backup.span_session import SpanSession
from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.text_reader import ConversionNeeded
from spanvault.database.postgres.copy_out import WrittenFile, export_query, write_rows
from spanvault.database.postgres.rows import select_slice
from spanvault.errors import Busy, NotFound
from spanvault.model.manifest import Receipt
from spanvault.model.schema import Database, Table
from spanvault.model.span import Span

_MOST_SPANS = 64
_MOST_BYTES = 8 << 20  # of tables, as planned
_MOST_ROW_BYTES = 64 << 20  # of a group's rows, as they come: tables may have grown, and TOAST unpacks
_SIDE_BY_SIDE = 8
# Shorter than PostgreSQL waits before it looks for deadlocks (deadlock_timeout): who holds one of several locks and waits
# for the next gives up before anybody else could be made the victim.
_LOCK_TIMEOUT = "500ms"


class _TooLargeError(Exception):
    """A group's rows are not few any more."""


@dataclass(frozen=True)
class _Read:
    """A table whose rows have been read, and how to get its file."""

    span: Span
    table: Table
    path: str
    written: Callable[[], WrittenFile]


def together(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in their order; whole small tables that follow each other are one group."""
    group: list[Span] = []
    size = 0
    for span in spans:
        whole = span.first_page == 0 and span.end_page is None
        small = whole and span.estimated_bytes <= _MOST_BYTES
        if group and (not small or len(group) == _MOST_SPANS or size + span.estimated_bytes > _MOST_BYTES):
            yield group
            group, size = [], 0
        if small:
            group.append(span)
            size += span.estimated_bytes
        else:
            yield [span]
    if group:
        yield group


def export_together(run: Run, node: SpanSession, database: Database, spans: Sequence[Span]) -> dict[str, Receipt] | None:
    """Read whole tables in one transaction and leave their receipts, by span; a table that is gone or has another shape has
    none. None if a table is locked, was rewritten meanwhile or has become large: then nothing was done.
    """
    session = node.copy
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        files = _read_all(run, node, _live(run, node, database, spans))
    except (SnapshotTooOld, NotFound, Busy, _TooLargeError):
        session.execute("ROLLBACK")
        return None
    run.reached("export.after_data")
    seen, timeline = node.seen()
    session.execute("COMMIT")
    node.settle(seen)
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="receipts") as writers:
        receipts = writers.map(
            lambda one: leave_receipt(run, node, one[0].span, one[0].table, one[0].path, one[1], seen, timeline), files
        )
        return {receipt.span: receipt for receipt in receipts}


def _live(run: Run, node: SpanSession, database: Database, spans: Sequence[Span]) -> list[tuple[Span, Table]]:
    """The spans whose tables are there, in the shape that was planned, locked."""
    planned = {span.id: table for span in spans if (table := database.table(span.table_oid)) is not None}
    live = lock_and_check_all(node.copy, list(planned.values()), run.reached, timeout=_LOCK_TIMEOUT)
    return [
        (span, found)
        for span in spans
        if span.id in planned
        and (found := live.get(span.table_oid)) is not None
        and found.fingerprint() == planned[span.id].fingerprint()
    ]


def _read_all(run: Run, node: SpanSession, live: Sequence[tuple[Span, Table]]) -> list[tuple[_Read, WrittenFile]]:
    """Each table with its file. Raises _TooLargeError."""
    left = _MOST_ROW_BYTES
    reads = []
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="small-tables") as writers:
        try:
            for span, table in live:
                rows = _FewRows(left)
                reads.append(_read(run, node, span, table, rows, writers))
                left -= rows.bytes
            return [(read, read.written()) for read in reads]
        except BaseException:
            # What waits is not worth its writing any more: under a rate limit Ctrl-C would take minutes.
            writers.shutdown(wait=False, cancel_futures=True)
            raise


def _read(run: Run, node: SpanSession, span: Span, table: Table, rows: _FewRows, writers: ThreadPoolExecutor) -> _Read:
    """Read a table's rows now; they become a file while the next ones are read. Raises _TooLargeError."""
    path = data_path(run.plan.number, node.tier)
    key, query = object_key(run.plan.subdir, path), select_slice(table)
    node.copy.copy_out(query, rows.put)
    writing = writers.submit(write_rows, rows.chunks(), table, node.data, key, frozenset())

    def written() -> WrittenFile:
        try:
            return writing.result()
        except ConversionNeeded as needed:
            return export_query(node.copy, query, table, node.data, key, tuple(needed.columns))

    return _Read(span, table, path, written)


class _FewRows:
    """Rows in memory, as long as they are few; more are let go. (A COPY that is stopped would take its session along.)"""

    def __init__(self, most: int) -> None:
        self.bytes = 0
        self._most = most
        self._chunks: list[bytes] = []

    def put(self, chunk: bytes) -> None:
        """Keep the chunk, or none if all together are too long."""
        self.bytes += len(chunk)
        if self.bytes > self._most:
            self._chunks.clear()
        else:
            self._chunks.append(chunk)

    def chunks(self) -> Iterator[bytes]:
        """What was put. Raises _TooLargeError."""
        if self.bytes > self._most:
            raise _TooLargeError
        return iter(self._chunks)
