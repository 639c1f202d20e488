"""The documents of a backup on storage: plan, receipt, seal record, manifest. docs/format.md specifies them.

Every document carries `format_version`; a reader refuses one that it does not know (collection/documents.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from spanvault.model.base import Value
from spanvault.model.cut import Cut, Lsn
from spanvault.model.request import BackupRequest
from spanvault.model.schema import Database, Fingerprint, SequenceValue
from spanvault.model.span import Batch

FORMAT_VERSION = 2

LayerKind = Literal["full", "incremental"]


class SourceIdentity(Value):
    """Which cluster, and which of its histories, a layer was read from."""

    cluster: str
    system: Literal["postgresql"] = "postgresql"
    system_identifier: str
    timeline: int
    server_version: str


class CollectionDocument(Value):
    """COLLECTION.json: write-once identity of a collection. `source_system_identifier` is the one cluster whose
    backups it may hold."""

    format_version: int = FORMAT_VERSION
    id: str
    created_at: datetime
    created_by: str
    source_system_identifier: str


class PlaceDocument(Value):
    """PLACE.json: write-once, at the URI of a locality: whose place it is, so that exchanged URIs are noticed."""

    format_version: int = FORMAT_VERSION
    collection_id: str
    locality: str


class PublicationRow(Value):
    """(oid, xmin) of one pg_publication_rel row: a difference later means that the table was out of the log."""

    table_oid: int
    oid: int
    xmin: int


class Protection(Value):
    """What holds a database's change log for this collection: slot and publication, and their identity."""

    database: str
    slot: str
    publication: str
    publication_oid: int
    publication_xmin: int
    rows: tuple[PublicationRow, ...] = ()
    start: Lsn


class Commit(Value):
    """A transaction as the change log names it: the start of its commit record, its id and its time stamp."""

    lsn: Lsn
    xid: int
    time: datetime


class Window(Value):
    """What a layer's part of the change log came to, in one database. `first_time` and `newest_time` are the smallest and
    greatest time stamps of its commits, None if it has none; `last_commit` is the last in log order, and proves later
    that the source was not rolled back."""

    transactions: int = 0
    changes: int = 0
    first_time: datetime | None = None
    newest_time: datetime | None = None
    last_commit: Commit | None = None


class LayerEnd(Value):
    """An end that a run writes a layer up to: the time that was asked for and the cut that the log gives for it."""

    due: datetime
    lsn: Lsn


class PlannedDatabase(Value):
    """A database as it was when planned; its tables are those whose rows the backup holds. `ready` is a position behind the
    wait for writers and the look at the tables: a standby must have replayed up to there before it is read. None: planned
    for the primary alone."""

    database: Database
    protection: Protection
    types_version: str
    ready: Lsn | None = None


class Plan(Value):
    """The plan of a layer: what will be done. A full's is PLAN.json, whose conditional creation makes the chain's folder
    this run's; of an incremental each run has its own, and the commit decides.

    `ends` are the cuts of an incremental that ends at given times: a layer for each, numbered from `number` on. Without
    them the layer ends at the cut that its seal takes. `closes` is the chain that a full brings up to its own cut.
    `synthetic` asks that the chain up to the last layer be compacted to a full: the one that was missed at that time.
    """

    format_version: int = FORMAT_VERSION
    kind: LayerKind = "full"
    number: int = 0
    subdir: str
    run_key: str
    parent_sha256: str | None = None
    ends: tuple[LayerEnd, ...] = ()
    closes: str | None = None
    synthetic: bool = False
    planned_at: datetime
    collection_id: str
    request: BackupRequest
    request_text: str
    source: SourceIdentity
    databases: tuple[PlannedDatabase, ...]
    batches: tuple[Batch, ...]

    @property
    def last_number(self) -> int:
        """The number of the last layer that the run writes."""
        return self.number + max(1, len(self.ends)) - 1


