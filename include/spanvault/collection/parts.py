"""Parts: what a layer has at the URIs of localities. Each is described where it lies, so that a restore that is not given
all of the places, or is given another backup's, says so before it reads a row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import layer_folder, object_key, part_path
from spanvault.errors import Damaged, NotFound
from spanvault.model.manifest import DataFile, Manifest, ObjectReference, Part, PartDocument
from spanvault.model.places import place_name
from spanvault.storage.base import Storage
from spanvault.storage.keys import DATA_FOLDER


def write_part(
    data: Storage, *, collection_id: str, subdir: str, number: int, run_key: str, locality: str, files: Iterable[DataFile]
) -> Part:
    """Describe those of a layer's `files` that are at the URI of `locality`, there; none is a part, too."""
    own = sorted((file for file in files if file.locality == locality), key=lambda file: file.path)
    document = PartDocument(
        collection_id=collection_id,
        subdir=subdir,
        number=number,
        run_key=run_key,
        locality=locality,
        files=tuple(ObjectReference(path=file.path, sha256=file.sha256, bytes=file.bytes) for file in own),
    )
    path, content = part_path(number, locality), document.to_json()
    data.put(object_key(subdir, path), content, create_only=True)
    reference = ObjectReference(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return Part(locality=locality, document=reference)


def check_parts(data: Storage, manifest: Manifest) -> None:
    """Raise NotFound when a part of the layer is in none of the places given, Damaged when one is another backup's."""
    for part in manifest.parts:
        key = object_key(manifest.subdir, part.document.path)
        try:
            content = data.get(key)
        except NotFound:
            raise NotFound(
                f"The part {part.document.path} of the backup {manifest.subdir} was not found in the locations given: add the URI"
                f" that has, or was, COCKROACH_LOCALITY={part.locality}."
            ) from None
        if hashlib.sha256(content).hexdigest() != part.document.sha256:
            found = parse_document(PartDocument, content, f"The part {key}")
            raise Damaged(
                f"The part {key} is not that of this backup: it was written by the run {found.run_key} for layer {found.number}"
                f" of {found.subdir}, and the manifest names another."
            )


def missing_parts(data: Storage, manifest: Manifest) -> list[str]:
    """The localities whose parts are in none of the places given."""
    return [part.locality for part in manifest.parts if data.head(object_key(manifest.subdir, part.document.path)) is None]


def absent_parts(data: Storage, manifest: Manifest) -> list[Part]:
    """The parts of the layer of which nothing is in the places given: neither the description nor a file beside it."""
    missing = missing_parts(data, manifest)
    folder = f"{layer_folder(manifest.subdir, manifest.number)}{DATA_FOLDER}/"
    return [
        part
        for part in manifest.parts
        if part.locality in missing and next(data.list(f"{folder}{place_name(part.locality)}/"), None) is None
    ]


def require_parts(data: Storage, manifest: Manifest, *, undone: str) -> None:
    """Raise NotFound when a part of the layer is in none of the places given; `undone` says what is not done for it."""
    missing = missing_parts(data, manifest)
    if missing:
        raise NotFound(
            f"The backup {manifest.subdir} is not {undone}: it has files at the URIs of {', '.join(missing)}, and they are not"
            " given or not found; give all places of the collection."
        )
