"""Garbage: what crashed runs, lost races and half-done deletions leave behind, and its removal after a safe age.

Only objects that this version's layout names are ever called garbage, and each only when it is older than the safe age
by its own time on storage. In a committed layer garbage is what no manifest of its chain reaches; the runs' own records
(plans, receipts, seals) stay, so that a repeated run finds itself finished. A layer that is not committed is garbage as
a whole once *all* of it is older than the safe age: a run that still writes is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta

from spanvault.collection.chain import OpenLocation, no_locations
from spanvault.collection.contents import Contents, load_contents
from spanvault.collection.identity import read_collection
from spanvault.collection.layout import BESIDE_DATA, layer_folder, manifest_key, path_kind
from spanvault.collection.locks import Kept
from spanvault.collection.plans import chain_subdirs
from spanvault.crypto.keyring import INFO_PREFIX, info_key, read_info
from spanvault.errors import BadInput, Permanent
from spanvault.model.base import Value
from spanvault.model.encryption import PassphraseKey
from spanvault.storage.base import ObjectInfo, Storage

SAFE_AGE = timedelta(hours=24)
_SWEEPABLE = frozenset({*BESIDE_DATA, "files", "dump", "commits"})
_OF_RUNS = frozenset({"receipt", "seal", *_SWEEPABLE})
# What is left of a deleted chain's manifests tells of its locations, and without the encryption info nothing can be read.
_OF_CHAINS = (frozenset({"manifest", "marker"}), frozenset({"encryption"}))
_UNNAMED = "no manifest of the backup names it"


class Garbage(Value):
    """An object that nothing needs, its size, and why it is not needed. `location` is the URI of the incremental location
    that it is in, None if it is in the collection."""

    key: str
    bytes: int
    reason: str
    location: str | None = None


class SweepReport(Value):
    """What a sweep removed, or with `dry_run` would remove (it does not ask for locks). `unfinished` counts interrupted
    uploads, `locked` garbage that locks keep; `problems` are sentences on backups that were left alone because they cannot be
    read (`unread` of them, first), and on what is locked."""

    dry_run: bool
    objects: int
    bytes: int
    unfinished: int
    locked: int = 0
    unread: int = 0
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
    kept = Kept()
    for garbage in find_garbage(
        storage, older_than=older_than, now=now, on_problem=problems.append, open_location=open_location, kept=kept
    ):
        place = storage if garbage.location is None else open_location(garbage.location)
        if dry_run or kept.delete(place, garbage.key, garbage.bytes):
            objects += 1
            size += garbage.bytes
    for upload in storage.list_unfinished():
        if upload.started < _horizon(now, older_than):
            unfinished += 1
            if not dry_run:
                storage.remove_unfinished(upload)
    unread = len(problems)
    if kept.objects:
        problems.append(f"Of the garbage {kept.sentence}")
    return SweepReport(
        dry_run=dry_run,
        objects=objects,
        bytes=size,
        unfinished=unfinished,
        locked=kept.objects,
        unread=unread,
        problems=tuple(problems),
    )


def find_garbage(
    storage: Storage,
    *,
    older_than: timedelta,
    now: datetime,
    on_problem: Callable[[str], None],
    open_location: OpenLocation = no_locations,
    kept: Kept | None = None,
) -> Iterator[Garbage]:
    """The collection's garbage in the order in which it may be deleted, in bounded memory but for what layers name in the
    folders of others.

    Each object must be deleted before the next is asked for, or none at all; `kept` counts those that could not be. Of a run
    whose plan is kept nothing goes, and what tells of objects that are kept, or opens them, stays as long as they do.
    `on_problem` is told of backups that cannot be read; they are left alone.

    Raises NotFound where there is no collection, BadInput for a negative age.
    """
    read_collection(storage)
    horizon = _horizon(now, older_than)
    kept = kept or Kept()
    for subdir in chain_subdirs(storage):
        try:
            chain = load_contents(storage, subdir)
            kept.mark()
            if chain.complete:
                yield from _of_chain(storage, chain, horizon, kept)
            yield from _of_locations(storage, open_location, chain, horizon, on_problem, kept)
            if not chain.complete:
                # Of a half-deleted chain what is left of its manifests tells of the locations, so they come first.
                yield from _of_uncommitted(storage, chain, 0, horizon, kept)
        except Permanent as error:
            on_problem(str(error))


def _horizon(now: datetime, older_than: timedelta) -> float:
    if older_than < timedelta(0):
        raise BadInput("The safe age of a sweep cannot be negative.")
    return (now - older_than).timestamp()


def _of_chain(storage: Storage, chain: Contents, horizon: float, kept: Kept) -> Iterator[Garbage]:
    for folder in storage.list_folders(f"{chain.subdir}/"):
        number = _number(folder)
        if number in chain.committed:
            yield from _of_committed(storage, chain, number, horizon)
        elif number is not None:
            yield from _of_uncommitted(storage, chain, number, horizon, kept)
    yield from _replaced_infos(storage, chain.subdir, horizon)


def _replaced_infos(storage: Storage, subdir: str, horizon: float) -> Iterator[Garbage]:
    """Encryption infos that passphrases open which were replaced: a crash left them, or a lock that has ended. The newest one
    is proven, as the chain's manifests were read with it."""
    newest = read_info(storage, subdir)
    if newest is None or not isinstance(newest.keys[0], PassphraseKey):
        return
    for info in storage.list(f"{subdir}/{INFO_PREFIX}"):
        if info.key < info_key(subdir, newest.number) and info.modified < horizon:
            yield Garbage(key=info.key, bytes=info.size, reason="the passphrase that opens it was replaced")


