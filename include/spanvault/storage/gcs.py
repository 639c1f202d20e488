"""Storage in a bucket of Google Cloud Storage.

Every object is written with a token of its writer as metadata, so that a write whose answer was lost can be told from
another's. Reads that break off go on where they stopped, in the same generation of the object.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import google_crc32c
from google.api_core import exceptions
from google.cloud.storage import Blob  # type: ignore[import-untyped]

from spanvault.config.settings import Settings
from spanvault.errors import AlreadyExists, Locked, NotFound, Retryable, SpanvaultError, StateUnknown
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockInfo, ObjectInfo, Unfinished, Writer
from spanvault.storage.gcs_access import GcsAccess
from spanvault.storage.gcs_client import GENERATION, LENGTH, GcsClient
from spanvault.storage.gcs_errors import GcsError, GcsPlace, no_bucket, translate
from spanvault.storage.gcs_lock import LOCK_FIELDS, GcsVersions, new_blob, protection
from spanvault.storage.gcs_upload import GcsWriter, checksum
from spanvault.storage.keys import check_folder, check_key

_WRITER = "spanvault-writer"
_TYPE = "application/octet-stream"


class GcsStorage:
    """A Storage below `gs://bucket/path` (storage/base.py is the contract). Opening it contacts nothing."""

    def __init__(self, uri: StorageUri, access: GcsAccess, settings: Settings, lock: ObjectLock | None = None) -> None:
        self._root = f"{uri.path}/" if uri.path else ""
        self._display_uri = uri.redacted()
        self._lock = lock or uri.object_lock
        where = f"gs://{uri.host}/{uri.path}"
        self._place = GcsPlace(bucket=uri.host, where=where, access=access, locks=self._lock is not None)
        self._client = GcsClient(self._place, settings)
        self._versions = GcsVersions(self._client, self._place, self._lock, self._check_bucket)
        self._once: dict[str, Any] = {"retry": None, "timeout": self._client.timeout}
        self._attempts = settings.storage_attempts
        self._memory = int(settings.storage_upload_memory)
        self._bucket_seen = False

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self._display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole. Raises AlreadyExists with `create_only` if the key exists."""
        # Generation 0 stands for no object: https://cloud.google.com/storage/docs/request-preconditions
        with self._writing(key, {"if_generation_match": 0} if create_only else {}) as writer:
            writer.write(data)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object; visible when the block ends without an exception."""
        with self._writing(key, {}) as writer:
            yield writer

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return b"".join(self.read_chunks(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order. Raises NotFound."""
        name, offset, size, failures = self._name(key), 0, -1, 0
        generation: str | None = None
        crc32c = 0
        while offset != size:
            answer = self._download(key, name, offset, generation)
            generation, size = answer.headers[GENERATION], offset + int(answer.headers[LENGTH])
            hashes = answer.headers.get("X-Goog-Hash", "")
            try:
                with self._translated(key), closing(answer):
                    for chunk in answer.iter_content(chunk_size):
                        offset, failures = offset + len(chunk), 0
                        crc32c = google_crc32c.extend(crc32c, chunk)
                        yield chunk
            except Retryable:
                failures += 1
                if failures == self._attempts:
                    raise
        if "crc32c=" in hashes and checksum(crc32c) not in hashes:
            raise Retryable(f"{key!r} arrived damaged from {self._place.where}.")

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None. Raises NotFound for a missing bucket."""
        with self._translated(key):
            found = self._found(self._name(key))
            if found is None:
                self._check_bucket()
        return self._info(found) if found else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, page by page."""
        fields = f"items(name,size,timeCreated,{LOCK_FIELDS}),nextPageToken"
        for page in self._pages(prefix=self._root + prefix, fields=fields):
            # Names with / at the end are what Google's console shows as folders.
            yield from (self._info(blob) for blob in page if not blob.name.endswith("/"))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix` that hold an object, ascending."""
        start = self._root + check_folder(prefix)
        for page in self._pages(prefix=start, delimiter="/", fields="prefixes,nextPageToken"):
            yield from (folder.removeprefix(start) for folder in page.prefixes)

    def delete(self, key: str) -> None:
        """Remove the object if it exists, with all its versions. Raises Locked."""
        with self._translated(key):
            self._versions.delete(self._name(key), key)

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with."""
        return self._lock

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected now. Raises NotFound."""
        with self._translated(key):
            return self._versions.lock_of(self._name(key))

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object at least until `until` (Unix seconds); whether that had to be done. Raises NotFound, BadInput."""
        with self._translated(key):
            return self._versions.extend(self._name(key), key, until)

    def list_unfinished(self) -> Iterator[Unfinished]:
        """None: the service does not tell which uploads were begun. It forgets those that are not ended after a week, and
        what they hold costs nothing."""
        yield from ()

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Nothing to do: there is no unfinished write that can be named."""

    def _name(self, key: str) -> str:
        return self._root + check_key(key)

    def _info(self, blob: Blob) -> ObjectInfo:
        key, locked = blob.name.removeprefix(self._root), protection(blob) is not None
        return ObjectInfo(key=key, size=blob.size, modified=blob.time_created.timestamp(), locked=locked)

    @contextmanager
    def _writing(self, key: str, condition: dict[str, int]) -> Iterator[Writer]:
        name, token = self._name(key), str(uuid.uuid4())

        def blob() -> Blob:
            return new_blob(self._client.bucket(), name, {_WRITER: token}, self._lock)

        writer = GcsWriter(
            self._client,
            memory=self._memory,
            store=lambda data: self._client.call(
                lambda: blob().upload_from_string(data, content_type=_TYPE, checksum="crc32c", **condition, **self._once)
            ),
            start=lambda: str(
                self._client.call(
                    lambda: blob().create_resumable_upload_session(content_type=_TYPE, checksum=None, **condition, **self._once)
                )
            ),
            guard=lambda: self._translated(key, of_bucket=True),
            gone=Retryable(f"The upload of {key!r} to {self._place.where} was removed while it was written."),
        )
        try:
            yield writer
            writer.finish()
        except BaseException as error:
            writer.abort()
            if not (writer.publishing and isinstance(error, (AlreadyExists, Locked, Retryable))):
                raise
            self._settle(key, token, error, create_only=bool(condition))

    def _settle(self, key: str, token: str, failure: SpanvaultError, *, create_only: bool) -> None:
        """After a write without a clear answer: returns if it took place after all; a refusal, too, may be due to an earlier
        try of ours, whose object is there and perhaps locked. Raises AlreadyExists if another's write did where only one may,
        `failure` if none did, and StateUnknown if that cannot be found out."""
        try:
            found = self._found(self._name(key))
        except GcsError:
            raise StateUnknown(
                f"Whether {key!r} was written to {self._place.where} is not known, because the answer was lost: {failure}"
            ) from None
        if found is not None and (found.metadata or {}).get(_WRITER) == token:
            return
        if found is None and isinstance(failure, AlreadyExists):
            raise Retryable(f"What was stored as {key!r} in {self._place.where} is gone again.")
        if found is None or not create_only:
            raise failure
        raise AlreadyExists(f"The object {key!r} exists already in {self._place.where}; nothing was overwritten.")

    def _found(self, name: str) -> Blob | None:
        return self._client.call(lambda: self._client.bucket().get_blob(name, **self._once))

    def _download(self, key: str, name: str, offset: int, generation: str | None) -> Any:
        try:
            with self._translated(key):
                return self._client.download(self._client.bucket().blob(name), offset, generation)
        except NotFound:
            if generation is None:
                raise
            raise Retryable(f"{key!r} in {self._place.where} was replaced or deleted while it was read.") from None

    def _pages(self, **query: Any) -> Iterator[Any]:
        pages = self._client.pages(**query)
        while True:
            with self._translated(query["prefix"], of_bucket=True):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _check_bucket(self) -> None:
        """A 404 does not say whether the object or the bucket is missing; asked once, and by a listing, because the right to
        see a bucket's own properties is not part of the usual roles."""
        if not self._bucket_seen:
            with self._translated("", of_bucket=True):
                next(self._client.pages(page_size=1, fields="items(name),nextPageToken"))
            self._bucket_seen = True

    @contextmanager
    def _translated(self, key: str, *, of_bucket: bool = False) -> Iterator[None]:
        """Errors as ours; with `of_bucket` what may be missing is the bucket only. The libraries' errors are not shown as
        causes: they hold addresses of uploads, to which anybody may write who knows them."""
        try:
            yield
        except GcsError as error:
            if isinstance(error, exceptions.NotFound):
                if of_bucket:
                    raise no_bucket(self._place) from None
                self._check_bucket()
            raise translate(error, self._place, key) from None
