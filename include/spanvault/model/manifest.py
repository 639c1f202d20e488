"""The documents of a backup on storage: plan, receipt, seal record, manifest. docs/format.md specifies them.

Every document carries `format_version`; a reader refuses a newer one than it knows (collection/documents.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from spanvault.model.base import Value
from spanvault.model.cut import Cut, Lsn
from spanvault.model.request import BackupRequest
from spanvault.model.schema import Database, Fingerprint, SequenceValue
from spanvault.model.span import Batch

FORMAT_VERSION = 1


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


class PlannedDatabase(Value):
    """A database as it was when planned; its tables are those whose rows the backup holds."""

    database: Database
    protection: Protection
    types_version: str


class Plan(Value):
    """PLAN.json of a layer: what will be done; conditional create, so also the lock of this run."""

    format_version: int = FORMAT_VERSION
    kind: Literal["full"] = "full"
    number: int = 0
    subdir: str
    run_key: str
    planned_at: datetime
    collection_id: str
    request: BackupRequest
    request_text: str
    source: SourceIdentity
    databases: tuple[PlannedDatabase, ...]
    batches: tuple[Batch, ...]


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
    """A table of the layer: shape at the cut (in ManifestDatabase.database), rows in files, proof. `rows` at the cut is
    exact, or (`rows_exact` false) reckoned from the slices and the change log; `as_of` is where the rows stand."""

    oid: int
    rows: int
    rows_exact: bool = True
    bytes: int
    as_of: Lsn
    fingerprint: Fingerprint | None = None


class View(Value):
    """A view or materialized view, by name: its definition is in the schema dump."""

    schema_name: str
    name: str
    materialized: bool = False
    populated: bool = True


class ManifestDatabase(Value):
    """One database of a layer at the cut. `omitted` says in phrases what the database held and the layer does not."""

    database: Database
    protection: Protection
    schema_dump: ObjectReference
    tables: tuple[ManifestTable, ...]
    sequences: tuple[SequenceValue, ...] = ()
    views: tuple[View, ...] = ()
    omitted: tuple[str, ...] = ()


class SealRecord(Value):
    """What a seal found and wrote; write_manifest turns it into the manifest. Nothing on storage refers to it, so a
    repeated seal may write another."""

    format_version: int = FORMAT_VERSION
    subdir: str
    number: int
    start: Cut
    end: Cut
    databases: tuple[ManifestDatabase, ...]
    files: tuple[DataFile, ...]
    globals_dump: ObjectReference | None = None
    sealed_at: datetime


class Totals(Value):
    """Sizes of a layer. `source_bytes` are table bytes on the source, TOAST included, at planning."""

    tables: int
    rows: int
    file_bytes: int
    files: int
    source_bytes: int


class Manifest(Value):
    """chain/<number>.json: creating it, conditionally, is the commit."""

    format_version: int = FORMAT_VERSION
    kind: Literal["full"] = "full"
    number: int = 0
    subdir: str
    collection_id: str
    run_key: str
    request: BackupRequest
    request_text: str
    source: SourceIdentity
    parent_sha256: str | None = None
    start: Cut
    end: Cut
    captured: Cut
    databases: tuple[ManifestDatabase, ...]
    files: ObjectReference
    globals_dump: ObjectReference | None = None
    totals: Totals
    planned_at: datetime
    committed_at: datetime

    def database(self, name: str) -> ManifestDatabase | None:
        """The database of that name, or None."""
        return next((entry for entry in self.databases if entry.database.name == name), None)


class IndexEntry(Value):
    """metadata/index/<key>.json: a cache of one layer's headline facts; rebuildable from the manifests."""

    format_version: int = FORMAT_VERSION
    kind: Literal["full"] = "full"
    number: int
    subdir: str
    start: Cut
    end: Cut
    planned_at: datetime
    committed_at: datetime
    manifest_sha256: str
    totals: Totals