def _number(folder: str) -> int | None:
    """The layer that a folder is of."""
    return int(folder[:-1]) if re.fullmatch(r"\d{6}/", folder) else None


def _of_uncommitted(storage: Storage, chain: Contents, number: int, horizon: float, kept: Kept) -> Iterator[Garbage]:
    subdir = chain.subdir
    prefix = layer_folder(subdir, number) if chain.complete else f"{subdir}/"
    if any(info.modified >= horizon for info in storage.list(prefix)):
        return

    def of(kinds: Collection[str]) -> Iterator[Garbage]:
        for info in storage.list(prefix):
            path = info.key.removeprefix(f"{subdir}/")
            if path_kind(path) in kinds and path not in chain.elsewhere:
                yield Garbage(key=info.key, bytes=info.size, reason="of a run that never committed, or of a deleted backup")

    # The plans go first: without its plan nobody can continue a run, and commit() refuses it. A commit that was already past
    # that test shows in the next line, and its files stay.
    before = kept.objects
    yield from of({"plan"})
    if kept.objects > before or storage.head(manifest_key(subdir, number)) is not None:
        return
    yield from of(_OF_RUNS)
    for kinds in _OF_CHAINS:
        if not chain.complete and not kept.since_mark:
            yield from of(kinds)


def _of_committed(storage: Storage, chain: Contents, number: int, horizon: float) -> Iterator[Garbage]:
    """A merge of two ascending streams: what is there, and what the manifests reach."""
    there = storage.list(layer_folder(chain.subdir, number))
    for info in _unnamed(there, chain, chain.named_in(storage, number)):
        if path_kind(info.key.removeprefix(f"{chain.subdir}/")) in _SWEEPABLE and info.modified < horizon:
            yield Garbage(key=info.key, bytes=info.size, reason=_UNNAMED)


def _of_locations(
    storage: Storage,
    open_location: OpenLocation,
    chain: Contents,
    horizon: float,
    on_problem: Callable[[str], None],
    kept: Kept,
) -> Iterator[Garbage]:
    runs = not kept.since_mark  # Else a run's plan may be kept, which could go on.
    for location in sorted(chain.locations):
        try:
            yield from _of_location(storage, open_location(location), location, chain, horizon, runs=runs)
        except Permanent as error:
            on_problem(str(error))


def _of_location(
    storage: Storage, data: Storage, location: str, chain: Contents, horizon: float, *, runs: bool
) -> Iterator[Garbage]:
    """What no manifest names at an incremental location. What belongs to a layer that is not committed goes with `runs`
    only, and when all of it is old, here and in the collection."""
    for folder in data.list_folders(f"{chain.subdir}/"):
        number = _number(folder)
        if number is None:
            continue
        prefix = layer_folder(chain.subdir, number)
        if number not in chain.committed:
            both = (info for place in (data, storage) for info in place.list(prefix))
            if not runs or any(info.modified >= horizon for info in both):
                continue
        for info in _unnamed(data.list(prefix), chain, chain.named_in(storage, number)):
            if path_kind(info.key.removeprefix(f"{chain.subdir}/")) in BESIDE_DATA and info.modified < horizon:
                yield Garbage(key=info.key, bytes=info.size, reason=_UNNAMED, location=location)


def _unnamed(there: Iterator[ObjectInfo], chain: Contents, named: Iterator[str]) -> Iterator[ObjectInfo]:
    wanted = next(named, None)
    for info in there:
        path = info.key.removeprefix(f"{chain.subdir}/")
        while wanted is not None and wanted < path:
            wanted = next(named, None)
        if path != wanted and path not in chain.elsewhere:
            yield info
