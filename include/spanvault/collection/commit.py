"""The one commit point of a collection: the conditional creation of a manifest."""

from __future__ import annotations

import hashlib
import logging

from spanvault.collection.identity import read_collection
from spanvault.collection.index import entry_of, write_entry
from spanvault.collection.layout import manifest_key, plan_key
from spanvault.collection.manifests import check_owner, parse_manifest
from spanvault.collection.plans import read_plan
from spanvault.collection.readme import write_readme
from spanvault.errors import AlreadyExists, NotFound, Refused, SpanvaultError
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage

_log = logging.getLogger(__name__)


def commit(storage: Storage, manifest: Manifest) -> Manifest:
    """Make the layer part of its chain; everything that the manifest names must be on storage already.

    Returns the manifest that counts: an earlier one of the same run, if there is one. Index entry and README follow
    and may fail without harm: they are written again by the next commit or `rebuild`.

    Raises Refused when another run has this layer, when the layer's plan is gone or another run's (its data may have
    been swept), or when the manifest is not for this collection.
    """
    counts, data = _existing(storage, manifest) or _create(storage, manifest)
    try:
        write_entry(storage, entry_of(counts, hashlib.sha256(data).hexdigest()))
        write_readme(storage, counts)
    except SpanvaultError as error:
        _log.warning("The backup %s is committed, but its index entry or README.txt is not written: %s", counts.subdir, error)
    return counts


def _create(storage: Storage, manifest: Manifest) -> tuple[Manifest, bytes]:
    check_owner(manifest, read_collection(storage))
    plan = read_plan(storage, manifest.subdir, manifest.number)
    if plan is None or plan.run_key != manifest.run_key:
        state = "is gone" if plan is None else f"is that of the run {plan.run_key}"
        raise Refused(
            f"The backup {manifest.subdir} is not committed: its plan {plan_key(manifest.subdir, manifest.number)} {state},"
            " so its files may have been swept away; take a new backup."
        )
    data = manifest.to_json()
    try:
        storage.put(manifest_key(manifest.subdir, manifest.number), data, create_only=True)
    except AlreadyExists:
        winner = _existing(storage, manifest)
        if winner is None:
            raise
        return winner
    return manifest, data


def _existing(storage: Storage, manifest: Manifest) -> tuple[Manifest, bytes] | None:
    """The committed manifest of this layer, if it is the same run's."""
    try:
        data = storage.get(manifest_key(manifest.subdir, manifest.number))
    except NotFound:
        return None
    existing = parse_manifest(data, manifest.subdir, manifest.number)
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
