"""The check of a whole collection: its identity, every chain, and the index against the manifests."""

from __future__ import annotations

from spanvault.collection.chain import resolve
from spanvault.collection.identity import read_collection
from spanvault.collection.index import read_entry, true_entry
from spanvault.collection.layout import INDEX_PREFIX, README_KEY, index_key, indexed_layer, manifest_key
from spanvault.collection.lookup import is_complete
from spanvault.collection.plans import chain_subdirs
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage
from spanvault.verify.files import check_objects
from spanvault.verify.result import Findings, VerificationResult


def check_collection(storage: Storage, *, progress: Progress | None = None) -> VerificationResult:
    """Check every chain as `check_files` does, and what binds them together.

    An index entry that is missing is a note; one that contradicts its manifest, or whose manifest is gone, is damage:
    expiry removes the entry before the manifest. Raises NotFound where there is no collection.
    """
    findings = Findings("collection")
    read_collection(storage)
    for subdir in chain_subdirs(storage, newest_first=False):
        with findings.guard():
            if is_complete(storage, subdir):
                _check_chain(storage, subdir, findings, progress or Silent())
            else:
                findings.note(f"{subdir} is not complete: its run is under way, failed, or its deletion was interrupted.")
    with findings.guard():
        _check_index(storage, findings)
    if storage.head(README_KEY) is None:
        findings.note(f"{README_KEY} is missing; the next backup writes it again.")
    return findings.result()


def _check_chain(storage: Storage, subdir: str, findings: Findings, progress: Progress) -> None:
    manifests = resolve(storage, subdir)
    check_objects(storage, manifests, findings, progress)
    for manifest in manifests:
        key = index_key(subdir, manifest.number)
        entry = read_entry(storage, subdir, manifest.number)
        if entry is None:
            findings.note(f"The index entry {key} is missing or unreadable; rebuild the index.")
        elif entry != true_entry(storage, subdir, manifest.number):
            findings.fail(f"The index entry {key} contradicts the manifest {manifest_key(subdir, manifest.number)}.")


def _check_index(storage: Storage, findings: Findings) -> None:
    for info in storage.list(INDEX_PREFIX):
        layer = indexed_layer(info.key)
        if layer is None:
            findings.note(f"{info.key} is no index entry.")
        elif storage.head(manifest_key(layer[0], layer[2], layer[1])) is None:
            findings.fail(f"The index remembers layer {layer[2]} of {layer[0]}, and its manifest is missing.")