class DataFile(Value):
    """One Parquet file; a row of files.parquet. `path` is relative to the chain's folder.

    `role`: `base` slice rows of a fuzzy export, `change` the last change per key since the layer's start, `exact` rows
    read under a seal's snapshot. `sequence` orders change files of a table: a higher one holds later changes.
    `text_columns` are stored names kept as PostgreSQL text although their type has a typed form.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    database: str
    table_oid: int
    role: Literal["base", "change", "exact"]
    span: str | None = None
    sequence: int = 0
    as_of: Lsn | None = None
    locality: str = "default"
    text_columns: tuple[str, ...] = ()


class Receipt(Value):
    """progress/<span>.json: the span is on storage. The first receipt of a span wins.

    `seen_lsn` is an insert position read after the span's snapshot was taken, and flushed before this was written: the
    span shows nothing from beyond it. A table rewrite between slices shows as a different `filenode`.
    """

    format_version: int = FORMAT_VERSION
    span: str
    file: DataFile
    filenode: int
    table_fingerprint: str
    seen_lsn: Lsn
    timeline: int
    node: str
    written_at: datetime


class ObjectReference(Value):
    """A write-once object by path (relative to the chain's folder), size and digest."""

    path: str
    sha256: str
    bytes: int


class ManifestTable(Value):
    """A table of the layer: shape (in ManifestDatabase.database), where its rows are, proof. `rows` is exact, or
    (`rows_exact` false) reckoned from the slices and the change log; `as_of` is where they stand.

    `basis` is the number of the layer that holds the table whole, as of `since`; this and the layers between hold its
    changes from `since` on. None: the table cannot be restored to this layer's end, only to cuts from `since` on, by a
    later layer. `changes` counts this layer's change rows. `shape_since` is the first position at which the table has
    this shape, if it changed and the DDL log tells where.
    """

    oid: int
    rows: int
    rows_exact: bool = True
    bytes: int
    as_of: Lsn
    basis: int | None = 0
    since: Lsn
    changes: int = 0
    shape_since: Lsn | None = None
    fingerprint: Fingerprint | None = None


class View(Value):
    """A view or materialized view, by name: its definition is in the schema dump."""

    schema_name: str
    name: str
    materialized: bool = False
    populated: bool = True


class ManifestDatabase(Value):
    """One database of a layer. `omitted` says in phrases what the database held and the layer does not.

    Shapes, schema, sequences and whatever was read and not logged stand at `captured`, the position of a snapshot at or
    behind the layer's end; `catalogs` and `types_version` are digests of the catalogs there. `commits` lists the
    transactions of a layer with revision history.
    """

    database: Database
    protection: Protection
    captured: Lsn
    catalogs: str
    types_version: str
    window: Window = Window()
    commits: ObjectReference | None = None
    schema_dump: ObjectReference
    tables: tuple[ManifestTable, ...]
    sequences: tuple[SequenceValue, ...] = ()
    views: tuple[View, ...] = ()
    omitted: tuple[str, ...] = ()


class Part(Value):
    """What a layer has at a locality's URI: the reference of its description there (PartDocument)."""

    locality: str
    document: ObjectReference


class PartDocument(Value):
    """BACKUP_PART_*.json: the files of a layer at one locality's URI, which lies there, so that files which were moved or
    mixed up are noticed before anybody reads them."""

    format_version: int = FORMAT_VERSION
    collection_id: str
    subdir: str
    number: int
    run_key: str
    locality: str
    files: tuple[ObjectReference, ...]


class SealedLayer(Value):
    """What a seal found and wrote for one layer; the manifest is made of it. `due` is the time that was asked for."""

    kind: LayerKind = "full"
    subdir: str
    number: int
    due: datetime | None = None
    revision_history: bool = False
    start: Cut
    end: Cut
    captured: Cut
    databases: tuple[ManifestDatabase, ...]
    files: tuple[DataFile, ...]
    parts: tuple[Part, ...] = ()
    globals_dump: ObjectReference | None = None


class SealRecord(Value):
    """The layers that a seal made, in the order in which write_manifest commits them. Nothing on storage refers to it, so
    a repeated seal may write another."""

    format_version: int = FORMAT_VERSION
    subdir: str
    number: int
    layers: tuple[SealedLayer, ...]
    sealed_at: datetime


class Totals(Value):
    """Sizes of a layer. `source_bytes` are table bytes on the source, TOAST included, at planning."""

    tables: int
    rows: int
    file_bytes: int
    files: int
    source_bytes: int


class Manifest(Value):
    """chain/<number>.json: creating it, conditionally, is the commit.

    The layer holds the source's history from `start` to `end`; a full has `start` equal to `end`. `captured` is where
    was read what the log does not carry. `first` is the number of the first layer that this one stands for: its own,
    unless it was compacted; a compacted layer that begins at 0 is a full. `parent_sha256` is the digest of the manifest
    of layer `first` - 1. `location` is the URI (without secrets) of the incremental location that holds the data files,
    None if they lie in the chain. `parts` are those of the localities that have URIs of their own; what they hold lies
    there, below the same names.
    """

    format_version: int = FORMAT_VERSION
    kind: LayerKind = "full"
    number: int = 0
    first: int = 0
    subdir: str
    collection_id: str
    run_key: str
    request: BackupRequest
    request_text: str
    source: SourceIdentity
    parent_sha256: str | None = None
    revision_history: bool = False
    location: str | None = None
    due: datetime | None = None
    start: Cut
    end: Cut
    captured: Cut
    databases: tuple[ManifestDatabase, ...]
    files: ObjectReference
    parts: tuple[Part, ...] = ()
    globals_dump: ObjectReference | None = None
    totals: Totals
    planned_at: datetime
    committed_at: datetime

    @property
    def compacted(self) -> bool:
        """Whether this layer was merged from others."""
        return self.first != self.number

    def database(self, name: str) -> ManifestDatabase | None:
        """The database of that name, or None."""
        return next((entry for entry in self.databases if entry.database.name == name), None)


class IndexedTable(Value):
    """A table in an index entry: its name as `database.schema.table`, rows at the layer's end, bytes on the source."""

    name: str
    rows: int
    bytes: int


class IndexedTotals(Value):
    """Sizes of a layer in its index entry. Of an encrypted layer only what a listing of its files tells as well."""

    tables: int | None
    rows: int | None
    file_bytes: int
    files: int
    source_bytes: int | None


class IndexEntry(Value):
    """metadata/index/<key>.json: a cache of one layer's headline facts; rebuildable from the manifests. It is never encrypted,
    so of an encrypted chain it does not tell what was backed up."""

    format_version: int = FORMAT_VERSION
    kind: LayerKind = "full"
    number: int
    first: int
    subdir: str
    revision_history: bool = False
    start: Cut
    end: Cut
    captured: Cut
    run_key: str
    encrypted: bool = False
    target: str | None
    tables: tuple[IndexedTable, ...] = ()
    planned_at: datetime
    committed_at: datetime
    manifest_sha256: str
    totals: IndexedTotals
