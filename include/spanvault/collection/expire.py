"""Deleting whole chains, in an order in which a crash never leaves one that looks restorable and is not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from spanvault.collection.chain import OpenLocation, load_manifest_bytes, no_locations
from spanvault.collection.contents import load_contents
from spanvault.collection.identity import read_collection
from spanvault.collection.index import entry_of
from spanvault.collection.layout import BESIDE_DATA, index_key, manifest_key, path_kind, plan_key
from spanvault.collection.locks import ChainLock, Kept, chain_lock
from spanvault.collection.lookup import complete_subdirs
from spanvault.collection.manifests import chain_names
from spanvault.collection.parts import require_parts
from spanvault.collection.retention import Decision, Policy, chains_of, decide
from spanvault.crypto.keyring import is_encrypted
from spanvault.errors import Locked, Permanent
from spanvault.model.base import Value
from spanvault.model.manifest import IndexEntry, Manifest
from spanvault.storage.base import Storage


class Undeleted(Value):
    """A chain that the policy lets go and that could not be deleted, with the reason; nothing of it was."""

    subdir: str
    reason: str


class ExpireReport(Value):
    """The decision on each complete chain, newest first; those that expire are deleted unless `dry_run`, or unless they are
    in `locked`: these stay whole until a later run finds their locks ended; or in `undeleted`. `problems` are sentences on
    chains that cannot be read (they are kept, and count for nothing), and on what locks keep of deleted ones."""

    dry_run: bool
    decisions: tuple[Decision, ...]
    locked: tuple[ChainLock, ...] = ()
    undeleted: tuple[Undeleted, ...] = ()
    problems: tuple[str, ...] = ()


def expire(
    storage: Storage,
    policy: Policy,
    *,
    now: datetime,
    dry_run: bool = True,
    open_location: OpenLocation = no_locations,
) -> ExpireReport:
    """Delete the chains that `policy` lets go, with their data files at incremental locations. May be killed anywhere and
    run again. A chain whose location cannot be opened, or with files at a place that is not given, is kept.

    Raises NotFound where there is no collection, BadInput for a bad policy.
    """
    read_collection(storage)
    problems: list[str] = []
    locked: list[ChainLock] = []
    undeleted: list[Undeleted] = []
    decisions = decide(chains_of(_layers(storage, problems)), policy, now)
    for subdir in (decision.chain.subdir for decision in decisions if decision.expire):
        try:
            chain = _Doomed.of(storage, subdir, open_location)
            if (lock := chain_lock(storage, subdir, chain.places)) is not None:
                locked.append(lock)
            elif not dry_run and (kept := chain.delete()).objects:
                problems.append(f"The backup {subdir} is deleted, but {kept.sentence}")
        except Locked as error:
            locked.append(ChainLock(subdir=subdir, until=None, reason=str(error)))
        except Permanent as error:
            undeleted.append(Undeleted(subdir=subdir, reason=str(error)))
    return ExpireReport(
        dry_run=dry_run, decisions=decisions, locked=tuple(locked), undeleted=tuple(undeleted), problems=tuple(problems)
    )


def delete_chain(storage: Storage, subdir: str, *, open_location: OpenLocation = no_locations) -> None:
    """Delete a complete chain: first the index entries, the newest first; then the plan, so that its run cannot be
    continued; then the full's manifest, with which the chain stops being one; then data files at incremental locations; then
    the rest, which is garbage from here on, the later manifests last: they tell of the locations (`sweep` goes on if this is
    interrupted).

    Raises, before anything is deleted, what `open_location` raises, and Locked when a lock protects any of it. A store that
    does not tell of its locks refuses single deletions: what it refuses first is most likely the index entry that was
    written last, and then nothing is deleted. Locked says how far it came.
    """
    chain = _Doomed.of(storage, subdir, open_location)
    lock = chain_lock(storage, subdir, chain.places)
    if lock is not None:
        raise Locked(f"The backup {subdir} is not deleted: {lock.reason}.")
    kept = chain.delete()
    if kept.objects:
        raise Locked(f"The backup {subdir} is deleted, but {kept.sentence}")


@dataclass(frozen=True)
class _Doomed:
    """A complete chain that is to be deleted, and the incremental locations that it uses."""

    storage: Storage
    subdir: str
    manifests: tuple[Manifest, ...]
    places: tuple[Storage, ...]

    @staticmethod
    def of(storage: Storage, subdir: str, open_location: OpenLocation) -> _Doomed:
        """Raises what `open_location` and the manifests' readers raise, and NotFound if a locality's place is not given: what
        lies there would stay for ever."""
        contents = load_contents(storage, subdir)
        opened = {location: open_location(location) for location in sorted(contents.locations)}
        for manifest in contents.manifests:
            data = storage if manifest.location is None else opened[manifest.location]
            require_parts(data, manifest, undone="deleted")
        places = tuple(opened.values())
        return _Doomed(storage, subdir, contents.manifests, places)

    def delete(self) -> Kept:
        """Delete it; what locks keep of it. Raises Locked while the chain is still one."""
        storage, subdir = self.storage, self.subdir
        for manifest in sorted(self.manifests, key=lambda each: (each.committed_at, each.number), reverse=True):
            storage.delete(index_key(subdir, manifest.number, manifest.first))
        storage.delete(plan_key(subdir))
        storage.delete(manifest_key(subdir))
        kept = Kept()
        for place in self.places:
            for info in place.list(f"{subdir}/"):
                if path_kind(info.key.removeprefix(f"{subdir}/")) in BESIDE_DATA:
                    kept.delete(place, info.key, info.size)
        for info in storage.list(f"{subdir}/"):
            if not info.key.startswith((f"{subdir}/chain/", f"{subdir}/ENCRYPTION-INFO-")):
                kept.delete(storage, info.key, info.size)
        for prefix in ("chain/", "ENCRYPTION-INFO-"):  # what opens the manifests goes last
            for info in storage.list(f"{subdir}/{prefix}") if not kept.objects else ():
                kept.delete(storage, info.key, info.size)
        return kept


def _layers(storage: Storage, problems: list[str]) -> Iterator[IndexEntry]:
    """The entries of all valid layers of the chains that can be read, from their manifests."""
    for subdir in complete_subdirs(storage):
        try:
            names = chain_names(storage, subdir)
            wanted = [numbers for numbers in names.manifests if numbers[1] < len(names.valid)]
            loaded = [load_manifest_bytes(storage, subdir, number, first) for first, number in wanted]
            encrypted = is_encrypted(storage, subdir)
        except Permanent as error:
            problems.append(str(error))
            continue
        if not loaded and names.originals:  # or it was deleted just now
            problems.append(f"The backup {subdir} is marked invalid, so it is kept and counts for nothing.")
        for manifest, data in loaded:
            yield entry_of(manifest, hashlib.sha256(data).hexdigest(), encrypted=encrypted)
