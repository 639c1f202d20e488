"""The index: one tiny object a layer, so that listings need not read manifests. A cache, never the truth."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from spanvault.collection.documents import parse_document
from spanvault.collection.identity import restore_identity
from spanvault.collection.layout import INDEX_PREFIX, index_key, indexed_layer, manifest_key
from spanvault.collection.lookup import complete_subdirs, is_complete
from spanvault.collection.manifests import any_names, parse_manifest
from spanvault.collection.plans import chain_subdirs
from spanvault.crypto.keyring import is_encrypted
from spanvault.errors import AlreadyExists, Damaged, Locked, NotFound, Refused
from spanvault.model.base import Value
from spanvault.model.manifest import IndexedTable, IndexedTotals, IndexEntry, Manifest, Totals
from spanvault.model.request import BackupRequest
from spanvault.statement.render import render
from spanvault.storage.base import Storage

# An entry stays small whatever the cluster holds: a page of it is enough for people.
MOST_TABLES = 1000


def list_chains(storage: Storage) -> Iterator[str]:
    """The paths of all complete chains, newest first. What the index names costs no request of its own; a folder that
    it does not name is asked for its manifest, so a lost or lagging index hides nothing."""
    layers = (indexed_layer(info.key) for info in storage.list(INDEX_PREFIX))
    indexed = {subdir for subdir, first, number in filter(None, layers) if first == number == 0}
    return (subdir for subdir in chain_subdirs(storage) if subdir in indexed or is_complete(storage, subdir))


class RebuildCounts(Value):
    """What `rebuild` did. `differing` are keys of readable entries that contradict the manifest they are of: one of the
    two was changed, and which one is not for a program to say, so they are left alone. `problems` are sentences on
    manifests that cannot be read, and on entries of backups that are gone which locks keep."""

    written: int
    kept: int
    removed: int
    differing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def entry_of(manifest: Manifest, manifest_sha256: str, *, encrypted: bool) -> IndexEntry:
    """The index entry of a manifest whose stored bytes have that digest. That of an encrypted chain names nothing that was
    backed up: the index itself is in the clear."""
    return IndexEntry(
        kind=manifest.kind,
        number=manifest.number,
        first=manifest.first,
        subdir=manifest.subdir,
        revision_history=manifest.revision_history,
        start=manifest.start,
        end=manifest.end,
        captured=manifest.captured,
        run_key=manifest.run_key,
        encrypted=encrypted,
        target=None if encrypted else _target_text(manifest),
        tables=() if encrypted else _tables(manifest),
        planned_at=manifest.planned_at,
        committed_at=manifest.committed_at,
        manifest_sha256=manifest_sha256,
        totals=_totals(manifest.totals, encrypted=encrypted),
    )


def _totals(totals: Totals, *, encrypted: bool) -> IndexedTotals:
    return IndexedTotals(
        tables=None if encrypted else totals.tables,
        rows=None if encrypted else totals.rows,
        file_bytes=totals.file_bytes,
        files=totals.files,
        source_bytes=None if encrypted else totals.source_bytes,
    )


def _target_text(manifest: Manifest) -> str:
    """What was backed up, as a statement names it: `CLUSTER`, `DATABASE shop`."""
    statement = render(BackupRequest(target=manifest.request.target, into=""))
    return statement.removeprefix("BACKUP ").removesuffix("INTO ''").strip() or "CLUSTER"


def _tables(manifest: Manifest) -> tuple[IndexedTable, ...]:
    """The layer's tables by name, of more than `MOST_TABLES` the largest."""
    tables = [
        IndexedTable(name=f"{entry.database.name}.{shape.qualified}", rows=table.rows, bytes=shape.bytes)
        for entry in manifest.databases
        for table in entry.tables
        if table.basis is not None and (shape := entry.database.table(table.oid)) is not None
    ]
    largest = sorted(tables, key=lambda table: (-table.bytes, table.name))[:MOST_TABLES]
    return tuple(sorted(largest, key=lambda table: table.name))


def write_entry(storage: Storage, entry: IndexEntry) -> None:
    """Write a layer's entry if it is not there; an existing one stays."""
    with contextlib.suppress(AlreadyExists):
        storage.put(index_key(entry.subdir, entry.number, entry.first), entry.to_json(), create_only=True)


def read_entry(storage: Storage, subdir: str, number: int, first: int | None = None) -> IndexEntry | None:
    """A layer's entry; None when there is none, or none that can be read: the manifest then stands for itself."""
    key = index_key(subdir, number, first)
    try:
        return _parse(storage.get(key), key)
    except (NotFound, Damaged):
        return None


def list_entries(storage: Storage) -> Iterator[IndexEntry]:
    """All readable entries, newest chain first, newest layer first. Entries that cannot be read are passed over.

    Raises Refused when a newer version wrote one.
    """
    for info in storage.list(INDEX_PREFIX):
        with contextlib.suppress(NotFound, Damaged):
            yield _parse(storage.get(info.key), info.key)


def rebuild(storage: Storage) -> RebuildCounts:
    """Make the index say what the manifests say: missing and unreadable entries are written, those of backups that are
    gone are removed. A manifest that cannot be read is named and stops nothing. A lost COLLECTION.json is written anew
    first. May be killed anywhere and run again.

    Raises NotFound where there is no collection, and what `restore_identity` raises.
    """
    restore_identity(storage)
    before = {info.key for info in storage.list(INDEX_PREFIX)}  # before the walk: what is committed meanwhile stays
    kept = written = 0
    differing, problems, known = [], [], set()
    for subdir, first, number in _committed_layers(storage):
        key = index_key(subdir, number, first)
        known.add(key)
        try:
            entry = true_entry(storage, subdir, number, first)
        except (Damaged, Refused) as error:
            problems.append(str(error))
            continue
        indexed = read_entry(storage, subdir, number, first)
        if indexed is None:
            storage.put(key, entry.to_json())
            written += 1
        elif indexed == entry:
            kept += 1
        else:
            differing.append(key)
    removed = 0
    for key in sorted(before - known):
        try:
            storage.delete(key)
            removed += 1
        except Locked as error:
            problems.append(str(error))
    return RebuildCounts(written=written, kept=kept, removed=removed, differing=tuple(differing), problems=tuple(problems))


def _committed_layers(storage: Storage) -> Iterator[tuple[str, int, int]]:
    for subdir in complete_subdirs(storage):
        for first, number in any_names(storage, subdir).manifests:
            yield subdir, first, number


def true_entry(storage: Storage, subdir: str, number: int, first: int | None = None) -> IndexEntry:
    """The entry that the stored manifest asks for. Raises NotFound, Damaged, Refused."""
    data = storage.get(manifest_key(subdir, number, first))
    manifest = parse_manifest(data, subdir, number, first)
    return entry_of(manifest, hashlib.sha256(data).hexdigest(), encrypted=is_encrypted(storage, subdir))


def _parse(data: bytes, key: str) -> IndexEntry:
    entry = parse_document(IndexEntry, data, f"The index entry {key}")
    if index_key(entry.subdir, entry.number, entry.first) != key:
        raise Damaged(f"The index entry {key} is that of another backup: it was copied or renamed.")
    return entry
