"""Deleting whole chains, in an order in which a crash never leaves one that looks restorable and is not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime

from spanvault.collection.chain import load_manifest_bytes
from spanvault.collection.identity import read_collection
from spanvault.collection.index import entry_of
from spanvault.collection.layout import index_key, manifest_key, plan_key
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


def expire(storage: Storage, policy: Policy, *, now: datetime, dry_run: bool = True) -> ExpireReport:
    """Delete the chains that `policy` lets go. May be killed anywhere and run again.

    Raises NotFound where there is no collection, BadInput for a bad policy.
    """
    read_collection(storage)
    problems: list[str] = []
    decisions = decide(chains_of(_layers(storage, problems)), policy, now)
    if not dry_run:
        for decision in decisions:
            if decision.expire:
                delete_chain(storage, decision.chain.subdir)
    return ExpireReport(dry_run=dry_run, decisions=decisions, problems=tuple(problems))


def delete_chain(storage: Storage, subdir: str) -> None:
    """Delete a complete chain: first the plan, so that its run cannot be continued; then the index entries; then the
    full's manifest, with which the chain stops being one; then the rest, which is garbage from here on (`sweep` removes
    it if this is interrupted)."""
    numbers = chain_names(storage, subdir).originals
    storage.delete(plan_key(subdir))
    for number in numbers:
        storage.delete(index_key(subdir, number))
    storage.delete(manifest_key(subdir))
    for info in storage.list(f"{subdir}/"):
        storage.delete(info.key)


def _layers(storage: Storage, problems: list[str]) -> Iterator[IndexEntry]:
    """The entries of all layers of the chains that can be read, from their manifests."""
    for subdir in complete_subdirs(storage):
        try:
            loaded = [load_manifest_bytes(storage, subdir, number) for number in chain_names(storage, subdir).originals]
        except Permanent as error:
            problems.append(str(error))
            continue
        for manifest, data in loaded:
            yield entry_of(manifest, hashlib.sha256(data).hexdigest())
