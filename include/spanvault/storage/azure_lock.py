"""Object locks on Azure Blob Storage, and deleting where versions are kept.

A lock is a version's own immutability policy or legal hold, in a container with version-level immutability:
https://learn.microsoft.com/azure/storage/blobs/immutable-version-level-worm-policies. GOVERNANCE is a policy whose mode is
Unlocked, COMPLIANCE one whose mode is Locked. Such a container keeps versions, and an account may keep them without locks:
there a plain Delete Blob only makes the current version a previous one, which frees nothing, and the current version is not
deleted by its id: https://learn.microsoft.com/azure/storage/blobs/versioning-overview.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ImmutabilityPolicy

from spanvault.errors import Locked
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.azure_errors import AzurePlace, code_of, if_there
from spanvault.storage.base import LockInfo
from spanvault.storage.lock_terms import NoLocks, by_what, date, end_from_now, in_force, nothing_to_extend

if TYPE_CHECKING:
    from azure.core.pipeline import PipelineResponse
    from azure.storage.blob import BlobClient, BlobProperties, ContainerClient

# What a listing must tell of a blob, so that `protection` can be told from it.
LOCK_FIELDS = ["immutabilitypolicy", "legalhold"]
_MODES = {"GOVERNANCE": "Unlocked", "COMPLIANCE": "Locked"}
# The service names them in small letters when it tells them.
_NAMES = {theirs.lower(): ours for ours, theirs in _MODES.items()}
_ONLY_WITHOUT_ID = "OperationNotAllowedOnRootBlob"


def lock_fields(lock: ObjectLock | None) -> dict[str, Any]:
    """What a creation asks for that begins now."""
    if lock is None:
        return {}
    fields: dict[str, Any] = {"legal_hold": True} if lock.legal_hold else {}
    if lock.mode:
        fields["immutability_policy"] = _policy(_MODES[lock.mode], end_from_now(lock).timestamp())
    return fields


def protection(found: BlobProperties) -> LockInfo | None:
    """How a version is protected, from what the service tells of it."""
    policy = found.immutability_policy
    until = policy.expiry_time.timestamp() if policy.expiry_time else 0.0
    return in_force(_NAMES.get((policy.policy_mode or "").lower()), until, legal_hold=bool(found.has_legal_hold))


class VersionsSeen:
    """Looks at all answers of a client. `any`: whether one has named a version, so that the account keeps them."""

    def __init__(self) -> None:
        self.any = False

    def __call__(self, answer: PipelineResponse[Any, Any]) -> None:
        self.any = self.any or "x-ms-version-id" in answer.http_response.headers


class AzureVersions:
    """The versions and locks of a container's blobs. Its calls raise the SDK's errors, except for Locked and BadInput."""

    def __init__(self, client: ContainerClient, place: AzurePlace, lock: ObjectLock | None, seen: VersionsSeen) -> None:
        self._client = client
        self._place = place
        self._lock = lock
        self._seen = seen
        self._kept: bool | None = None
        self._takes: bool | None = None
        self._may_delete = False  # Whether a version was deleted already, so that the right to do so is there.

    def delete(self, blob: BlobClient, key: str) -> None:
        """Remove the object and all its versions, the current one last. If one is protected, nothing is removed."""
        if self._kept is False and not self._seen.any:
            if_there(blob.delete_blob)
            return
        versions = list(self._versions(blob))
        for lock in filter(None, map(protection, versions)):
            raise Locked(f"{key!r} in {self._place.where} is protected {by_what(lock)} and was not deleted.")
        self._learn(versions)
        for version in sorted(versions, key=_is_current):
            if _is_current(version):
                self._remove_current(blob, version.version_id)
            else:
                self._remove(blob, version.version_id)

    def lock_of(self, blob: BlobClient) -> LockInfo | None:
        """How the current version is protected."""
        return protection(blob.get_blob_properties())

    def extend(self, blob: BlobClient, key: str, until: float) -> bool:
        """Protect the current version at least until `until`; whether that had to be done. The service has no condition for
        it, so of two who extend an Unlocked policy at the same moment the last one counts."""
        found = blob.get_blob_properties()
        now = protection(found)
        if now and now.until >= until:
            return False
        # Also of one that has ended: what was Locked once never changes its mode.
        ours = _NAMES.get((found.immutability_policy.policy_mode or "").lower()) or (self._lock and self._lock.mode)
        if not ours and not self._takes_locks():
            raise NoLocks(f"{self._place.where} is in a container without version-level immutability, which locks need.")
        if not ours:
            raise nothing_to_extend(key, self._place.where)
        blob.set_immutability_policy(_policy(_MODES[ours], until))
        return True

    def _versions(self, blob: BlobClient) -> Iterator[BlobProperties]:
        """Those of one blob, whose name is the first of all that begin with it."""
        for found in self._client.list_blobs(name_starts_with=blob.blob_name, include=["versions", *LOCK_FIELDS]):
            if found.name != blob.blob_name:
                return
            yield found

    def _learn(self, versions: list[BlobProperties]) -> None:
        """Whether versions are kept, from the first blob that is deleted. If it has none, others may have some where the
        container takes locks. Elsewhere a version that is named in any later answer is noticed, too."""
        if any(version.version_id for version in versions):
            self._kept = True
        elif versions and self._kept is None:
            self._kept = self._takes_locks()

    def _takes_locks(self) -> bool:
        """Whether the container takes locks, asked once; yes for who may not ask."""
        if self._takes is None:
            try:
                self._takes = bool(self._client.get_container_properties().immutable_storage_with_versioning_enabled)
            except HttpResponseError as error:
                if error.status_code != 403:
                    raise
                self._takes = True
        return self._takes

    def _remove(self, blob: BlobClient, version: str | None) -> None:
        if_there(lambda: blob.delete_blob(version_id=version))
        self._may_delete = True

    def _remove_current(self, blob: BlobClient, version: str | None) -> None:
        if version and not self._may_delete:
            # Deleting versions needs a right of its own. Without it this is refused while the blob is visible still.
            try:
                self._remove(blob, version)
            except HttpResponseError as error:
                if code_of(error) != _ONLY_WITHOUT_ID:
                    raise
        if_there(blob.delete_blob)
        if version:
            self._remove(blob, version)
        elif self._kept or self._seen.any:
            # One that was written before the account kept versions gets an id only now.
            for left in [found for found in self._versions(blob) if not _is_current(found)]:
                self._remove(blob, left.version_id)


def _is_current(version: BlobProperties) -> bool:
    return bool(version.is_current_version or not version.version_id)


def _policy(mode: str, until: float) -> ImmutabilityPolicy:
    # The service keeps whole seconds.
    return ImmutabilityPolicy(expiry_time=date(math.ceil(until)), policy_mode=mode)
