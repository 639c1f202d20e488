"""Garbage: what crashed runs, lost races and half-done deletions leave behind, and its removal after a safe age.

Only objects that this version's layout names are ever called garbage, and each only when it is older than the safe age
by its own time on storage. In a committed layer garbage is what its manifest does not reach; the run's own record
(plan, receipts, seals) stays, so that a repeated run finds itself finished. A layer that is not committed is garbage as
a whole once *all* of it is older than the safe age: a run that still writes is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from spanvault.collection.chain import load_manifest
from spanvault.collection.files import objects_of
from spanvault.collection.identity import read_collection
from spanvault.collection.layout import layer_folder, manifest_key, path_kind, plan_key
from spanvault.collection.lookup import is_complete
from spanvault.collection.manifests import chain_names
from spanvault.collection.plans import chain_subdirs
from spanvault.errors import BadInput, Permanent
from spanvault.model.base import Value
from spanvault.model.manifest import Manifest
from spanvault.storage.base import ObjectInfo, Storage

SAFE_AGE = timedelta(hours=24)


class Garbage(Value):
    """An object that nothing needs, its size, and why it is not needed."""

    key: str
    bytes: int
    reason: str


class SweepReport(Value):
    """What a sweep removed, or with `dry_run` would remove. `unfinished` counts interrupted uploads; `problems` are
    sentences on backups that were left alone because they cannot be read."""

    dry_run: bool
    objects: int
    bytes: int
    unfinished: int
    problems: tuple[str, ...] = ()


def sweep(storage: Storage, *, now: datetime, older_than: timedelta = SAFE_AGE, dry_run: bool = True) -> SweepReport:
    """Remove the garbage that is older than `older_than`. May be killed anywhere and run again."""
    objects = size = unfinished = 0
    problems: list[str] = []
    for garbage in find_garbage(storage, older_than=older_than, now=now, on_problem=problems.append):
        objects += 1
        size += garbage.bytes
        if not dry_run:
            storage.delete(garbage.key)
    for upload in storage.list_unfinished():
        if upload.started < _horizon(now, older_than):
            unfinished += 1
            if not dry_run:
                storage.remove_unfinished(upload)
    return SweepReport(dry_run=dry_run, objects=objects, bytes=size, unfinished=unfinished, problems=tuple(problems))


def find_garbage(
    storage: Storage, *, older_than: timedelta, now: datetime, on_problem: Callable[[str], None]
) -> Iterator[Garbage]:
    """The collection's garbage in the order in which it may be deleted, in bounded memory.

    Each object must be deleted before the next is asked for, or none at all. `on_problem` is told of backups that
    cannot be read; they are left alone. Raises NotFound where there is no collection, BadInput for a negative age.
    """
    read_collection(storage)
    horizon = _horizon(now, older_than)
    for subdir in chain_subdirs(storage):
        try:
            yield from _of_chain(storage, subdir, horizon)
        except Permanent as error:
            on_problem(str(error))


def _horizon(now: datetime, older_than: timedelta) -> float:
    if older_than < timedelta(0):
        raise BadInput("The safe age of a sweep cannot be negative.")
    return (now - older_than).timestamp()


def _of_chain(storage: Storage, subdir: str, horizon: float) -> Iterator[Garbage]:
    if not is_complete(storage, subdir):
        yield from _of_uncommitted(storage, subdir, 0, horizon)
        return
    committed = chain_names(storage, subdir).originals
    for number in committed:
        yield from _of_committed(storage, load_manifest(storage, subdir, number), horizon)
    for folder in storage.list_folders(f"{subdir}/"):
        if re.fullmatch(r"\d{6}/", folder) and int(folder[:-1]) not in committed:
            yield from _of_uncommitted(storage, subdir, int(folder[:-1]), horizon)


def _of_uncommitted(storage: Storage, subdir: str, number: int, horizon: float) -> Iterator[Garbage]:
    prefix = f"{subdir}/" if number == 0 else layer_folder(subdir, number)
    if any(info.modified >= horizon for info in storage.list(prefix)):
        return
    reason = "of a run that never committed, or of a deleted backup"
    plan = storage.head(plan_key(subdir, number))
    if plan is not None:
        # The plan goes first: without it nobody can continue the run, and commit() refuses it. A commit that was
        # already past that test shows in the next line, and its files stay.
        yield Garbage(key=plan.key, bytes=plan.size, reason=reason)
        if storage.head(manifest_key(subdir, number)) is not None:
            return
    for info in storage.list(prefix):
        if path_kind(info.key.removeprefix(f"{subdir}/")) not in {None, "plan"}:
            yield Garbage(key=info.key, bytes=info.size, reason=reason)


def _of_committed(storage: Storage, manifest: Manifest, horizon: float) -> Iterator[Garbage]:
    """A merge of two ascending streams: what is there, and what the manifest reaches."""
    referenced = (reference.path for reference in objects_of(storage, manifest))
    wanted = next(referenced, None)
    for info in storage.list(layer_folder(manifest.subdir, manifest.number)):
        path = info.key.removeprefix(f"{manifest.subdir}/")
        while wanted is not None and wanted < path:
            wanted = next(referenced, None)
        if path != wanted and _is_sweepable(info, path, horizon):
            yield Garbage(key=info.key, bytes=info.size, reason="the backup's manifest does not name it")


def _is_sweepable(info: ObjectInfo, path: str, horizon: float) -> bool:
    return path_kind(path) in {"data", "files", "dump"} and info.modified < horizon
