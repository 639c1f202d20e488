"""From a window of the change log to change files: decoding, chunks, writing."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from spanvault.backup.change_files import ChangeFiles, ChangeRow
from spanvault.backup.changes import Entry, TableChanges
from spanvault.database.postgres.pgoutput import TableSink, Window, decode
from spanvault.errors import Retryable
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table
from spanvault.storage.base import Storage


class ChangeLog:
    """Gathers a database's window into change files; what does not fit into `chunk_bytes` of memory is written as it
    comes, in several files of rising `sequence`."""

    def __init__(
        self,
        storage: Storage,
        subdir: str,
        number: int,
        database: str,
        *,
        tier: str | None = None,
        chunk_bytes: int = 128 << 20,
    ) -> None:
        self._files = ChangeFiles(storage, subdir, number, database, tier)
        self._chunk_bytes = chunk_bytes
        self._held_bytes = 0
        self.tables: dict[int, TableChanges] = {}
        self.window = Window()

    def track(self, tables: Iterable[Table]) -> None:
        """Follow these tables; the changes of others are skipped."""
        for table in tables:
            self.tables[table.oid] = TableChanges(table, self._grow)

    def read(self, messages: Iterable[bytes], start: Lsn, end: Lsn) -> None:
        """Decode `[start, end)` and write it all out."""
        sinks: dict[int, TableSink] = dict(self.tables)
        with collector_paused():
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
        if rows:
            changes.files.append(self._files.write(changes.table, rows))

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
def collector_paused() -> Iterator[None]:
    """Without Python's cycle collector: it would walk the growing, cycle-free heap of changes again and again, for a
    third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def files_of(tables: Mapping[int, TableChanges]) -> list[DataFile]:
    """The change files of all tables that count."""
    return [file for changes in tables.values() for file in changes.files]
