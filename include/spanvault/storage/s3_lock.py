"""Object locks on S3, and deleting where they are: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html

A bucket with object locks keeps versions. There a plain DELETE only hides the object behind a marker: it frees nothing, and
it succeeds for what is locked, too. So versions are deleted one by one, each by its id, and a refusal is looked into.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from spanvault.errors import Locked
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockInfo
from spanvault.storage.lock_terms import by_what, date, end_from_now, in_force, nothing_to_extend
from spanvault.storage.s3_errors import S3Place, code_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DENIED = frozenset({"AccessDenied", "403"})
_NOT_TOLD = _DENIED | {"NotImplemented", "MethodNotAllowed", "405", "501"}


def lock_fields(lock: ObjectLock | None) -> dict[str, Any]:
    """What a creation asks for that begins now."""
    if lock is None:
        return {}
    fields: dict[str, Any] = {"ObjectLockLegalHoldStatus": "ON"} if lock.legal_hold else {}
    if lock.mode:
        fields |= {"ObjectLockMode": lock.mode, "ObjectLockRetainUntilDate": end_from_now(lock)}
    return fields


class S3Versions:
    """The versions and locks of a bucket's objects. Its calls raise boto3's errors, except for Locked and BadInput."""

    def __init__(self, client: S3Client, place: S3Place, lock: ObjectLock | None) -> None:
        self._client = client
        self._place = place
        self._bucket = place.bucket
        self._lock = lock
        self._kept: bool | None = None

    def delete(self, name: str, key: str) -> None:
        """Remove the object and all its versions, the current one last: if one is locked, the object stays visible."""
        if not self._keeps_versions(name):
            self._client.delete_object(Bucket=self._bucket, Key=name)
            return
        for version in reversed(self._versions(name)):
            try:
                self._client.delete_object(Bucket=self._bucket, Key=name, VersionId=version)
            except ClientError as error:
                if code_of(error) not in _DENIED:
                    raise
                self._raise_if_locked(name, key, version, error)
                raise

    def lock_of(self, name: str) -> LockInfo | None:
        """How the current version is protected."""
        return _info(self._client.head_object(Bucket=self._bucket, Key=name))

    def extend(self, name: str, key: str, until: float) -> bool:
        """Protect the current version at least until `until`; whether that had to be done."""
        now = self.lock_of(name)
        if now and now.until >= until:
            return False
        mode = (now and now.mode) or (self._lock and self._lock.mode)
        if not mode:
            raise nothing_to_extend(key, self._place.where)
        self._client.put_object_retention(
            Bucket=self._bucket,
            Key=name,
            Retention={"Mode": "COMPLIANCE" if mode == "COMPLIANCE" else "GOVERNANCE", "RetainUntilDate": date(until)},
        )
        return True

    def _keeps_versions(self, name: str) -> bool:
        """Asked once of the bucket. Who may not ask sees it on the object."""
        if self._kept is None:
            try:
                self._kept = "Status" in self._client.get_bucket_versioning(Bucket=self._bucket)
            except ClientError as error:
                if code_of(error) not in _NOT_TOLD:
                    raise
                return self._has_version(name)
        return self._kept

    def _has_version(self, name: str) -> bool:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=name).get("VersionId", "null") != "null"
        except ClientError as error:
            if code_of(error) not in {"404", "NoSuchKey"}:
                raise
            return False

    def _versions(self, name: str) -> list[str]:
        """The ids of all versions and markers of one object, the newest first."""
        found: list[tuple[datetime, bool, str]] = []
        for page in self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=name):
            entries = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            found += [(entry["LastModified"], entry["IsLatest"], entry["VersionId"]) for entry in entries if entry["Key"] == name]
            # Keys come in ascending order, and the object's own is the first that begins with its name.
            if any(entry["Key"] != name for entry in entries):
                break
        found.sort(key=lambda entry: (entry[1], entry[0]), reverse=True)
        return [version for _, _, version in found]

    def _raise_if_locked(self, name: str, key: str, version: str, refusal: ClientError) -> None:
        try:
            lock = _info(self._client.head_object(Bucket=self._bucket, Key=name, VersionId=version))
        except ClientError:
            lock = None  # A marker, or one may not look: then the refusal is reported as it is.
        if lock is not None:
            raise Locked(f"{key!r} in {self._place.where} is protected {by_what(lock)} and was not deleted.") from refusal


def _info(answer: Any) -> LockInfo | None:
    until = answer["ObjectLockRetainUntilDate"].timestamp() if "ObjectLockRetainUntilDate" in answer else 0.0
    return in_force(answer.get("ObjectLockMode"), until, legal_hold=answer.get("ObjectLockLegalHoldStatus") == "ON")
