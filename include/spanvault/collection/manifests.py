"""Manifests as stored: which layers a chain has, and whether a manifest is the one of its place."""

from __future__ import annotations

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import manifest_key, manifest_number
from spanvault.errors import BrokenChain, Damaged, Refused
from spanvault.model.manifest import CollectionDocument, Manifest
from spanvault.storage.base import Storage


def parse_manifest(data: bytes, subdir: str, number: int) -> Manifest:
    """The manifest in `data`, which must be that of this layer."""
    key = manifest_key(subdir, number)
    manifest = parse_document(Manifest, data, f"The manifest {key}")
    if (manifest.subdir, manifest.number) != (subdir, number):
        raise Damaged(f"The manifest {key} is that of layer {manifest.number} of {manifest.subdir}: it was copied or renamed.")
    return manifest


def check_owner(manifest: Manifest, collection: CollectionDocument) -> None:
    """Raises Damaged unless the manifest was written for this collection and read from its cluster."""
    key = manifest_key(manifest.subdir, manifest.number)
    if manifest.collection_id != collection.id:
        raise Damaged(
            f"The manifest {key} belongs to collection {manifest.collection_id}, and this is {collection.id}: a backup was"
            " copied in from another collection."
        )
    if manifest.source.system_identifier != collection.source_system_identifier:
        raise Damaged(
            f"The manifest {key} was read from the cluster {manifest.source.system_identifier}, and this collection is for"
            f" {collection.source_system_identifier}."
        )


def layer_numbers(storage: Storage, subdir: str) -> tuple[int, ...]:
    """The numbers of the chain's committed layers, ascending.

    Raises Refused when the chain holds something that this version does not know: to pass over it could restore an
    older or a wrong state. Raises BrokenChain when a layer between others is missing.
    """
    for info in storage.list(f"{subdir}/chain/"):
        if manifest_number(info.key.removeprefix(f"{subdir}/")) is None:
            raise Refused(f"The backup {subdir} holds {info.key}, which this version does not know; upgrade Spanvault.")
    numbers = committed_numbers(storage, subdir)
    if numbers and numbers != tuple(range(len(numbers))):
        missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
        raise BrokenChain(f"The backup {subdir} is not continuous: the manifest {manifest_key(subdir, missing[0])} is missing.")
    return numbers


def committed_numbers(storage: Storage, subdir: str) -> tuple[int, ...]:
    """The numbers of the manifests in the chain, ascending, whatever else lies there."""
    paths = (info.key.removeprefix(f"{subdir}/") for info in storage.list(f"{subdir}/chain/"))
    return tuple(number for number in map(manifest_number, paths) if number is not None)
