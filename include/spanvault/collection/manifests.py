"""Manifests as stored: which layers a chain has, and whether a manifest is the one of its place."""

from __future__ import annotations

from dataclasses import dataclass

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import COLLECTION_KEY, manifest_key, manifest_numbers, marked_number, marker_key
from spanvault.errors import BrokenChain, Damaged, Refused
from spanvault.model.manifest import CollectionDocument, Manifest
from spanvault.storage.base import Storage


@dataclass(frozen=True)
class ChainNames:
    """What lies in a chain's `chain/`: the numbers of the layers that runs committed, (first, number) of compacted ones,
    and the numbers of layers that are marked invalid; all ascending."""

    subdir: str
    originals: tuple[int, ...] = ()
    compacted: tuple[tuple[int, int], ...] = ()
    marked: tuple[int, ...] = ()

    @property
    def valid(self) -> tuple[int, ...]:
        """The originals before the first that is marked."""
        return tuple(number for number in self.originals if not self.marked or number < self.marked[0])

    @property
    def valid_compacted(self) -> tuple[tuple[int, int], ...]:
        """The compacted layers that stand for valid ones only."""
        end = len(self.valid)
        return tuple((first, number) for first, number in self.compacted if number < end)

    @property
    def manifests(self) -> tuple[tuple[int, int], ...]:
        """(first, number) of all manifests."""
        return (*((number, number) for number in self.originals), *self.compacted)


def parse_manifest(data: bytes, subdir: str, number: int, first: int | None = None) -> Manifest:
    """The manifest in `data`, which must be that of this layer."""
    key = manifest_key(subdir, number, first)
    manifest = parse_document(Manifest, data, f"The manifest {key}")
    if (manifest.subdir, manifest.number, manifest.first) != (subdir, number, number if first is None else first):
        raise Damaged(
            f"The manifest {key} is that of layer {manifest.number} of {manifest.subdir} (from layer {manifest.first} on):"
            " it was copied or renamed."
        )
    return manifest


def check_owner(manifest: Manifest, collection: CollectionDocument) -> None:
    """Raises Damaged unless the manifest was written for this collection and read from its cluster."""
    key = manifest_key(manifest.subdir, manifest.number, manifest.first)
    if manifest.collection_id != collection.id:
        raise Damaged(
            f"The manifest {key} belongs to collection {manifest.collection_id}, and this is {collection.id}: a backup was"
            f" copied in from another collection, or {COLLECTION_KEY} was changed."
        )
    if manifest.source.system_identifier != collection.source_system_identifier:
        raise Damaged(
            f"The manifest {key} was read from the cluster {manifest.source.system_identifier}, and this collection is for"
            f" {collection.source_system_identifier}: {COLLECTION_KEY} or the manifest is not the one that was written."
        )


def chain_names(storage: Storage, subdir: str) -> ChainNames:
    """What the chain holds; one listing.

    Raises Refused when the chain holds something that this version does not know: to pass over it could restore an
    older or a wrong state. Raises BrokenChain when a layer between others is missing, or one that a marker or a
    compacted layer is of.
    """
    names = any_names(storage, subdir)
    for info in storage.list(f"{subdir}/chain/"):
        path = info.key.removeprefix(f"{subdir}/")
        if manifest_numbers(path) is None and marked_number(path) is None:
            raise Refused(f"The backup {subdir} holds {info.key}, which this version does not know; upgrade Spanvault.")
    if names.originals:
        wanted = max((*names.originals, *names.marked, *(number for _, number in names.compacted)))
        missing = sorted(set(range(wanted + 1)) - set(names.originals))
        if missing:
            raise BrokenChain(
                f"The backup {subdir} is not continuous: the manifest {manifest_key(subdir, missing[0])} is missing."
            )
    return names


def any_names(storage: Storage, subdir: str) -> ChainNames:
    """As `chain_names`, whatever else lies there and whatever is missing."""
    paths = [info.key.removeprefix(f"{subdir}/") for info in storage.list(f"{subdir}/chain/")]
    manifests = [numbers for numbers in map(manifest_numbers, paths) if numbers is not None]
    return ChainNames(
        subdir=subdir,
        originals=tuple(sorted(number for first, number in manifests if first == number)),
        compacted=tuple(sorted(numbers for numbers in manifests if numbers[0] < numbers[1])),
        marked=tuple(sorted(number for number in map(marked_number, paths) if number is not None)),
    )


def is_marked(storage: Storage, subdir: str, number: int) -> bool:
    """Whether the layer itself is marked invalid."""
    return storage.head(marker_key(subdir, number)) is not None
