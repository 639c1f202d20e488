"""Storage in a container of Azure Blob Storage: block blobs, in an account with a flat namespace.

Every object is written with a token of its writer as metadata, so that a write whose answer was lost can be told from
another's. Large ones are sent as blocks, which nobody sees before their list is committed. Reads go range by range, all
of the same version. Locks and versions are in azure_lock.py.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError, ResourceModifiedError
from azure.storage.blob import BlobClient, BlobPrefix, BlobProperties, ContentSettings

from spanvault.config.settings import Settings
from spanvault.errors import AlreadyExists, NotFound, Retryable, SpanvaultError, StateUnknown
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.azure_access import READ_BYTES, AzureAccess, azure_client
from spanvault.storage.azure_errors import INVALID_RANGE, AzurePlace, broke_off, code_of, if_there, translate
from spanvault.storage.azure_lock import LOCK_FIELDS, AzureVersions, VersionsSeen, lock_fields, protection
from spanvault.storage.azure_upload import AzureWriter, began, writer_of
from spanvault.storage.base import LockInfo, ObjectInfo, Unfinished, Writer
from spanvault.storage.keys import check_folder, check_key

_WRITER = "spanvault_writer"
# The content type of a blob that stands for blocks being removed (see _discard); it is no object.
_REMOVED = "application/x-spanvault-removed"
_log = logging.getLogger(__name__)
_Entry = TypeVar("_Entry", ObjectInfo, str)


class AzureStorage:
    """A Storage below `azure-blob://container/path` (storage/base.py is the contract). Opening it contacts nothing."""

    def __init__(self, uri: StorageUri, access: AzureAccess, settings: Settings, lock: ObjectLock | None = None) -> None:
        self._root = f"{uri.path}/" if uri.path else ""
        self._display_uri = uri.redacted()
        self._lock = lock or uri.object_lock
        where = f"azure-blob://{uri.host}/{uri.path}"
        self._place = AzurePlace(container=uri.host, where=where, access=access, locks=self._lock is not None)
        seen = VersionsSeen()
        self._client = azure_client(access, uri.host, settings, where, seen)
        self._versions = AzureVersions(self._client, self._place, self._lock, seen)
        self._attempts = settings.storage_attempts
        self._memory = int(settings.storage_upload_memory)

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self._display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole. Raises AlreadyExists with `create_only` if the key exists."""
        blob, token = self._blob(key), str(uuid.uuid4())
        try:
            with self._translated(key):
                # Without overwriting it sends If-None-Match: *.
                blob.upload_blob(data, overwrite=not create_only, validate_content=True, **self._creation(token))
        except (AlreadyExists, Retryable) as failure:
            if not create_only:
                raise
            # A refusal, too, may be due to an earlier try of ours whose answer was lost.
            self._settle(key, token, failure)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object; visible when the block ends without an exception."""
        blob, token = self._blob(key), str(uuid.uuid4())
        writer = AzureWriter(
            blob,
            token=token,
            create=lambda: self._creation(token),
            memory=self._memory,
            guard=lambda: self._translated(key),
        )
        try:
            yield writer
            writer.finish()
        except BaseException as error:
            self._give_up(blob, writer)
            if not (writer.publishing and isinstance(error, Retryable)):
                raise
            self._settle(key, token, error)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return b"".join(self.read_chunks(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order. Raises NotFound."""
        blob, offset, size, failures = self._blob(key), 0, -1, 0
        version: dict[str, Any] = {}
        while offset != size:
            try:
                with self._translated(key):
                    data, size, etag = _read_range(blob, offset, version)
            except AlreadyExists:
                raise Retryable(f"{key!r} in {self._place.where} was replaced while it was read.") from None
            except Retryable as error:
                failures += 1
                # All but a body that broke off was tried often enough.
                if failures == self._attempts or not broke_off(error.__cause__):
                    raise
                continue
            if size == 0 and self.head(key) is None:
                raise NotFound(f"There is no object {key!r} in {self._place.where}.")
            failures, version = 0, {"etag": etag, "match_condition": MatchConditions.IfNotModified}
            for start in range(0, len(data), chunk_size):
                yield data[start : start + chunk_size]
            offset += len(data)

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None. Raises NotFound for a missing container."""
        with self._translated(key):
            found = _properties(self._blob(key))
        return self._info(found) if found else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, page by page."""
        blobs = self._client.list_blobs(name_starts_with=self._root + prefix, include=LOCK_FIELDS)
        return _in_byte_order(self._info(blob) for blob in self._entries(blobs, prefix) if not _is_removed(blob))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix` that hold an object, ascending."""
        start = self._root + check_folder(prefix)
        entries = self._entries(self._client.walk_blobs(name_starts_with=start, delimiter="/"), prefix)
        return _in_byte_order(entry.name.removeprefix(start) for entry in entries if isinstance(entry, BlobPrefix))

    def delete(self, key: str) -> None:
        """Remove the object if it exists, with all its versions. Raises Locked."""
        blob = self._blob(key)
        with self._translated(key):
            self._versions.delete(blob, key)

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with."""
        return self._lock

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected now. Raises NotFound."""
        with self._translated(key):
            return self._versions.lock_of(self._blob(key))

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object at least until `until` (Unix seconds); whether that had to be done. Raises NotFound, BadInput."""
        with self._translated(key):
            return self._versions.extend(self._blob(key), key, until)

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Blobs below the root that have blocks of ours, of which no list was committed."""
        blobs = self._client.list_blobs(name_starts_with=self._root, include=["uncommittedblobs"])
        for entry in self._entries(blobs, ""):
            key = entry.name.removeprefix(self._root)
            # They count no bytes; nothing else in the listing tells them from committed ones on every server.
            if entry.size:
                continue
            if _is_removed(entry):
                yield Unfinished(key=key, started=entry.last_modified.timestamp(), handle=_REMOVED)
                continue
            with self._translated(key):
                writers = _writers(self._client.get_blob_client(entry.name))
            # The last one to begin: while it may be at work, nothing of the blob is to be removed.
            yield from (Unfinished(key=key, started=began(writer), handle=writer) for writer in sorted(writers)[-1:])

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove a writer's blocks, if they are the ones that were listed."""
        blob = self._blob(unfinished.key)
        with self._translated(unfinished.key):
            if unfinished.handle == _REMOVED or unfinished.handle in _writers(blob):
                _discard(blob)

    def _blob(self, key: str) -> BlobClient:
        return self._client.get_blob_client(self._root + check_key(key))

    def _creation(self, token: str) -> dict[str, Any]:
        """What a blob gets that is written now."""
        return {"metadata": {_WRITER: token}, **lock_fields(self._lock)}

    def _info(self, blob: BlobProperties) -> ObjectInfo:
        key, locked = blob.name.removeprefix(self._root), protection(blob) is not None
        return ObjectInfo(key=key, size=blob.size, modified=blob.last_modified.timestamp(), locked=locked)

    def _entries(self, entries: Iterable[Any], about: str) -> Iterator[Any]:
        waiting = iter(entries)
        while True:
            with self._translated(about):
                entry = next(waiting, None)
            if entry is None:
                return
            yield entry

    def _give_up(self, blob: BlobClient, writer: AzureWriter) -> None:
        """Remove the blocks that were sent. What cannot be removed now is found later by `list_unfinished`."""
        # A block that arrives afterwards would stay, so those on their way are awaited.
        writer.stop()
        if writer.sent_blocks:
            try:
                if _writers(blob):
                    _discard(blob)
            except AzureError as error:
                _log.warning("The unfinished blocks of %s could not be removed: %s", blob.blob_name, code_of(error) or error)

    def _settle(self, key: str, token: str, failure: SpanvaultError) -> None:
        """After a write without a clear answer: returns if it took place after all. Raises AlreadyExists if another's
        did, `failure` if none did, and StateUnknown if that cannot be found out."""
        try:
            found = _properties(self._blob(key))
        except AzureError as error:
            raise StateUnknown(
                f"Whether {key!r} was written to {self._place.where} is not known, because the answer was lost: {failure}"
            ) from error
        if found is None and isinstance(failure, AlreadyExists):
            raise Retryable(f"What was stored as {key!r} in {self._place.where} is being removed.") from failure
        if found is None:
            raise failure
        if (found.metadata or {}).get(_WRITER) != token:
            raise AlreadyExists(f"The object {key!r} exists already in {self._place.where}; nothing was overwritten.")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except AzureError as error:
            raise translate(error, self._place, key) from error


def _read_range(blob: BlobClient, offset: int, version: dict[str, Any]) -> tuple[bytes, int, str]:
    """The bytes from `offset` on, at most READ_BYTES; how long the whole blob is; and its version."""
    try:
        answer = blob.download_blob(offset=offset, length=READ_BYTES, **version)
    except AzureError as error:
        if code_of(error) != INVALID_RANGE or offset:
            raise
        return b"", 0, ""  # An empty blob has no range.
    total = int(str(answer.properties.content_range).rpartition("/")[2])
    return answer.readall(), total, answer.properties.etag


def _properties(blob: BlobClient) -> BlobProperties | None:
    """What is known of an object, or None. A missing container is an error."""
    found = if_there(blob.get_blob_properties)
    return None if found is None or _is_removed(found) else found


def _writers(blob: BlobClient) -> set[str]:
    """The writers of ours that have sent blocks of a blob that was never committed."""
    committed, waiting = if_there(lambda: blob.get_block_list("all")) or ([], [])
    writers = {writer for writer in (writer_of(block.id) for block in waiting) if writer}
    return writers if writers and not committed and _properties(blob) is None else set()


def _discard(blob: BlobClient) -> None:
    """Remove the blocks of a blob that was never committed.

    No call does that: a committed list makes the service forget the blocks that are not in it, so an empty one is committed
    and its blob, marked as what it is, deleted. https://learn.microsoft.com/rest/api/storageservices/put-block-list
    """
    with suppress(ResourceExistsError, ResourceModifiedError):  # An object, or the mark that an earlier removal left.
        mark = ContentSettings(content_type=_REMOVED)
        blob.commit_block_list([], content_settings=mark, match_condition=MatchConditions.IfMissing)
    found = if_there(blob.get_blob_properties)
    if found is not None and _is_removed(found):
        with suppress(ResourceModifiedError):
            if_there(lambda: blob.delete_blob(etag=found.etag, match_condition=MatchConditions.IfNotModified))
        if found.version_id:
            # Of its version, which is empty, whoever has no right to delete versions is not bothered.
            with suppress(HttpResponseError):
                blob.delete_blob(version_id=found.version_id)


def _is_removed(found: BlobProperties) -> bool:
    return found.content_settings.content_type == _REMOVED


def _in_byte_order(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """Entries in the order of their UTF-8 bytes, though a server may compare UTF-16 units, in which characters above U+FFFF
    come before U+E000 to U+FFFF. Names without any of these are in the same order either way and never stand between two
    that have some, so it is enough to hold back and sort each run of names that have some."""
    run: list[_Entry] = []
    for entry in entries:
        if any(character >= "\ue000" for character in _name(entry)):
            run.append(entry)
            continue
        yield from sorted(run, key=lambda held: _name(held).encode())
        run.clear()
        yield entry
    yield from sorted(run, key=lambda held: _name(held).encode())


def _name(entry: ObjectInfo | str) -> str:
    return entry if isinstance(entry, str) else entry.key
