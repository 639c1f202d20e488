"""SHOW BACKUP: CockroachDB's columns, in its order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spanvault.backup.plan import takes_whole
from spanvault.collection.chain import Layer, OpenLocation, no_locations, original_layers
from spanvault.collection.files import read_files
from spanvault.collection.lookup import find_backup
from spanvault.collection.parts import missing_parts
from spanvault.database.postgres.archive import read_archive
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest, ManifestDatabase
from spanvault.model.result import Cell, Result
from spanvault.observe.show_schema import Described, ObjectName, SchemaObjects
from spanvault.restore.work import local_archive
from spanvault.storage.base import Storage
from spanvault.verify.files import check_files as verify_files

COLUMNS = (
    "database_name",
    "parent_schema_name",
    "object_name",
    "object_type",
    "backup_type",
    "start_time",
    "end_time",
    "size_bytes",
    "rows",
    "is_full_cluster",
    "regions",
)
WINDOW_COLUMNS = ("restorable_from", "restorable_to")
# With debug_ids: the column behind each of these.
_IDS = {"database_name": "database_id", "parent_schema_name": "parent_schema_id", "object_name": "object_id"}
_Row = tuple[Cell, ...]


def show_backup(
    storage: Storage,
    subdir: str = "LATEST",
    *,
    schemas: bool = False,
    privileges: bool = False,
    debug_ids: bool = False,
    check_files: bool = False,
    as_json: bool = False,
    open_location: OpenLocation | None = None,
    scratch: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Result:
    """SHOW BACKUP: a row for each database, schema, table, view and sequence of each valid layer that a run committed to a
    chain (LATEST or a path), or of the one layer that a backup's ID names.

    Views and sequences are tables to CockroachDB, and so to `object_type`. `size_bytes` are bytes on the source, TOAST
    included. `rows` are NULL of a table whose rows are excluded from backups, or not in this layer. `restorable_from` and
    `restorable_to` of a layer with revision history: any time between the two can be restored, NULL of any other, which only
    `end_time` can.

    `schemas` adds `create_statement`, `privileges` adds `privileges` and `owner`: both, and `debug_ids`, which adds OIDs,
    read the schema archive, and so also show partitioned and foreign tables, types and functions of a backup of whole
    databases. `check_files` adds `file_bytes`, the bytes in the backup, and raises Damaged with up to ten paths when files
    are missing. `note` hears which places are not given; `open_location` is for layers whose data files are at an incremental
    location. `as_json` gives the stored manifest of each layer in one column. Raises NotFound.
    """
    found, number = find_backup(storage, subdir)
    layers = original_layers(storage, subdir if number is not None else found, open_location=lambda _: storage)
    if check_files:
        verify_files(storage, found, number, open_location=open_location or no_locations).require_pass()
    _tell_missing(storage, layers, note)
    if as_json:
        return Result(columns=("manifest",), rows=tuple((_compact(layer.manifest),) for layer in layers))
    form = _Form(schemas=schemas, privileges=privileges, debug_ids=debug_ids, file_bytes=check_files)
    archives = _Archives(storage, scratch) if form.reads_archive else None
    return Result(
        columns=form.columns,
        rows=tuple(row for layer in layers for row in _layer_rows(storage, layer, form, archives)),
    )


@dataclass(frozen=True)
class _Form:
    """Which columns are asked for, beside those that are always there."""

    schemas: bool
    privileges: bool
    debug_ids: bool
    file_bytes: bool

    @property
    def reads_archive(self) -> bool:
        return self.schemas or self.privileges or self.debug_ids

    @property
    def columns(self) -> tuple[str, ...]:
        names = tuple(name for plain in COLUMNS for name in ((plain, _IDS[plain]) if plain in _IDS else (plain,)))
        return (
            *(names if self.debug_ids else COLUMNS),
            *(("create_statement",) if self.schemas else ()),
            *(("privileges", "owner") if self.privileges else ()),
            *(("file_bytes",) if self.file_bytes else ()),
            *WINDOW_COLUMNS,
        )


class _Archives:
    """What the archives of layers say, the last one of each database kept: neighbouring layers share it."""

    def __init__(self, storage: Storage, scratch: Path | None) -> None:
        self._storage = storage
        self._scratch = scratch
        self._last: dict[str, tuple[str, SchemaObjects]] = {}

    def of(self, manifest: Manifest, entry: ManifestDatabase) -> SchemaObjects:
        name, digest = entry.database.name, entry.schema_dump.sha256
        if name not in self._last or self._last[name][0] != digest:
            with local_archive(self._storage, manifest, name, self._scratch) as archive:
                entries = read_archive(archive, owners=True)
            tables = {(table.schema_name, table.name) for table in entry.database.tables}
            whole = takes_whole(manifest.request.target)
            self._last[name] = (digest, SchemaObjects(entries, lambda relation: whole or relation in tables))
        return self._last[name][1]


def _tell_missing(storage: Storage, layers: Iterable[Layer], note: Callable[[str], None]) -> None:
    """Say which localities' URIs a restore would ask for; what is shown needs none of them."""
    here = [layer.manifest for layer in layers if layer.manifest.location is None]
    missing = sorted({locality for manifest in here for locality in missing_parts(storage, manifest)})
    if missing:
        note(f"Parts of this backup are not in the locations given; a restore needs the URIs of {', '.join(missing)} too.")


