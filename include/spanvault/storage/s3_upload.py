"""Writing one S3 object of unknown size: one PUT if it is small, else a multipart upload in bounded memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

FIRST_PART_BYTES = 8 << 20
MAX_PARTS = 10_000
_PARTS_PER_SIZE = 64
_UPLOAD_THREADS = 4
_log = logging.getLogger(__name__)


def part_bytes(number: int) -> int:
    """The size of part `number` (from 1): 8 MiB, growing by 8 MiB every 64 parts, so that 10,000 parts hold 6 TiB, more
    than the 5 TiB of the largest object (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
    return FIRST_PART_BYTES * (1 + (number - 1) // _PARTS_PER_SIZE)


class _Algorithm(TypedDict, total=False):
    ChecksumAlgorithm: Literal["CRC32"]


class S3Writer:
    """A Writer whose bytes become the object by `finish()`, or go away by `abort()`.

    `memory` bounds the bytes of parts on their way (always at least one part); one more part is being filled. `guard`
    translates boto3's errors; `create` holds the object's properties (storage class, encryption, lock, metadata).
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        name: str,
        *,
        create: dict[str, Any],
        memory: int,
        checksums: bool,
        guard: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._name = name
        self._create = create
        self._memory = memory
        self._guard = guard
        # A part's checksum is asked for by name, so that the answer to the last call can be checked against all of them.
        self._algorithm: _Algorithm = {"ChecksumAlgorithm": "CRC32"} if checksums else {}
        self._buffer = bytearray()
        self._number = 1
        self._upload_id: str | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Future[CompletedPartTypeDef]]] = deque()
        self._parts: list[CompletedPartTypeDef] = []
        self.publishing = False  # Whether a call was made that makes the object visible.

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; waits while too many bytes are on their way."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            room = part_bytes(self._number) - len(self._buffer)
            self._buffer += view[position : position + room]
            position += room
            if len(self._buffer) == part_bytes(self._number):
                with self._guard():
                    self._send()
        return len(view)

    def finish(self) -> None:
        """Make the object visible."""
        with self._guard():
            if self._upload_id is None:
                self.publishing = True
                self._client.put_object(Bucket=self._bucket, Key=self._name, **self._create, Body=bytes(self._buffer))
                return
            if self._buffer:
                self._send()
            while self._pending:
                self._collect()
            self._close_threads()
            self.publishing = True
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._name, UploadId=self._upload_id, MultipartUpload={"Parts": self._parts}
            )

    def abort(self) -> None:
        """Give up what was sent. What cannot be removed now is found later by `list_unfinished`."""
        # A part that arrives after the abort would stay, so those on their way are awaited.
        self._close_threads()
        if self._upload_id is not None:
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._name, UploadId=self._upload_id)
            except (BotoCoreError, ClientError) as error:
                _log.warning("The unfinished upload of %s could not be removed: %s", self._name, error)

    def _send(self) -> None:
        if self._upload_id is None or self._threads is None:
            started = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._name, **self._create, **self._algorithm)
            self._upload_id = started["UploadId"]
            self._threads = ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="spanvault-upload")
        part, self._buffer = self._buffer, bytearray()
        while self._pending and sum(size for size, _ in self._pending) + len(part) > self._memory:
            self._collect()
        self._pending.append((len(part), self._threads.submit(self._send_part, self._upload_id, self._number, part)))
        self._number += 1

    def _send_part(self, upload_id: str, number: int, part: bytearray) -> CompletedPartTypeDef:
        body = cast("bytes", part)  # boto3 takes a bytearray too; its stubs do not say so, and a copy costs memory.
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=self._name, UploadId=upload_id, PartNumber=number, Body=body, **self._algorithm
        )
        done: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            done["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return done

    def _collect(self) -> None:
        _, future = self._pending.popleft()
        self._parts.append(future.result())

    def _close_threads(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
