"""COLLECTION.json: which collection this is, and the one cluster whose backups it holds. Written once."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from datetime import datetime

from spanvault import __version__
from spanvault.collection.documents import parse_document
from spanvault.collection.layout import COLLECTION_KEY, PLACE_KEY, manifest_key, manifest_path
from spanvault.collection.manifests import parse_manifest
from spanvault.collection.plans import chain_subdirs
from spanvault.errors import AlreadyExists, Damaged, NotFound, Permanent, Refused, Retryable
from spanvault.model.cut import utc
from spanvault.model.manifest import CollectionDocument, Manifest, PlaceDocument
from spanvault.storage.base import Storage


def ensure_collection(storage: Storage, *, system_identifier: str, now: datetime) -> CollectionDocument:
    """The collection at `storage`, made if there is none yet.

    Raises Refused when it holds the backups of another cluster than `system_identifier` (pg_control's), Damaged when its
    identity was lost.
    """
    document = _find(storage)
    if document is None:
        _require_no_backup(storage)  # a new identity would make strangers of the backups that are there
        document = CollectionDocument(
            id=secrets.token_hex(6),
            created_at=utc(now),
            created_by=f"spanvault {__version__}",
            source_system_identifier=system_identifier,
        )
        try:
            storage.put(COLLECTION_KEY, document.to_json(), create_only=True)
        except AlreadyExists:
            document = read_collection(storage)
    if document.source_system_identifier != system_identifier:
        raise Refused(
            f"The collection {storage.display_uri} holds backups of the cluster with system identifier"
            f" {document.source_system_identifier}, and this cluster's is {system_identifier}: one collection is for one"
            " cluster, so back up into another URI."
        )
    return document


def claim_places(places: Mapping[str, Storage], collection: CollectionDocument) -> None:
    """Make each of the places, by locality, that of this collection and locality for ever.

    Raises Refused when one is another's: files of two localities would lie in each other's places, unnoticed.
    """
    for locality, storage in places.items():
        own = PlaceDocument(collection_id=collection.id, locality=locality)
        try:
            storage.put(PLACE_KEY, own.to_json(), create_only=True)
        except AlreadyExists:
            _require_own(storage, locality, collection.id)


def check_places(places: Mapping[str, Storage], default: Storage, *, exchanged: bool) -> None:
    """Raise Refused when one of the places, by locality, says that it is another collection's than the one at `default`, or,
    unless `exchanged`, another locality's.

    Writes nothing. What says nothing, or cannot be read now, is let pass: reading what a backup names is verified by its
    digest, wherever it lies, so readers allow places that are exchanged, or into which others were copied.
    """
    for locality, storage in places.items():
        with contextlib.suppress(NotFound, Damaged, Retryable):
            _require_own(storage, locality, read_collection(default).id, exchanged=exchanged)


def _require_own(storage: Storage, locality: str, collection_id: str, *, exchanged: bool = False) -> None:
    found = parse_document(PlaceDocument, storage.get(PLACE_KEY), f"{PLACE_KEY} in {storage.display_uri}")
    if found.collection_id != collection_id:
        raise Refused(
            f"{storage.display_uri} is a place of the collection {found.collection_id}, and this one is {collection_id}:"
            " a place is for one collection, so give another URI."
        ) from None
    if found.locality != locality and not exchanged:
        raise Refused(
            f"{storage.display_uri} is the place of {found.locality} in this collection, and COCKROACH_LOCALITY says"
            f" {locality}: the URIs seem to be exchanged."
        ) from None


def read_collection(storage: Storage) -> CollectionDocument:
    """The collection's identity. Raises NotFound where there is no collection, Damaged where it was lost."""
    document = _find(storage)
    if document is not None:
        return document
    if storage.head(manifest_path()) is not None:
        raise NotFound(
            f"{storage.display_uri} is the folder of one backup, not a collection: give the collection's URI, and name"
            " the backup as SHOW BACKUPS IN lists it."
        )
    _require_no_backup(storage)
    raise _none_here(storage)


def _none_here(storage: Storage) -> NotFound:
    return NotFound(f"There is no backup collection at {storage.display_uri}: {COLLECTION_KEY} is not there; check the URI.")


def _require_no_backup(storage: Storage) -> None:
    """Raise Damaged where backups are: then the identity was lost."""
    found = next((subdir for subdir in chain_subdirs(storage) if storage.head(manifest_key(subdir)) is not None), None)
    if found is not None:
        raise Damaged(
            f"{COLLECTION_KEY} is missing in {storage.display_uri}, where the backup {found} is: put it back from a copy of the"
            " collection, or let `spanvault collection rebuild-index` write it anew from the backups."
        )


def restore_identity(storage: Storage) -> CollectionDocument | None:
    """Write a lost COLLECTION.json anew, as the manifests of all backups say; None if it was not lost.

    Manifests that cannot be read are passed over, if others can. Raises NotFound where there is no backup either, Damaged
    when the manifests are of several collections or clusters, and what reading them raises if none can be read.
    """
    if _find(storage) is not None:
        return None
    subdirs = [subdir for subdir in chain_subdirs(storage) if storage.head(manifest_key(subdir)) is not None]
    manifests: list[Manifest] = []
    problem: Permanent | None = None
    for subdir in subdirs:
        try:
            manifests.append(parse_manifest(storage.get(manifest_key(subdir)), subdir, 0))
        except Permanent as error:  # also one that other keys open
            problem = problem or error
    if not manifests:
        raise problem or _none_here(storage)
    owners = {(manifest.collection_id, manifest.source.system_identifier) for manifest in manifests}
    if len(owners) > 1:
        raise Damaged(
            f"{COLLECTION_KEY} is missing in {storage.display_uri}, and the backups there are of {len(owners)} collections or"
            " clusters: take those that are not of this one away, or put it back from a copy of the collection."
        )
    ((owner, system_identifier),) = owners
    document = CollectionDocument(
        id=owner,
        created_at=min(manifest.planned_at for manifest in manifests),
        created_by=f"spanvault {__version__}",
        source_system_identifier=system_identifier,
    )
    with contextlib.suppress(AlreadyExists):
        storage.put(COLLECTION_KEY, document.to_json(), create_only=True)
    return document


def _find(storage: Storage) -> CollectionDocument | None:
    try:
        data = storage.get(COLLECTION_KEY)
    except NotFound:
        return None
    return parse_document(CollectionDocument, data, f"{COLLECTION_KEY} in {storage.display_uri}")
