"""The check of a whole collection: its identity, every chain, and the index against the manifests."""

from __future__ import annotations

from spanvault.collection.chain import OpenLocation, no_locations
from spanvault.collection.identity import read_collection
from spanvault.collection.index import read_entry, true_entry
from spanvault.collection.layout import INDEX_PREFIX, README_KEY, index_key, indexed_layer, manifest_key
from spanvault.collection.lookup import is_complete
from spanvault.collection.manifests import is_marked
from spanvault.collection.plans import chain_subdirs
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage
from spanvault.verify.files import check_objects
from spanvault.verify.layers import layers_to_check, note_marker
from spanvault.verify.result import Findings, VerificationResult


def check_collection(
    storage: Storage, *, open_location: OpenLocation = no_locations, progress: Progress | None = None
) -> VerificationResult:
    """Check every chain as `check_files` does, and what binds them together.

    An index entry that is missing is a note, and so is a layer that is marked invalid. An entry that contradicts its
    manifest, or whose manifest is gone, is damage: expiry removes the entry before the manifest. Raises NotFound where
    there is no collection.
    """
    findings = Findings("collection")
    read_collection(storage)
    for subdir in chain_subdirs(storage, newest_first=False):
        with findings.guard():
            if is_complete(storage, subdir):
                _check_chain(storage, subdir, open_location, findings, progress or Silent())
            else:
                findings.note(f"{subdir} is not complete: its run is under way, failed, or its deletion was interrupted.")
    with findings.guard():
        _check_index(storage, findings)
    if storage.head(README_KEY) is None:
        findings.note(f"{README_KEY} is missing; the next backup writes it again.")
    return findings.result()


def _check_chain(storage: Storage, subdir: str, open_location: OpenLocation, findings: Findings, progress: Progress) -> None:
    if is_marked(storage, subdir, 0):
        note_marker(storage, subdir, findings)
        return
    layers = layers_to_check(storage, subdir, None, open_location, findings)
    check_objects(storage, layers, findings, progress)
    for first, number in ((layer.manifest.first, layer.manifest.number) for layer in layers):
        key = index_key(subdir, number, first)
        entry = read_entry(storage, subdir, number, first)
        if entry is None:
            findings.note(f"The index entry {key} is missing or unreadable; rebuild the index.")
        elif entry != true_entry(storage, subdir, number, first):
            findings.fail(f"The index entry {key} contradicts the manifest {manifest_key(subdir, number, first)}.")


def _check_index(storage: Storage, findings: Findings) -> None:
    for info in storage.list(INDEX_PREFIX):
        layer = indexed_layer(info.key)
        if layer is None:
            findings.note(f"{info.key} is no index entry.")
        elif storage.head(manifest_key(layer[0], layer[2], layer[1])) is None:
            key = manifest_key(layer[0], layer[2], layer[1])
            findings.fail(f"The manifest {key} is missing; the index remembers layer {layer[2]} of {layer[0]}.", missing=key)