def _compact(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False)


def _layer_rows(storage: Storage, layer: Layer, form: _Form, archives: _Archives | None) -> Iterator[_Row]:
    manifest = layer.manifest
    file_bytes: Counter[tuple[str, int]] = Counter()
    if form.file_bytes:
        for file in read_files(storage, manifest.subdir, manifest.files):
            file_bytes[file.database, file.table_oid] += file.bytes
    start = None if manifest.kind == "full" else format_time(manifest.start.time)
    facts = (manifest.kind, start, format_time(manifest.end.time))
    window = (facts[1], facts[2]) if manifest.revision_history else (None, None)
    last = (manifest.request.target.kind == "cluster", None)
    for database in manifest.databases:
        archive = archives.of(manifest, database) if archives else None
        whole = takes_whole(manifest.request.target)
        for one in _objects(database, archive if whole else None):
            about = archive.find(one.kind, one.name) if archive else Described(one.kind, one.name)
            yield (
                *_names(database, one, archive if form.debug_ids else None, about),
                one.kind,
                *facts,
                one.size,
                one.rows,
                *last,
                *((about.create_statement,) if form.schemas else ()),
                *((about.privileges, about.owner) if form.privileges else ()),
                *(((None if one.oid is None else file_bytes[database.database.name, one.oid]),) if form.file_bytes else ()),
                *window,
            )


@dataclass(frozen=True)
class _Object:
    """An object of a database. `oid` is a table's; 0 of what has no rows of its own, None of what is no relation."""

    kind: str
    name: ObjectName
    size: Cell = None
    rows: Cell = None
    oid: int | None = None


def _names(entry: ManifestDatabase, one: _Object, archive: SchemaObjects | None, about: Described) -> _Row:
    """`database_name`, `parent_schema_name` and `object_name`, with an archive each with its OID behind it."""
    schema, name = one.name
    database = None if one.kind == "database" else entry.database.name
    if archive is None:
        return (database, schema, name)
    parent = archive.find("schema", (None, schema)).oid if schema is not None else None
    own = entry.database.oid if one.kind == "database" else one.oid or about.oid
    return (database, None if database is None else entry.database.oid, schema, parent, name, own)


def _objects(entry: ManifestDatabase, archive: SchemaObjects | None) -> Iterator[_Object]:
    """A database's objects; with an archive also those that only it knows."""
    tables = sorted(entry.database.tables, key=lambda table: (table.schema_name, table.name))
    views = [(view.schema_name, view.name) for view in entry.views]
    others = sorted(views + [(sequence.schema_name, sequence.name) for sequence in entry.sequences])
    rows = {table.oid: table.rows if table.basis is not None else None for table in entry.tables}
    known = {(table.schema_name, table.name) for table in tables} | set(others)
    archived = list(archive.others(known)) if archive else []
    schemas = {schema for schema, _ in known} | {one.name[0] for one in archived if one.name[0] is not None}
    yield _Object("database", (None, entry.database.name))
    for schema in sorted(schemas):
        yield _Object("schema", (None, schema))
    for table in tables:
        count = None if table.excluded else rows.get(table.oid, 0)
        yield _Object("table", (table.schema_name, table.name), table.bytes, count, table.oid)
    for name in others:
        yield _Object("table", name, 0, 0, 0)
    for one in archived:
        relation = one.kind == "table"
        yield _Object(one.kind, one.name, *((0, 0, 0) if relation else (None, None, None)))
