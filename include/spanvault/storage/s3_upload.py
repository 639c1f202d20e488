"""Writing one S3 object of unknown size: one PUT if it is small, else a multipart upload in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from botocore.exceptions import BotoCoreError, ClientError

from spanvault.storage.parts import PartWriter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

FIRST_PART_BYTES = 8 << 20
MAX_PARTS = 10_000
_PARTS_PER_SIZE = 64
_log = logging.getLogger(__name__)


def part_bytes(number: int) -> int:
    """The size of part `number` (from 1): 8 MiB, growing by 8 MiB every 64 parts, so that 10,000 parts hold 6 TiB, more
    than the 5 TiB of the largest object (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
    return FIRST_PART_BYTES * (1 + (number - 1) // _PARTS_PER_SIZE)


class _Algorithm(TypedDict, total=False):
    ChecksumAlgorithm: Literal["CRC32"]


class S3Writer(PartWriter["CompletedPartTypeDef"]):
    """A Writer whose bytes become the object by `finish()`, or go away by `abort()`.

    `memory` and `guard` are PartWriter's; `create` holds the object's properties (storage class, encryption, lock, metadata).
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
        super().__init__(part_bytes=part_bytes, memory=memory, guard=guard)
        self._client = client
        self._bucket = bucket
        self._name = name
        self._create = create
        # A part's checksum is asked for by name, so that the answer to the last call can be checked against all of them.
        self._algorithm: _Algorithm = {"ChecksumAlgorithm": "CRC32"} if checksums else {}
        self._upload_id = ""

    def abort(self) -> None:
        """Give up what was sent. What cannot be removed now is found later by `list_unfinished`."""
        # A part that arrives after the abort would stay, so those on their way are awaited.
        self.stop()
        if self._upload_id:
            try:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._name, UploadId=self._upload_id)
            except (BotoCoreError, ClientError) as error:
                _log.warning("The unfinished upload of %s could not be removed: %s", self._name, error)

    def _begin(self, part: bytes) -> Sequence[CompletedPartTypeDef]:
        started = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._name, **self._create, **self._algorithm)
        self._upload_id = started["UploadId"]
        return ()

    def _send_part(self, number: int, part: bytes) -> CompletedPartTypeDef:
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=self._name, UploadId=self._upload_id, PartNumber=number, Body=part, **self._algorithm
        )
        done: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            done["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return done

    def _publish_whole(self, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._name, **self._create, Body=data)

    def _publish_parts(self, sent: list[CompletedPartTypeDef]) -> None:
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=self._name, UploadId=self._upload_id, MultipartUpload={"Parts": sent}
        )
