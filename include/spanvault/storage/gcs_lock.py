"""Object locks on Google Cloud Storage, and deleting where they are: https://cloud.google.com/storage/docs/object-lock

GOVERNANCE is a retention whose mode is Unlocked, COMPLIANCE one whose mode is Locked: so Google's own XML API names them. A
legal hold is a temporary hold (https://cloud.google.com/storage/docs/object-holds). A bucket's own retention policy counts as
a lock without a mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from google.api_core import exceptions
from google.cloud.storage import Blob, Bucket  # type: ignore[import-untyped]

from spanvault.errors import Locked, Retryable
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockInfo
from spanvault.storage.gcs_client import GcsClient
from spanvault.storage.gcs_errors import GcsError, GcsPlace, no_bucket, translate
from spanvault.storage.lock_terms import NoLocks, by_what, date, end_from_now, in_force, nothing_to_extend

_MODES = {"GOVERNANCE": "Unlocked", "COMPLIANCE": "Locked"}
_NAMES = {theirs: ours for ours, theirs in _MODES.items()}
# What a listing must tell of an object, so that `protection` can be told from it.
LOCK_FIELDS = "retention,retentionExpirationTime,temporaryHold,eventBasedHold"


def new_blob(bucket: Bucket, name: str, metadata: dict[str, str], lock: ObjectLock | None) -> Blob:
    """An object that is about to be written, with a lock that begins now."""
    made = _NewBlob(name, bucket)
    made.metadata = metadata
    if lock is not None and lock.mode:
        _retain(made, _MODES[lock.mode], end_from_now(lock))
    if lock is not None and lock.legal_hold:
        made.temporary_hold = True
    return made


def protection(blob: Blob) -> LockInfo | None:
    """How an object is protected, from what the service tells of it."""
    # The second is the later one of the object's own date and that of the bucket's policy, if there is one.
    dates = (blob.retention.retain_until_time, blob.retention_expiration_time)
    until = max((found.timestamp() for found in dates if found is not None), default=0.0)
    hold = bool(blob.temporary_hold or blob.event_based_hold)
    return in_force(_NAMES.get(blob.retention.mode), until, legal_hold=hold)


class _Seen(NamedTuple):
    """What is known of a bucket: whether there may be versions, and whether it is seen to have object retention enabled."""

    may_keep_versions: bool
    retains: bool


class GcsVersions:
    """The generations and locks of a bucket's objects. Its calls raise the libraries' errors (gcs_errors.GcsError), except for
    Locked, BadInput, and NotFound for the bucket. `missing` is called when an object is not there, and raises if its bucket is
    not."""

    def __init__(self, client: GcsClient, place: GcsPlace, lock: ObjectLock | None, missing: Callable[[], None]) -> None:
        self._client = client
        self._place = place
        self._lock = lock
        self._missing = missing
        self._once: dict[str, Any] = {"retry": None, "timeout": client.timeout}
        self._seen: _Seen | None = None

    def delete(self, name: str, key: str) -> None:
        """Remove the object and all its generations, the current one last: if one is protected, the object stays visible."""
        if not self._bucket_as_seen().may_keep_versions:
            self._delete(name, key, None)
            return
        # A plain deletion would hide the object and free nothing.
        for generation in sorted(self._generations(name)):
            self._delete(name, key, generation)

    def lock_of(self, name: str) -> LockInfo | None:
        """How the current generation is protected."""
        return protection(self._told(name))

    def extend(self, name: str, key: str, until: float) -> bool:
        """Protect the current generation at least until `until`; whether that had to be done."""
        blob = self._told(name)
        now = protection(blob)
        if now and now.until >= until:
            return False
        # Also of one that has ended: what was Locked once never changes its mode.
        mode = blob.retention.mode or (self._lock and self._lock.mode and _MODES[self._lock.mode])
        if not mode and not self._bucket_as_seen().retains:
            raise NoLocks(
                f"{key!r} in {self._place.where} has no lock to extend, and no object retention of its bucket is to be seen; "
                "enable it, and give OBJECT_LOCK_MODE."
            )
        if not mode:
            raise nothing_to_extend(key, self._place.where)
        _retain(blob, mode, date(until))
        try:
            self._client.call(lambda: blob.patch(**self._once))
        except exceptions.Forbidden:
            # Nothing gets shorter without a right of its own that is not asked for: another may have extended it further.
            now = self.lock_of(name)
            if now is None or now.until < until:
                raise
            return False
        return True

    def _told(self, name: str) -> Blob:
        blob = self._client.bucket().blob(name)
        self._client.call(lambda: blob.reload(**self._once))
        return blob

    def _delete(self, name: str, key: str, generation: int | None) -> None:
        try:
            self._client.call(lambda: self._client.bucket().blob(name, generation=generation).delete(**self._once))
        except exceptions.NotFound:
            self._missing()
        except exceptions.Forbidden:
            self._raise_if_locked(name, key, generation)
            raise

    def _raise_if_locked(self, name: str, key: str, generation: int | None) -> None:
        try:
            blob = self._client.call(lambda: self._client.bucket().get_blob(name, generation=generation, **self._once))
        except GcsError:
            return  # Then the refusal is reported as it is.
        lock = protection(blob) if blob is not None else None
        if lock is not None:
            raise Locked(f"{key!r} in {self._place.where} is protected {by_what(lock)} and was not deleted.") from None

    def _bucket_as_seen(self) -> _Seen:
        """Asked once. Who may not ask looks for versions each time."""
        if self._seen is None:
            bucket = self._client.bucket()
            try:
                self._client.call(lambda: bucket.reload(**self._once))
            except exceptions.Forbidden as error:
                if isinstance(translate(error, self._place, ""), Retryable):
                    raise
                self._seen = _Seen(may_keep_versions=True, retains=False)
            except exceptions.NotFound:
                raise no_bucket(self._place) from None
            else:
                retains = bucket.object_retention_mode == "Enabled"
                self._seen = _Seen(may_keep_versions=bool(bucket.versioning_enabled), retains=retains)
        return self._seen

    def _generations(self, name: str) -> Iterator[int]:
        """Those of one object; its name is the first of all that begin with it."""
        for page in self._client.pages(prefix=name, versions=True, fields="items(name,generation),nextPageToken"):
            for blob in page:
                if blob.name != name:
                    return
                yield blob.generation


def _retain(blob: Blob, mode: str, until: datetime) -> None:
    blob.retention.mode = mode
    blob.retention.retain_until_time = until


class _NewBlob(Blob):  # type: ignore[misc]
    """Google's library leaves holds out of what it sends with an upload, though the service takes them there:
    https://cloud.google.com/storage/docs/json_api/v1/objects/insert"""

    def _get_writable_metadata(self) -> dict[str, Any]:
        sent: dict[str, Any] = super()._get_writable_metadata()
        return {**sent, "temporaryHold": True} if self.temporary_hold else sent
