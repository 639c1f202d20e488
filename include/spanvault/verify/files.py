"""`check_files`: every object that a backup needs is there and has its size. Reads metadata and listings only."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from spanvault.collection.chain import Layer, OpenLocation, no_locations
from spanvault.collection.files import objects_of, own_objects, part_objects, read_files
from spanvault.collection.layout import object_key
from spanvault.collection.lookup import find_subdir
from spanvault.errors import Damaged
from spanvault.model.manifest import Manifest, ObjectReference
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage
from spanvault.verify.layers import layers_to_check
from spanvault.verify.places import AbsentPlaces
from spanvault.verify.result import Findings, VerificationResult


def check_files(
    storage: Storage,
    subdir: str = "LATEST",
    number: int | None = None,
    *,
    open_location: OpenLocation = no_locations,
    progress: Progress | None = None,
) -> VerificationResult:
    """Check that every object of a chain's valid layers exists with its size, that manifests and file lists have their
    digests, and that the layers fit together. With `number` only that layer is looked at, and its parent's digest.

    Raises NotFound and BadInput when there is no such backup to check.
    """
    findings = Findings("check_files")
    found = find_subdir(storage, subdir)
    with findings.guard():
        layers = layers_to_check(storage, found, number, open_location, findings)
        check_objects(storage, layers, findings, progress or Silent())
    return findings.result()


def check_objects(storage: Storage, layers: Sequence[Layer], findings: Findings, progress: Progress) -> None:
    """Tell `findings` what is missing or has another size, over all these layers."""
    progress.step("check files", total_units=sum(object_count(layer.manifest) for layer in layers))
    for layer in layers:
        manifest = layer.manifest
        with findings.guard():
            absent = AbsentPlaces(layer.data, manifest, findings)
            if manifest.location is not None:
                _compare(storage, manifest, own_objects(manifest), findings, progress)
                _compare(layer.data, manifest, absent.without(_data_files(storage, manifest)), findings, progress)
                continue
            try:
                _compare(storage, manifest, absent.without(objects_of(storage, manifest)), findings, progress)
            except Damaged:
                # The file list itself is gone or damaged: say what can still be said of the rest, then that.
                _compare(storage, manifest, own_objects(manifest), findings, progress)
                raise


def object_count(manifest: Manifest) -> int:
    """How many objects the manifest reaches."""
    return manifest.totals.files + len(own_objects(manifest)) + len(manifest.parts)


def _data_files(storage: Storage, manifest: Manifest) -> Iterator[ObjectReference]:
    listed = (
        ObjectReference(path=file.path, sha256=file.sha256, bytes=file.bytes)
        for file in read_files(storage, manifest.subdir, manifest.files)
    )
    return heapq.merge(part_objects(manifest), listed, key=lambda reference: reference.path)


def _compare(
    storage: Storage, manifest: Manifest, wanted: Iterable[ObjectReference], findings: Findings, progress: Progress
) -> None:
    """A merge of two ascending streams; a request a thousand objects instead of one each."""
    folder: str | None = None
    there: Iterator[tuple[str | None, int]] = iter(())
    path: str | None = ""
    size = 0
    for reference in wanted:
        if folder is None or not reference.path.startswith(folder):
            # Most of a layer is in its own folder; a compacted one may name what is in others'.
            folder = f"{reference.path.partition('/')[0]}/"
            there = _sizes(storage, manifest.subdir, folder)
            path, size = "", 0
        while path is not None and path < reference.path:
            path, size = next(there, (None, 0))
        if path != reference.path:
            key = object_key(manifest.subdir, reference.path)
            findings.fail(f"{key} is missing.", missing=key)
        elif size != reference.bytes:
            key = object_key(manifest.subdir, reference.path)
            findings.fail(f"{key} has {size} bytes, and {reference.bytes} were written: it was cut off, extended or replaced.")
        findings.looked_at(bytes_=reference.bytes)
        progress.advance(units=1)


def _sizes(storage: Storage, subdir: str, folder: str) -> Iterator[tuple[str | None, int]]:
    for info in storage.list(f"{subdir}/{folder}"):
        yield info.key.removeprefix(f"{subdir}/"), info.size
