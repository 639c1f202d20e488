"""Locks of a storage that wraps another one and takes the same keys."""

from __future__ import annotations

from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockableStorage, LockInfo


class LocksOfInner:
    """What makes a wrapper a LockableStorage: the locks are those of `inner`."""

    inner: LockableStorage

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with."""
        return self.inner.object_lock

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected now. Raises NotFound."""
        return self.inner.lock_of(key)

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object at least until `until` (Unix seconds); whether that had to be done. Raises NotFound, BadInput."""
        return self.inner.extend_lock(key, until)
