"""SHOW BACKUPS and SHOW BACKUP: CockroachDB's columns, in its order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from spanvault.collection.chain import Layer, OpenLocation, no_locations, original_layers
from spanvault.collection.files import read_files
from spanvault.collection.identity import read_collection
from spanvault.collection.index import list_chains
from spanvault.collection.lookup import find_subdir
from spanvault.collection.parts import missing_parts
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest, ManifestDatabase
from spanvault.model.result import Cell, Result
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
_Row = tuple[Cell, ...]


def show_backups(storage: Storage) -> Result:
    """SHOW BACKUPS IN: the `path` of each complete backup, oldest first. Raises NotFound where there is no collection."""
    read_collection(storage)
    return Result(columns=("path",), rows=tuple((subdir,) for subdir in sorted(list_chains(storage))))


def show_backup(
    storage: Storage,
    subdir: str = "LATEST",
    *,
    check_files: bool = False,
    as_json: bool = False,
    open_location: OpenLocation | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Result:
    """SHOW BACKUP: a row for each database, schema, table, view and sequence of each valid layer that a run committed.

    Views and sequences are tables to CockroachDB, and so to `object_type`. `size_bytes` are bytes on the source, TOAST
    included. `check_files` adds `file_bytes`, the bytes in the backup, and raises Damaged with up to ten paths when files
    are missing; `note` hears which places are not given; `open_location` is for layers whose data files are at an
    incremental location. `restorable_from` and `restorable_to` of a layer with revision history: any time between the two
    can be restored, NULL of any other, which only `end_time` can. `as_json` gives the stored manifest of each layer in
    one column. Raises NotFound.
    """
    found = find_subdir(storage, subdir)
    if check_files:
        verify_files(storage, found, open_location=open_location or no_locations).require_pass()
    layers = original_layers(storage, found, open_location=lambda _: storage)  # no data file is read
    _tell_missing(storage, layers, note)
    if as_json:
        return Result(columns=("manifest",), rows=tuple((_compact(layer.manifest),) for layer in layers))
    return Result(
        columns=(*COLUMNS, *(("file_bytes",) if check_files else ()), *WINDOW_COLUMNS),
        rows=tuple(row for layer in layers for row in _layer_rows(storage, layer, check_files)),
    )


def _tell_missing(storage: Storage, layers: Iterable[Layer], note: Callable[[str], None]) -> None:
    """Say which localities' URIs a restore would ask for; what is shown needs none of them."""
    here = [layer.manifest for layer in layers if layer.manifest.location is None]
    missing = sorted({locality for manifest in here for locality in missing_parts(storage, manifest)})
    if missing:
        note(f"Parts of this backup are not in the locations given; a restore needs the URIs of {', '.join(missing)} too.")


def _compact(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False)


def _layer_rows(storage: Storage, layer: Layer, with_file_bytes: bool) -> Iterator[_Row]:
    manifest = layer.manifest
    file_bytes: Counter[tuple[str, int]] = Counter()
    if with_file_bytes:
        for file in read_files(storage, manifest.subdir, manifest.files):
            file_bytes[file.database, file.table_oid] += file.bytes
    start = None if manifest.kind == "full" else format_time(manifest.start.time)
    facts = (manifest.kind, start, format_time(manifest.end.time))
    window = (facts[1], facts[2]) if manifest.revision_history else (None, None)
    last = (manifest.request.target.kind == "cluster", None)
    for database in manifest.databases:
        for names, sizes, oid in _objects(database):
            own = (file_bytes[database.database.name, oid],) if oid is not None else (None,)
            yield (*names, *facts, *sizes, *last, *(own if with_file_bytes else ()), *window)


def _objects(entry: ManifestDatabase) -> Iterator[tuple[tuple[Cell, ...], tuple[Cell, Cell], int | None]]:
    """((database, schema, name, type), (size, rows), table OID) of a database's objects; 0 is no table's OID."""
    name = entry.database.name
    tables = sorted(entry.database.tables, key=lambda table: (table.schema_name, table.name))
    views = [(view.schema_name, view.name) for view in entry.views]
    others = sorted(views + [(sequence.schema_name, sequence.name) for sequence in entry.sequences])
    rows = {table.oid: table.rows for table in entry.tables}
    yield (None, None, name, "database"), (None, None), None
    for schema in sorted({table.schema_name for table in tables} | {schema for schema, _ in others}):
        yield (name, None, schema, "schema"), (None, None), None
    for table in tables:
        yield (name, table.schema_name, table.name, "table"), (table.bytes, rows.get(table.oid, 0)), table.oid
    for schema, other in others:
        yield (name, schema, other, "table"), (0, 0), 0
