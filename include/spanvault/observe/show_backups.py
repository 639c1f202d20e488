"""SHOW BACKUPS: the chains of a collection by path, or its single backups by ID."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from spanvault.collection.chain import load_manifest
from spanvault.collection.identity import read_collection
from spanvault.collection.index import list_chains, read_entry
from spanvault.collection.manifests import chain_names
from spanvault.errors import NotFound, Permanent
from spanvault.model.cut import backup_id, format_time
from spanvault.model.manifest import IndexEntry, Manifest
from spanvault.model.result import Cell, Incomplete, Result
from spanvault.storage.base import Storage

_READERS = 8  # requests in flight; index entries are small, so latency is what they hide


def show_backups(storage: Storage) -> Result:
    """SHOW BACKUPS IN: the `path` of each complete chain, oldest first. Raises NotFound where there is no collection."""
    read_collection(storage)
    return Result(columns=("path",), rows=tuple((subdir,) for subdir in sorted(list_chains(storage))))


def show_layers(
    storage: Storage,
    *,
    newer_than: datetime | None = None,
    older_than: datetime | None = None,
    revision_start_time: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Result:
    """SHOW BACKUPS IN with IDs: a row for each valid backup that ended in between (ends excluded), oldest chain first, each
    in its order: `id` and `backup_time`, and where asked `revision_start_time`, from when on any time up to `backup_time`
    can be restored of it, NULL of a backup without revision history.

    Read from the index, where it has lost a backup from its manifest. `note` hears of chains that end early because a layer
    is marked invalid. Raises NotFound where there is no collection, Incomplete with the rest if chains cannot be read.
    """
    read_collection(storage)
    columns = ("id", "backup_time", *(("revision_start_time",) if revision_start_time else ()))
    rows: list[tuple[Cell, ...]] = []
    problems: list[str] = []
    with ThreadPoolExecutor(_READERS) as readers:
        subdirs = sorted(list_chains(storage))
        for subdir, found in zip(subdirs, readers.map(lambda subdir: _chain(storage, subdir), subdirs), strict=True):
            problems += found.problems
            for sentence in found.notes:
                note(sentence)
            rows += [
                (backup_id(subdir, layer.number), format_time(layer.end.time), *((_start(layer),) if revision_start_time else ()))
                for layer in found.layers
                if (newer_than is None or layer.end.time > newer_than) and (older_than is None or layer.end.time < older_than)
            ]
    shown = Result(columns=columns, rows=tuple(rows))
    if problems:
        raise Incomplete(" ".join(dict.fromkeys(problems)), shown)
    return shown


def _start(layer: IndexEntry | Manifest) -> str | None:
    return format_time(layer.start.time) if layer.revision_history else None


@dataclass(frozen=True)
class _Chain:
    layers: tuple[IndexEntry | Manifest, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def _chain(storage: Storage, subdir: str) -> _Chain:
    """The facts of a chain's valid layers, or why they cannot be told."""
    try:
        names = chain_names(storage, subdir)
        layers = tuple(read_entry(storage, subdir, number) or load_manifest(storage, subdir, number) for number in names.valid)
    except NotFound:
        return _Chain()  # deleted while it was looked at
    except Permanent as error:
        return _Chain(problems=(str(error),))
    if not names.marked:
        return _Chain(layers)
    return _Chain(layers, (f"{subdir}: layer {names.marked[0]} is marked invalid; it and what follows it are not listed.",))
