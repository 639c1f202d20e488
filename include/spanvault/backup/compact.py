"""Compaction: one layer that stands for several, made from what is on storage; the source is not touched.

Files that hold a table whole are not copied: the new layer names those of the layers it stands for, which stay until their
chain goes. Change files are merged into one a table, or, with revision history, carried over one by one, so that nothing
that can be restored is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from spanvault.collection.chain import Layer
from spanvault.collection.commit import commit
from spanvault.collection.commits import CommitsWriter, read_commits
from spanvault.collection.files import read_files, write_files
from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import file_schema
from spanvault.columnar.write import DataFileWriter
from spanvault.errors import BadInput
from spanvault.merge.carry import carried_segments, reshaped_rows, reshaped_text_columns, same_columns
from spanvault.merge.changes import merged_changes, merged_schema, merged_text_columns
from spanvault.merge.history import TableLayer
from spanvault.model.clock import now
from spanvault.model.manifest import (
    DataFile,
    Manifest,
    ManifestDatabase,
    ManifestTable,
    ObjectReference,
    Totals,
    Window,
)
from spanvault.model.progress import Progress, Silent
from spanvault.model.schema import Table
from spanvault.model.uri import DEFAULT_LOCALITY
from spanvault.storage.base import Storage

TableKey = tuple[int, int]  # OIDs of database and table

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Compaction:
    """The merge of `layers`, a contiguous part of a chain's original layers, into one.

    From layer 0 on it makes a full; else an incremental, with revision history if all of them have it. `digest` is that of
    the manifest before the first layer, None before layer 0.
    """

    def __init__(
        self,
        storage: Storage,
        layers: Sequence[Layer],
        digest: str | None,
        *,
        scratch: Path | None = None,
        progress: Progress | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        if len(layers) < 2:
            raise BadInput("One layer is nothing to merge; name at least two.")
        self._storage = storage
        self._layers = layers
        self._digest = digest
        self._scratch = scratch
        self._progress = progress or Silent()
        self._clock = clock
        self._first, self._last = layers[0].manifest, layers[-1].manifest
        self._history = self._first.number > 0 and all(layer.manifest.revision_history for layer in layers)

    def run(self) -> Manifest:
        """Write the merged files and commit the layer; one that is there already is returned."""
        planned_at = self._clock()
        files: list[DataFile] = []
        databases = []
        grouped = [_grouped(self._storage, layer) for layer in self._layers]
        self._progress.step("compact", total_units=sum(len(entry.tables) for entry in self._last.databases))
        for entry in self._last.databases:
            tables = []
            for table in entry.tables:
                own = self._files_of(entry, table, grouped)
                files += own
                size, changes = sum(file.bytes for file in own), sum(file.rows for file in own if file.role == "change")
                tables.append(table.model_copy(update={"bytes": size, "changes": changes}))
                self._progress.advance(units=1)
            facts = {"tables": tuple(tables), "window": self._window(entry), "commits": self._commits(entry)}
            databases.append(entry.model_copy(update=facts))
        return commit(self._storage, self._manifest(databases, files, planned_at))

    def _files_of(
        self, entry: ManifestDatabase, table: ManifestTable, grouped: Sequence[dict[TableKey, list[DataFile]]]
    ) -> list[DataFile]:
        """The table's files in the new layer."""
        if table.basis is None:
            return []
        key = (entry.database.oid, table.oid)
        begin = max(self._first.number, table.basis)
        parts = [
            self._part(layer, key, files.get(key, []))
            for layer, files in zip(self._layers, grouped, strict=True)
            if layer.manifest.number >= begin
        ]
        whole = [file for part in parts for file in part.files if file.role != "change" and part.number == table.basis]
        kept = [self._kept(file, parts[0], parts[-1].table) for file in whole]
        if not any(file.role == "change" for part in parts for file in part.files):
            return kept
        name = entry.database.name
        if self._history:
            segments = enumerate(carried_segments(parts, self._scratch), start=1)
            return kept + [self._written(name, parts, batches, number) for number, batches in segments]
        return [*kept, self._written(name, parts, merged_changes(parts, self._scratch), 1)]

    def _part(self, layer: Layer, key: TableKey, files: Sequence[DataFile]) -> TableLayer:
        entry = next(one for one in layer.manifest.databases if one.database.oid == key[0])
        shape = next(table for table in entry.database.tables if table.oid == key[1])
        return TableLayer(layer.data, layer.manifest.subdir, layer.manifest.number, shape, tuple(files))

    def _kept(self, file: DataFile, part: TableLayer, table: Table) -> DataFile:
        """A file of whole rows itself, if it lies in the chain and has the table's columns of now; else a copy of it."""
        same = same_columns(part.table, table)
        if part.storage is self._storage and same:
            return file
        path = data_path(self._last.number)
        if same:
            with self._storage.open_write(object_key(self._last.subdir, path)) as copy:
                for chunk in part.storage.read_chunks(object_key(part.subdir, file.path), 4 << 20):
                    copy.write(chunk)
            return file.model_copy(update={"path": path, "locality": DEFAULT_LOCALITY})
        text_columns = reshaped_text_columns(part, file, table)
        with DataFileWriter(self._storage, object_key(self._last.subdir, path), file_schema(table, text_columns)) as writer:
            for batch in reshaped_rows(part, file, table, self._scratch):
                writer.write_batch(batch)
        written = {"sha256": writer.sha256, "bytes": writer.bytes, "rows": writer.rows}
        return file.model_copy(
            update={**written, "path": path, "locality": DEFAULT_LOCALITY, "text_columns": tuple(sorted(text_columns))}
        )

    def _written(self, database: str, parts: Sequence[TableLayer], batches: Iterable[pa.RecordBatch], sequence: int) -> DataFile:
        path = data_path(self._last.number)
        schema = merged_schema(parts)
        with DataFileWriter(self._storage, object_key(self._last.subdir, path), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return DataFile(
            path=path,
            sha256=writer.sha256,
            bytes=writer.bytes,
            rows=writer.rows,
            database=database,
            table_oid=parts[-1].table.oid,
            role="change",
            sequence=sequence,
            text_columns=tuple(sorted(merged_text_columns(parts))),
        )

    def _window(self, entry: ManifestDatabase) -> Window:
        windows = [one.window for one in self._entries(entry)]
        firsts = [window.first_time for window in windows if window.first_time is not None]
        newest = [window.newest_time for window in windows if window.newest_time is not None]
        return Window(
            transactions=sum(window.transactions for window in windows),
            changes=sum(window.changes for window in windows),
            first_time=min(firsts, default=None),
            newest_time=max(newest, default=None),
            last_commit=entry.window.last_commit,
        )

    def _commits(self, entry: ManifestDatabase) -> ObjectReference | None:
        if not self._history:
            return None
        with CommitsWriter(self._storage, self._last.subdir, self._last.number, entry.database.oid) as writer:
            for one in self._entries(entry):
                if one.commits is not None:
                    for commit_ in read_commits(self._storage, self._last.subdir, one.commits):
                        writer.add(commit_.lsn, commit_.xid, (commit_.time - _UNIX_EPOCH) // _MICROSECOND)
        return writer.reference

    def _entries(self, entry: ManifestDatabase) -> Iterator[ManifestDatabase]:
        """The database in every layer that has it."""
        for layer in self._layers:
            yield from (one for one in layer.manifest.databases if one.database.oid == entry.database.oid)

    def _manifest(self, databases: Sequence[ManifestDatabase], files: Sequence[DataFile], planned_at: datetime) -> Manifest:
        number = self._last.number
        full = self._first.number == 0
        rows = sum(table.rows for entry in databases for table in entry.tables)
        return self._last.model_copy(
            update={
                "kind": "full" if full else "incremental",
                "first": self._first.number,
                "run_key": f"compact {self._first.number}-{number}",
                "parent_sha256": self._digest,
                "revision_history": self._history,
                "location": None,
                "parts": tuple(part for each in self._layers if each.manifest.location is None for part in each.manifest.parts),
                "start": self._last.end if full else self._first.start,
                "databases": tuple(databases),
                "files": write_files(self._storage, self._last.subdir, number, _unique(files)),
                "totals": Totals(
                    tables=sum(len(entry.tables) for entry in databases),
                    rows=rows,
                    file_bytes=sum(file.bytes for file in files),
                    files=len(files),
                    source_bytes=self._last.totals.source_bytes,
                ),
                "planned_at": planned_at,
                "committed_at": self._clock(),
            }
        )


def _unique(files: Iterable[DataFile]) -> list[DataFile]:
    return list({file.path: file for file in files}.values())


def _grouped(storage: Storage, layer: Layer) -> dict[TableKey, list[DataFile]]:
    """A layer's files by table."""
    oids = {entry.database.name: entry.database.oid for entry in layer.manifest.databases}
    found: defaultdict[TableKey, list[DataFile]] = defaultdict(list)
    for file in read_files(storage, layer.manifest.subdir, layer.manifest.files):
        found[oids[file.database], file.table_oid].append(file)
    return found
