"""Which files of which layers make up a table: from the one that holds it whole to the last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spanvault.collection.chain import Layer, Resolved
from spanvault.collection.files import read_files
from spanvault.errors import Damaged
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile, Manifest, ManifestDatabase
from spanvault.model.schema import Table
from spanvault.storage.base import Storage

TableKey = tuple[str, int]


@dataclass(frozen=True)
class TableLayer:
    """A table's part in one layer: its shape there and its files, which lie at `subdir` of `storage`."""

    storage: Storage
    subdir: str
    number: int
    table: Table
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class TableHistory:
    """All that a state of a table is made of. `layers` ascend; the first holds the table whole, the others its changes.
    `table` is the shape in which rows are given out; of changes only those with `_lsn` below `upto` count (None: all).
    """

    table: Table
    layers: tuple[TableLayer, ...]
    upto: Lsn | None = None


def histories(storage: Storage, resolved: Resolved, wanted: Callable[[str, int], bool]) -> dict[TableKey, TableHistory]:
    """The history of every wanted table, by (database name, table OID) as the last layer names them.

    `storage` is the collection's, in which the file lists lie; each list is read once. Tables that cannot be restored to
    the cut are left out: those without a basis, and those that are whole only from a position behind it.

    Raises Damaged when a layer lacks a table that it must know, and what `read_files` raises.
    """
    upto = resolved.cut.lsn if resolved.inner else None
    oids = {one.database.name: one.database.oid for one in resolved.manifest.databases}
    starts = {key: _start(resolved.layers, basis, key) for key, basis in _bases(resolved.manifest, wanted, upto)}
    parts: defaultdict[TableKey, list[TableLayer]] = defaultdict(list)
    for place, layer in enumerate(resolved.layers):
        users = [key for key, start in starts.items() if start <= place]
        if users:
            for key, part in _parts(storage, layer, users, oids):
                parts[key].append(part)
    return {key: TableHistory(own[-1].table, tuple(own), upto) for key, own in parts.items()}


def _bases(manifest: Manifest, wanted: Callable[[str, int], bool], upto: Lsn | None) -> Iterator[tuple[TableKey, int]]:
    for database in manifest.databases:
        name = database.database.name
        for entry in database.tables:
            known = entry.basis is not None and (upto is None or entry.since <= upto)
            if known and entry.basis is not None and wanted(name, entry.oid):
                yield (name, entry.oid), entry.basis


def _start(layers: Sequence[Layer], basis: int, key: TableKey) -> int:
    """The place of the layer that holds the table whole."""
    for place, layer in enumerate(layers):
        if layer.manifest.first <= basis <= layer.manifest.number:
            return place
    raise Damaged(
        f"The table with OID {key[1]} of database {key[0]!r} is held whole by layer {basis} of the backup"
        f" {layers[-1].manifest.subdir}, but that layer is not among those that lead to the cut."
    )


def _parts(
    storage: Storage, layer: Layer, users: Sequence[TableKey], oids: dict[str, int]
) -> Iterator[tuple[TableKey, TableLayer]]:
    """The tables' parts in one layer. A database is found by its OID: it may have had another name."""
    manifest = layer.manifest
    by_oid = {one.database.oid: one for one in manifest.databases}
    databases = {key: by_oid.get(oids[key[0]]) for key in users}
    places = {(one.database.name, key[1]): key for key, one in databases.items() if one is not None}
    files: defaultdict[TableKey, list[DataFile]] = defaultdict(list)
    for file in read_files(storage, manifest.subdir, manifest.files):
        if (place := (file.database, file.table_oid)) in places:
            files[places[place]].append(file)
    for key, database in databases.items():
        table = _shape(manifest, database, key)
        yield key, TableLayer(layer.data, manifest.subdir, manifest.number, table, tuple(files[key]))


def _shape(manifest: Manifest, database: ManifestDatabase | None, key: TableKey) -> Table:
    table = database.database.table(key[1]) if database is not None else None
    if table is None:
        raise Damaged(
            f"Layer {manifest.number} of the backup {manifest.subdir} does not describe the table with OID {key[1]} of"
            f" database {key[0]!r}, although a later layer builds on it there."
        )
    return table
