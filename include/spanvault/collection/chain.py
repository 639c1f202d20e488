"""Resolving what a restore needs: the manifests of one chain's layers, in order, checked."""

from __future__ import annotations

import hashlib
from datetime import datetime

from spanvault.collection.identity import read_collection
from spanvault.collection.index import read_entry
from spanvault.collection.layout import manifest_key
from spanvault.collection.lookup import find_subdir
from spanvault.collection.manifests import check_owner, layer_numbers, parse_manifest
from spanvault.errors import BadInput, Damaged, NotFound
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage


def load_manifest(storage: Storage, subdir: str, number: int = 0) -> Manifest:
    """The manifest of a layer.

    Raises NotFound when the layer is not committed, Damaged when the bytes differ from what the index remembers or
    belong to another layer, Refused for a newer format.
    """
    return load_manifest_bytes(storage, subdir, number)[0]


def load_manifest_bytes(storage: Storage, subdir: str, number: int = 0) -> tuple[Manifest, bytes]:
    """As `load_manifest`, with the stored bytes."""
    key = manifest_key(subdir, number)
    data = storage.get(key)
    manifest = parse_manifest(data, subdir, number)
    entry = read_entry(storage, subdir, number)
    digest = hashlib.sha256(data).hexdigest()
    if entry is not None and entry.manifest_sha256 != digest:
        raise Damaged(
            f"The manifest {key} is not the one that was committed: its SHA-256 is {digest}, and the index remembers"
            f" {entry.manifest_sha256}; restore the object from a copy of the collection."
        )
    return manifest, data


def resolve(storage: Storage, subdir: str, as_of: datetime | None = None) -> tuple[Manifest, ...]:
    """The layers that give the state of a chain (`LATEST` or a path) at its end, or at `as_of`: a layer's exact end.

    Raises NotFound when no such backup is complete, BadInput for a time that is no layer's end, and what
    `load_manifest` and `layer_numbers` raise.
    """
    collection = read_collection(storage)
    found = find_subdir(storage, subdir)
    numbers = layer_numbers(storage, found)
    if not numbers:
        raise NotFound(f"The backup {found} in {storage.display_uri} was deleted while it was looked at.")
    manifests = tuple(load_manifest(storage, found, number) for number in numbers)
    for manifest in manifests:
        check_owner(manifest, collection)
    return manifests if as_of is None else _until(manifests, as_of)


def _until(manifests: tuple[Manifest, ...], as_of: datetime) -> tuple[Manifest, ...]:
    for count, manifest in enumerate(manifests, start=1):
        if manifest.end.time == as_of:
            return manifests[:count]
    ends = ", ".join(format_time(manifest.end.time) for manifest in manifests)
    raise BadInput(
        f"Invalid RESTORE timestamp {format_time(as_of)}: the backup {manifests[0].subdir} has no revision history, so it"
        f" can be restored only as of its exact end: {ends}."
    )
