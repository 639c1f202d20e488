"""`check_files`: every object that a backup needs is there and has its size. Reads metadata and listings only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from spanvault.collection.chain import resolve
from spanvault.collection.files import objects_of, own_objects
from spanvault.collection.layout import layer_folder
from spanvault.collection.lookup import find_subdir
from spanvault.errors import Damaged
from spanvault.model.manifest import Manifest, ObjectReference
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage
from spanvault.verify.result import Findings, VerificationResult


def check_files(storage: Storage, subdir: str = "LATEST", *, progress: Progress | None = None) -> VerificationResult:
    """Check that every object of a chain exists with its size, and that manifests and file lists have their digests.

    Raises NotFound and BadInput when there is no such backup to check.
    """
    findings = Findings("check_files")
    found = find_subdir(storage, subdir)
    with findings.guard():
        manifests = resolve(storage, found)
        check_objects(storage, manifests, findings, progress or Silent())
    return findings.result()


def check_objects(storage: Storage, manifests: Sequence[Manifest], findings: Findings, progress: Progress) -> None:
    """Tell `findings` what is missing or has another size, over all these layers."""
    progress.step("check files", total_units=sum(map(object_count, manifests)))
    for manifest in manifests:
        with findings.guard():
            try:
                _compare(storage, manifest, objects_of(storage, manifest), findings, progress)
            except Damaged:
                # The file list itself is gone or damaged: say what can still be said of the rest, then that.
                _compare(storage, manifest, own_objects(manifest), findings, progress)
                raise


def object_count(manifest: Manifest) -> int:
    """How many objects the manifest reaches."""
    return manifest.totals.files + len(own_objects(manifest))


def _compare(
    storage: Storage, manifest: Manifest, wanted: Iterable[ObjectReference], findings: Findings, progress: Progress
) -> None:
    """A merge of two ascending streams; a request a thousand objects instead of one each."""
    there = _sizes(storage, manifest)
    path, size = next(there, (None, 0))
    for reference in wanted:
        while path is not None and path < reference.path:
            path, size = next(there, (None, 0))
        if path != reference.path:
            findings.fail(f"{manifest.subdir}/{reference.path} is missing.", missing=reference.path)
        elif size != reference.bytes:
            findings.fail(f"{manifest.subdir}/{reference.path} has {size} bytes, and {reference.bytes} were written.")
        findings.looked_at(bytes_=reference.bytes)
        progress.advance(units=1)


def _sizes(storage: Storage, manifest: Manifest) -> Iterator[tuple[str | None, int]]:
    for info in storage.list(layer_folder(manifest.subdir, manifest.number)):
        yield info.key.removeprefix(f"{manifest.subdir}/"), info.size
