"""From a window of the change log to change files: decoding, chunks, writing."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import pyarrow as pa

from spanvault.backup.changes import Entry, TableChanges
from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import file_schema
from spanvault.columnar.write import DataFileWriter, text_batch_to_typed
from spanvault.database.postgres.pgoutput import TableSink, Value, Window, commit_time, decode
from spanvault.errors import Retryable
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table
from spanvault.storage.base import Storage

CHANGE_FIELDS = (
    pa.field("_op", pa.string()),
    pa.field("_lsn", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_time", pa.timestamp("us", tz="UTC")),
)
_BATCH_ROWS = 10_000

ChangeRow = tuple[Entry, list[Value]]


class ChangeLog:
    """Gathers a database's window into change files; what does not fit into `chunk_bytes` of memory is written as it
    comes, in several files of rising `sequence`."""

    def __init__(self, storage: Storage, subdir: str, number: int, database: str, chunk_bytes: int = 128 << 20) -> None:
        self._storage = storage
        self._subdir = subdir
        self._number = number
        self._database = database
        self._chunk_bytes = chunk_bytes
        self._held_bytes = 0
        self._sequence = 0
        self.tables: dict[int, TableChanges] = {}
        self.window = Window()

    def track(self, tables: Iterable[Table]) -> None:
        """Follow these tables; the changes of others are skipped."""
        for table in tables:
            self.tables[table.oid] = TableChanges(table, self._grow)

    def read(self, messages: Iterable[bytes], start: Lsn, end: Lsn) -> None:
        """Decode `[start, end)` and write it all out."""
        sinks: dict[int, TableSink] = dict(self.tables)
        with _collector_paused():
            decode(self._flushing(messages), sinks, start, end, self.window)
            self.flush()

    def read_small(self, messages: Iterable[bytes], start: Lsn, end: Lsn) -> dict[int, dict[tuple[bytes | None, ...], Entry]]:
        """Decode a short window whole in memory and hand over its entries by table, unwritten.

        Raises Retryable when it is not short.
        """
        sinks: dict[int, TableSink] = dict(self.tables)
        decode(self._refusing_growth(messages), sinks, start, end, self.window)
        self._held_bytes = 0
        return {oid: changes.entries for oid, changes in self.tables.items() if changes.entries}

    def flush(self) -> None:
        """Write every table's chunk."""
        for changes in self.tables.values():
            if changes.entries:
                chunk = changes.take()
                self.write(changes, list(changes.rows(chunk)))
        self._held_bytes = 0

    def write(self, changes: TableChanges, rows: Sequence[ChangeRow]) -> None:
        """Write one change file of the table; later calls count as later changes."""
        if not rows:
            return
        self._sequence += 1
        text_columns: frozenset[str] = frozenset()
        while True:
            failed = self._try_write(changes, rows, text_columns)
            if not failed:
                return
            text_columns |= failed

    def _try_write(self, changes: TableChanges, rows: Sequence[ChangeRow], text_columns: frozenset[str]) -> frozenset[str]:
        """One file with these columns as text; the columns that do not convert otherwise, if any (no file then)."""
        table = changes.table
        schema = file_schema(table, text_columns)
        path = data_path(self._number)
        try:
            with DataFileWriter(self._storage, object_key(self._subdir, path), change_schema(schema)) as writer:
                for batch in _batches(rows, table):
                    typed, failed = text_batch_to_typed(batch.select([field.name for field in schema]), schema)
                    if failed:
                        raise _NotConvertibleError(failed)
                    arrays = [batch.column(field.name) for field in CHANGE_FIELDS] + typed.columns
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=change_schema(schema)))
        except _NotConvertibleError as error:
            return error.columns
        changes.files.append(
            DataFile(
                path=path,
                sha256=writer.sha256,
                bytes=writer.bytes,
                rows=writer.rows,
                database=self._database,
                table_oid=table.oid,
                role="change",
                sequence=self._sequence,
                text_columns=tuple(sorted(text_columns)),
            )
        )
        return frozenset()

    def _grow(self, size: int) -> None:
        self._held_bytes += size

    def _flushing(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        for message in messages:
            if self._held_bytes > self._chunk_bytes:
                self.flush()
            yield message

    def _refusing_growth(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        for message in messages:
            if self._held_bytes > self._chunk_bytes:
                raise Retryable("Too much was written between the cuts of two databases; the seal is tried again.")
            yield message


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's cycle collector: it would walk the growing, cycle-free heap of changes again and again, for a
    third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _NotConvertibleError(Exception):
    """Values that a typed column cannot hold; ends the file being written."""

    def __init__(self, columns: Iterable[str]) -> None:
        super().__init__()
        self.columns = frozenset(columns)


def change_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of a change file over a table's data columns."""
    return pa.schema([*CHANGE_FIELDS, *schema])


def _batches(rows: Sequence[ChangeRow], table: Table) -> Iterator[pa.RecordBatch]:
    """The rows as batches of text columns behind the change fields."""
    names = [column.stored_as for column in table.data_columns]
    iterator = iter(rows)
    while part := list(islice(iterator, _BATCH_ROWS)):
        entries = [entry for entry, _ in part]
        arrays = _change_arrays(entries)
        columns = zip(*(values for _, values in part), strict=True)
        # Binary first: the bytes are UTF-8 by the session's client_encoding, so the cast only checks them.
        arrays += [pa.array(column, pa.binary()).cast(pa.string()) for column in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=[field.name for field in CHANGE_FIELDS] + names)


def _change_arrays(entries: Sequence[Entry]) -> list[pa.Array]:
    return [
        pa.array([entry.operation for entry in entries], pa.string()),
        pa.array([entry.change.lsn for entry in entries], pa.int64()),
        pa.array([entry.change.sequence for entry in entries], pa.int64()),
        pa.array([entry.change.xid for entry in entries], pa.int64()),
        pa.array([commit_time(entry.change.time) for entry in entries], pa.timestamp("us", tz="UTC")),
    ]


def files_of(tables: Mapping[int, TableChanges]) -> list[DataFile]:
    """The change files of all tables that count."""
    return [file for changes in tables.values() for file in changes.files]
