"""Storage in a bucket that speaks S3: AWS and compatible stores with conditional writes (If-None-Match on PUT).

Every object is written with a token of its writer as metadata, so that a write whose answer was lost can be told from
another's. Reads that break off go on where they stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from spanvault.config.settings import Settings
from spanvault.errors import AlreadyExists, NotFound, Retryable, SpanvaultError, StateUnknown
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockInfo, ObjectInfo, Unfinished, Writer
from spanvault.storage.keys import check_folder, check_key, is_data
from spanvault.storage.s3_access import S3Access
from spanvault.storage.s3_client import s3_client
from spanvault.storage.s3_errors import S3Error, S3Place, code_of, translate
from spanvault.storage.s3_lock import S3Versions, lock_fields
from spanvault.storage.s3_upload import S3Writer

_WRITER = "spanvault-writer"


class S3Storage:
    """A Storage below `s3://bucket/path` (storage/base.py is the contract). Opening it contacts nothing."""

    def __init__(self, uri: StorageUri, access: S3Access, settings: Settings, lock: ObjectLock | None = None) -> None:
        self._bucket = uri.host
        self._root = f"{uri.path}/" if uri.path else ""
        self._display_uri = uri.redacted()
        self._lock = lock or uri.object_lock
        where = f"s3://{uri.host}/{uri.path}"
        self._place = S3Place(bucket=uri.host, where=where, access=access, locks=self._lock is not None)
        self._client = s3_client(access, settings, self._place.where)
        self._attempts = settings.storage_attempts
        self._memory = int(settings.storage_upload_memory)
        self._versions = S3Versions(self._client, self._place, self._lock)
        self._create = _encryption(uri)
        self._class = uri.params.get("S3_STORAGE_CLASS")
        self._checksums = not access.skip_checksum
        self._bucket_seen = False

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self._display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole. Raises AlreadyExists with `create_only` if the key exists."""
        token = str(uuid.uuid4())
        call = {"Bucket": self._bucket, "Key": self._name(key), "Body": data, **self._creation_of(key, token)}
        if not create_only:
            with self._translated(key):
                self._client.put_object(**call)
            return
        # 409 means that another conditional write to the key is under way; it says nothing of the outcome.
        attempts = Retrying(
            retry=retry_if_exception(lambda error: code_of(error) == "ConditionalRequestConflict"),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_attempt(self._attempts),
            reraise=True,
        )
        try:
            attempts(self._client.put_object, **call, IfNoneMatch="*")
        except S3Error as error:
            failure = translate(error, self._place, key)
            if _is_final(error) or not isinstance(failure, (Retryable, AlreadyExists)):
                raise failure from error
            self._settle(key, token, failure)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object; visible when the block ends without an exception."""
        token = str(uuid.uuid4())
        writer = S3Writer(
            self._client,
            self._bucket,
            self._name(key),
            create=self._creation_of(key, token),
            memory=self._memory,
            checksums=self._checksums,
            guard=lambda: self._translated(key),
        )
        try:
            yield writer
            writer.finish()
        except BaseException as error:
            writer.abort()
            if not (writer.publishing and isinstance(error, Retryable)):
                raise
            self._settle(key, token, error)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return b"".join(self.read_chunks(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order. Raises NotFound."""
        name, offset, size, failures = self._name(key), 0, -1, 0
        resume: dict[str, Any] = {}
        while offset != size:
            try:
                with self._translated(key):
                    answer = self._client.get_object(Bucket=self._bucket, Key=name, **resume)
                    size = offset + answer["ContentLength"]
                    with closing(answer["Body"]) as body:
                        while chunk := body.read(chunk_size):
                            offset, failures = offset + len(chunk), 0
                            yield chunk
            except AlreadyExists:
                raise Retryable(f"{key!r} in {self._place.where} was replaced while it was read.") from None
            except Retryable:
                failures += 1
                if failures == self._attempts or offset == size or size < 0:
                    raise
            resume = {"Range": f"bytes={offset}-", "IfMatch": answer["ETag"]}

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None. Raises NotFound for a missing bucket."""
        with self._translated(key):
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
            except ClientError as error:
                if code_of(error) not in {"404", "NoSuchKey"}:
                    raise
                self._check_bucket()
                return None
        return ObjectInfo(key=key, size=answer["ContentLength"], modified=answer["LastModified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, page by page."""
        for page in self._pages("list_objects_v2", Prefix=self._root + prefix):
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(self._root)
                yield ObjectInfo(key=key, size=entry["Size"], modified=entry["LastModified"].timestamp())

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix` that hold an object, ascending."""
        start = self._root + check_folder(prefix)
        for page in self._pages("list_objects_v2", Prefix=start, Delimiter="/"):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(start)

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
        """Multipart uploads below the root that were neither completed nor aborted."""
        for page in self._pages("list_multipart_uploads", Prefix=self._root):
            for entry in page.get("Uploads", ()):
                key = entry["Key"].removeprefix(self._root)
                yield Unfinished(key=key, started=entry["Initiated"].timestamp(), handle=entry["UploadId"])

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Abort a multipart upload."""
        with self._translated(unfinished.key):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._name(unfinished.key), UploadId=unfinished.handle
                )
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise

    def _name(self, key: str) -> str:
        return self._root + check_key(key)

    def _creation_of(self, key: str, token: str) -> dict[str, Any]:
        """What a new object is created with: server-side encryption, lock, the class of data, and the writer's token."""
        given = {"StorageClass": self._class} if self._class and is_data(key) else {}
        return {**self._create, **given, **lock_fields(self._lock), "Metadata": {_WRITER: token}}

    def _pages(self, operation: Any, **call: Any) -> Iterator[Any]:
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._bucket, **call))
        while True:
            with self._translated(call["Prefix"]):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _check_bucket(self) -> None:
        """A HEAD's 404 does not say whether the key or the bucket is missing; asked once."""
        if not self._bucket_seen:
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if code_of(error) != "404":
                    raise
                raise NotFound(f"There is no bucket {self._bucket!r} at {self._place.endpoint}; create it first.") from error
            self._bucket_seen = True

    def _settle(self, key: str, token: str, failure: SpanvaultError) -> None:
        """After a write without a clear answer: returns if it took place after all. Raises AlreadyExists if another's
        did, `failure` if none did, and StateUnknown if that cannot be found out."""
        try:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        except S3Error as error:
            if code_of(error) in {"404", "NoSuchKey"}:
                raise failure from error
            raise StateUnknown(
                f"Whether {key!r} was written to {self._place.where} is not known, because the answer was lost: {failure}"
            ) from error
        if answer["Metadata"].get(_WRITER) != token:
            raise AlreadyExists(f"The object {key!r} exists already in {self._place.where}; nothing was overwritten.")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            raise translate(error, self._place, key) from error


def _encryption(uri: StorageUri) -> dict[str, Any]:
    """Server-side encryption of every new object."""
    names = {"AWS_SERVER_ENC_MODE": "ServerSideEncryption", "AWS_SERVER_KMS_ID": "SSEKMSKeyId"}
    return {ours: uri.params[theirs] for theirs, ours in names.items() if theirs in uri.params}


def _is_final(error: BotoCoreError | ClientError) -> bool:
    """Whether the answer proves that nothing of ours was written: a refusal of the only try. After a second try a
    refusal (412) may be due to the first one, whose answer was lost."""
    if not isinstance(error, ClientError):
        return False
    about = error.response.get("ResponseMetadata", {})
    return bool(about.get("RetryAttempts", 0) == 0 and about.get("HTTPStatusCode", 500) < 500)
