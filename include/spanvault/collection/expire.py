"""Deleting whole chains, in an order in which a crash never leaves one that looks restorable and is not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime

from spanvault.collection.chain import OpenLocation, load_manifest_bytes, no_locations
from spanvault.collection.contents import load_contents
from spanvault.collection.identity import read_collection
from spanvault.collection.index import entry_of
from spanvault.collection.layout import index_key, manifest_key, path_kind, plan_key
from spanvault.collection.lookup import complete_subdirs
from spanvault.collection.manifests import chain_names
from spanvault.collection.retention import Decision, Policy, chains_of, decide
from spanvault.errors import Permanent
from spanvault.model.base import Value
from spanvault.model.manifest import IndexEntry
from spanvault.storage.base import Storage


class ExpireReport(Value):
    """The decision on each complete chain, newest first; those that expire are deleted unless `dry_run`. `problems`
    are sentences on chains that cannot be read: they are kept, and count for nothing."""

    dry_run: bool
    decisions: tuple[Decision, ...]
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
    run again. A chain whose location cannot be opened is kept, and named as a problem.

    Raises NotFound where there is no collection, BadInput for a bad policy.
    """
    read_collection(storage)
    problems: list[str] = []
    decisions = decide(chains_of(_layers(storage, problems)), policy, now)
    if not dry_run:
        for decision in decisions:
            if decision.expire:
                try:
                    delete_chain(storage, decision.chain.subdir, open_location=open_location)
                except Permanent as error:
                    problems.append(str(error))
    return ExpireReport(dry_run=dry_run, decisions=decisions, problems=tuple(problems))


def delete_chain(storage: Storage, subdir: str, *, open_location: OpenLocation = no_locations) -> None:
    """Delete a complete chain: first the plan, so that its run cannot be continued; then the index entries; then the
    full's manifest, with which the chain stops being one; then data files at incremental locations; then the rest, which
    is garbage from here on, the later manifests last: they tell of the locations (`sweep` goes on if this is interrupted).

    Raises what `open_location` raises before anything is deleted.
    """
    contents = load_contents(storage, subdir)
    places = [open_location(location) for location in sorted(contents.locations)]
    storage.delete(plan_key(subdir))
    for manifest in contents.manifests:
        storage.delete(index_key(subdir, manifest.number, manifest.first))
    storage.delete(manifest_key(subdir))
    for place in places:
        for info in place.list(f"{subdir}/"):
            if path_kind(info.key.removeprefix(f"{subdir}/")) == "data":
                place.delete(info.key)
    for info in storage.list(f"{subdir}/"):
        if not info.key.startswith((f"{subdir}/chain/", f"{subdir}/ENCRYPTION-INFO-")):
            storage.delete(info.key)
    for prefix in ("chain/", "ENCRYPTION-INFO-"):  # what opens the manifests goes last
        for info in storage.list(f"{subdir}/{prefix}"):
            storage.delete(info.key)


def _layers(storage: Storage, problems: list[str]) -> Iterator[IndexEntry]:
    """The entries of all valid layers of the chains that can be read, from their manifests."""
    for subdir in complete_subdirs(storage):
        try:
            names = chain_names(storage, subdir)
            wanted = [numbers for numbers in names.manifests if numbers[1] < len(names.valid)]
            loaded = [load_manifest_bytes(storage, subdir, number, first) for first, number in wanted]
        except Permanent as error:
            problems.append(str(error))
            continue
        if not loaded:
            problems.append(f"The backup {subdir} is marked invalid, so it is kept and counts for nothing.")
        for manifest, data in loaded:
            yield entry_of(manifest, hashlib.sha256(data).hexdigest())
