"""Garbage: what crashed runs, lost races and half-done deletions leave behind, and its removal after a safe age.

Only objects that this version's layout names are ever called garbage, and each only when it is older than the safe age
by its own time on storage. In a committed layer garbage is what no manifest of its chain reaches; the runs' own records
(plans, receipts, seals) stay, so that a repeated run finds itself finished. A layer that is not committed is garbage as
a whole once *all* of it is older than the safe age: a run that still writes is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from spanvault.collection.chain import OpenLocation, no_locations
from spanvault.collection.contents import Contents, load_contents
from spanvault.collection.identity import read_collection
from spanvault.collection.layout import layer_folder, manifest_key, path_kind
from spanvault.collection.plans import chain_subdirs
from spanvault.errors import BadInput, Permanent
from spanvault.model.base import Value
from spanvault.storage.base import ObjectInfo, Storage

SAFE_AGE = timedelta(hours=24)
_SWEEPABLE = frozenset({"data", "files", "dump", "commits"})
_UNNAMED = "no manifest of the backup names it"


class Garbage(Value):
    """An object that nothing needs, its size, and why it is not needed. `location` is the URI of the incremental location
    that it is in, None if it is in the collection."""

    key: str
    bytes: int
    reason: str
    location: str | None = None


class SweepReport(Value):
    """What a sweep removed, or with `dry_run` would remove. `unfinished` counts interrupted uploads; `problems` are
    sentences on backups that were left alone because they cannot be read."""

    dry_run: bool
    objects: int
    bytes: int
    unfinished: int
    problems: tuple[str, ...] = ()


def sweep(
    storage: Storage,
    *,
    now: datetime,
    older_than: timedelta = SAFE_AGE,
    dry_run: bool = True,
    open_location: OpenLocation = no_locations,
) -> SweepReport:
    """Remove the garbage that is older than `older_than`. May be killed anywhere and run again. An incremental location
    that cannot be opened is a problem, and left alone."""
    objects = size = unfinished = 0
    problems: list[str] = []
    for garbage in find_garbage(storage, older_than=older_than, now=now, on_problem=problems.append, open_location=open_location):
        objects += 1
        size += garbage.bytes
        if not dry_run:
            (storage if garbage.location is None else open_location(garbage.location)).delete(garbage.key)
    for upload in storage.list_unfinished():
        if upload.started < _horizon(now, older_than):
            unfinished += 1
            if not dry_run:
                storage.remove_unfinished(upload)
    return SweepReport(dry_run=dry_run, objects=objects, bytes=size, unfinished=unfinished, problems=tuple(problems))


def find_garbage(
    storage: Storage,
    *,
    older_than: timedelta,
    now: datetime,
    on_problem: Callable[[str], None],
    open_location: OpenLocation = no_locations,
) -> Iterator[Garbage]:
    """The collection's garbage in the order in which it may be deleted, in bounded memory but for what layers name in the
    folders of others.

    Each object must be deleted before the next is asked for, or none at all. `on_problem` is told of backups that
    cannot be read; they are left alone. Raises NotFound where there is no collection, BadInput for a negative age.
    """
    read_collection(storage)
    horizon = _horizon(now, older_than)
    for subdir in chain_subdirs(storage):
        try:
            chain = load_contents(storage, subdir)
            if chain.complete:
                yield from _of_chain(storage, chain, horizon)
            yield from _of_locations(storage, open_location, chain, horizon, on_problem)
            if not chain.complete:
                # Of a half-deleted chain what is left of its manifests tells of the locations, so they come first.
                yield from _of_uncommitted(storage, chain, 0, horizon)
        except Permanent as error:
            on_problem(str(error))


def _horizon(now: datetime, older_than: timedelta) -> float:
    if older_than < timedelta(0):
        raise BadInput("The safe age of a sweep cannot be negative.")
    return (now - older_than).timestamp()


def _of_chain(storage: Storage, chain: Contents, horizon: float) -> Iterator[Garbage]:
    for folder in storage.list_folders(f"{chain.subdir}/"):
        number = _number(folder)
        if number in chain.committed:
            yield from _of_committed(storage, chain, number, horizon)
        elif number is not None:
            yield from _of_uncommitted(storage, chain, number, horizon)


def _number(folder: str) -> int | None:
    """The layer that a folder is of."""
    return int(folder[:-1]) if re.fullmatch(r"\d{6}/", folder) else None


def _of_uncommitted(storage: Storage, chain: Contents, number: int, horizon: float) -> Iterator[Garbage]:
    subdir = chain.subdir
    prefix = layer_folder(subdir, number) if chain.complete else f"{subdir}/"
    if any(info.modified >= horizon for info in storage.list(prefix)):
        return
    reason = "of a run that never committed, or of a deleted backup"
    for info in storage.list(prefix):
        if path_kind(info.key.removeprefix(f"{subdir}/")) == "plan":
            # The plans go first: without its plan nobody can continue a run, and commit() refuses it. A commit that was
            # already past that test shows in the next line, and its files stay.
            yield Garbage(key=info.key, bytes=info.size, reason=reason)
    if storage.head(manifest_key(subdir, number)) is not None:
        return
    for info in storage.list(prefix):
        path = info.key.removeprefix(f"{subdir}/")
        if path_kind(path) not in {None, "plan", "encryption"} and path not in chain.elsewhere:
            yield Garbage(key=info.key, bytes=info.size, reason=reason)
    for info in storage.list(prefix):  # without it nothing else can be read
        if path_kind(info.key.removeprefix(f"{subdir}/")) == "encryption":
            yield Garbage(key=info.key, bytes=info.size, reason=reason)


def _of_committed(storage: Storage, chain: Contents, number: int, horizon: float) -> Iterator[Garbage]:
    """A merge of two ascending streams: what is there, and what the manifests reach."""
    there = storage.list(layer_folder(chain.subdir, number))
    for info in _unnamed(there, chain, chain.named_in(storage, number)):
        if path_kind(info.key.removeprefix(f"{chain.subdir}/")) in _SWEEPABLE and info.modified < horizon:
            yield Garbage(key=info.key, bytes=info.size, reason=_UNNAMED)


def _of_locations(
    storage: Storage, open_location: OpenLocation, chain: Contents, horizon: float, on_problem: Callable[[str], None]
) -> Iterator[Garbage]:
    for location in sorted(chain.locations):
        try:
            yield from _of_location(storage, open_location(location), location, chain, horizon)
        except Permanent as error:
            on_problem(str(error))


def _of_location(storage: Storage, data: Storage, location: str, chain: Contents, horizon: float) -> Iterator[Garbage]:
    """What no manifest names at an incremental location. What belongs to a layer that is not committed goes only when all
    of it is old, here and in the collection."""
    for folder in data.list_folders(f"{chain.subdir}/"):
        number = _number(folder)
        if number is None:
            continue
        prefix = layer_folder(chain.subdir, number)
        if number not in chain.committed:
            both = (info for place in (data, storage) for info in place.list(prefix))
            if any(info.modified >= horizon for info in both):
                continue
        for info in _unnamed(data.list(prefix), chain, chain.named_in(storage, number)):
            if path_kind(info.key.removeprefix(f"{chain.subdir}/")) == "data" and info.modified < horizon:
                yield Garbage(key=info.key, bytes=info.size, reason=_UNNAMED, location=location)


def _unnamed(there: Iterator[ObjectInfo], chain: Contents, named: Iterator[str]) -> Iterator[ObjectInfo]:
    wanted = next(named, None)
    for info in there:
        path = info.key.removeprefix(f"{chain.subdir}/")
        while wanted is not None and wanted < path:
            wanted = next(named, None)
        if path != wanted and path not in chain.elsewhere:
            yield info
