"""The one commit point of a collection: the conditional creation of a manifest."""

from __future__ import annotations

import hashlib
import itertools
import logging

from spanvault.collection.files import objects_of, own_objects
from spanvault.collection.identity import read_collection
from spanvault.collection.index import entry_of, write_entry
from spanvault.collection.layout import manifest_key, object_key, plan_key
from spanvault.collection.manifests import any_names, check_owner, parse_manifest
from spanvault.collection.markers import read_marker
from spanvault.collection.plans import plans_of, read_plan
from spanvault.collection.readme import write_readme
from spanvault.crypto.keyring import is_encrypted
from spanvault.errors import AlreadyExists, BrokenChain, NotFound, Refused, SpanvaultError
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage

_log = logging.getLogger(__name__)


def commit(storage: Storage, manifest: Manifest) -> Manifest:
    """Make the layer part of its chain; everything that the manifest names must be on storage already.

    Returns the manifest that counts: an earlier one of the same run, if there is one. Index entry and README follow and
    may fail without harm: they are written again by the next commit or `rebuild`.

    Raises Refused when another run has this layer, when the run's plan for it is gone or another's (its data may have
    been swept; a compacted layer has no plan, so all that it names must be there), or when the manifest is not for this
    collection; BrokenChain unless the layer goes on exactly where the one before it ends, or when the chain was marked
    invalid.
    """
    counts, data = _existing(storage, manifest) or _create(storage, manifest)
    try:
        encrypted = is_encrypted(storage, counts.subdir)
        write_entry(storage, entry_of(counts, hashlib.sha256(data).hexdigest(), encrypted=encrypted))
        write_readme(storage, counts, encrypted=encrypted)
    except SpanvaultError as error:
        _log.warning("The backup %s is committed, but its index entry or README.txt is not written: %s", counts.subdir, error)
    return counts


def _create(storage: Storage, manifest: Manifest) -> tuple[Manifest, bytes]:
    check_owner(manifest, read_collection(storage))
    _check_place(storage, manifest)
    if manifest.compacted:
        _require_objects(storage, manifest)
    else:
        _require_plan(storage, manifest)
    data = manifest.to_json()
    try:
        storage.put(manifest_key(manifest.subdir, manifest.number, manifest.first), data, create_only=True)
    except AlreadyExists:
        winner = _existing(storage, manifest)
        if winner is None:
            raise
        return winner
    return manifest, data


def _check_place(storage: Storage, manifest: Manifest) -> None:
    """Raises BrokenChain unless the layer continues its chain."""
    names = any_names(storage, manifest.subdir)
    what = f"Layer {manifest.number} of the backup {manifest.subdir} is not committed"
    if names.marked and names.marked[0] <= manifest.number:
        marker = read_marker(storage, manifest.subdir, names.marked[0])
        raise BrokenChain(f"{what}: layer {marker.number} was marked invalid ({marker.reason}); take a new full backup.")
    if manifest.compacted:
        last = _stored(storage, manifest.subdir, manifest.number, what)[0]
        if manifest.end != last.end:
            raise BrokenChain(f"{what} as a compacted one: it ends at {manifest.end}, and the layer there at {last.end}.")
    if manifest.first == 0:
        return
    parent, digest = _stored(storage, manifest.subdir, manifest.first - 1, what)
    key = manifest_key(manifest.subdir, parent.number)
    if manifest.parent_sha256 != digest:
        raise BrokenChain(
            f"{what}: it was built upon a manifest with the SHA-256 {manifest.parent_sha256}, and {key} has {digest};"
            " take a new full backup."
        )
    if manifest.start.lsn != parent.end.lsn:
        raise BrokenChain(
            f"{what}: it begins at {manifest.start.lsn}, and {key} ends at {parent.end.lsn}, so history would be missing;"
            " take a new full backup."
        )


def _stored(storage: Storage, subdir: str, number: int, what: str) -> tuple[Manifest, str]:
    try:
        data = storage.get(manifest_key(subdir, number))
    except NotFound:
        raise BrokenChain(f"{what}: {manifest_key(subdir, number)} is not there any more; take a new full backup.") from None
    return parse_manifest(data, subdir, number), hashlib.sha256(data).hexdigest()


def _require_plan(storage: Storage, manifest: Manifest) -> None:
    """Raises Refused when the run was ended behind its back: while its plan is there, nobody sweeps the layer's folder."""
    if manifest.number == 0:
        plan = read_plan(storage, manifest.subdir)
        plans = [plan] if plan is not None else []
    else:
        plans = list(plans_of(storage, manifest.subdir, manifest.number))
    # By the time, too: a run that was swept and planned again has another plan, and other files.
    if not any((plan.run_key, plan.planned_at) == (manifest.run_key, manifest.planned_at) for plan in plans):
        state = "is gone" if not plans else f"is that of the run {plans[0].run_key}, made {plans[0].planned_at.isoformat()}"
        raise Refused(
            f"The backup {manifest.subdir} is not committed: its plan"
            f" {plan_key(manifest.subdir, manifest.number, manifest.run_key)} {state}, so its files may have been swept away;"
            " take a new backup."
        )


def _require_objects(storage: Storage, manifest: Manifest) -> None:
    """Raises Refused when something is missing that a sweep may have taken: what a compaction writes lies in the folder of
    a committed layer, where no plan keeps it, and is named by nothing until now."""
    there: dict[str, set[str]] = {}
    for reference in itertools.chain(own_objects(manifest), objects_of(storage, manifest)):
        folder = reference.path.partition("/")[0]
        if folder not in there:
            there[folder] = {info.key for info in storage.list(f"{manifest.subdir}/{folder}/")}
        if object_key(manifest.subdir, reference.path) not in there[folder]:
            raise Refused(
                f"Layer {manifest.number} of the backup {manifest.subdir} is not compacted: {reference.path} is gone, it may"
                " have been swept away; run it again."
            )


def _existing(storage: Storage, manifest: Manifest) -> tuple[Manifest, bytes] | None:
    """The committed manifest of this layer, if it is the same run's."""
    try:
        data = storage.get(manifest_key(manifest.subdir, manifest.number, manifest.first))
    except NotFound:
        return None
    existing = parse_manifest(data, manifest.subdir, manifest.number, manifest.first)
    if existing.run_key != manifest.run_key:
        raise Refused(
            f"A backup already exists in {manifest.subdir} (layer {manifest.number}): the run {existing.run_key} committed it"
            f" at {existing.committed_at.isoformat()}, so the run {manifest.run_key} is not committed; start it anew."
        )
    return existing, data


def committed_run(storage: Storage, subdir: str, number: int) -> Manifest | None:
    """The manifest of a layer if the layer is committed, whoever did it; None otherwise."""
    try:
        data = storage.get(manifest_key(subdir, number))
    except NotFound:
        return None
    return parse_manifest(data, subdir, number)
