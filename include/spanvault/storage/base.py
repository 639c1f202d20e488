"""The Storage protocol and the contract that every backend keeps; tests/storage/test_contract.py checks each of them.

What the rest of Spanvault relies on:

* **Atomic visibility.** An object exists whole or not at all. After any exception inside `open_write` (KeyboardInterrupt
  too), or a killed process, nothing is visible under the key.
* **Read after write, list after write.** Once `put` or `open_write` has returned, every reader sees the object.
* **Create-only.** With `create_only=True` exactly one of any number of racing writers succeeds, also if all write the
  same bytes; the others get AlreadyExists, and never before the winner's object can be read.
* **Idempotent delete.** Deleting what does not exist succeeds.
* **Order.** `list` returns keys lazily, in ascending UTF-8 byte order. One exception that S3 servers on a file system
  (SeaweedFS) make: beside a folder `a/`, siblings such as `a-b` or `a.b` (a character below `/` after the folder's name)
  may come after the folder's objects instead of before. Do not name them so where order matters.
* **Folders** are nothing but parts of keys. Only a folder whose last object has just been deleted may still be reported.
* **Errors.** NotFound for a missing key or bucket (the sentence says which), AlreadyExists, BadInput for wrong
  credentials or addresses, Retryable for anything that may pass, after the backend's own tries. A write whose answer was
  lost is looked up (each write carries a token of its own): the writer's own object means success, another's means
  AlreadyExists, none means Retryable, and only if that cannot be read either, StateUnknown.
* **Classes and locks.** A storage class that the URI asks for is given to data only (keys with a folder `data`): the
  small documents that every later backup reads stay in the store's standard class. A lock that it asks for is given to
  every object. Where the bucket keeps versions, `delete` removes all versions of the object, and raises Locked, with the
  object still visible, if one of them is protected.
* **Leftovers.** What an interrupted writer leaves (a temporary file, a multipart upload) is no object: nothing but
  `list_unfinished` shows it, and `remove_unfinished` removes it. A writer whose leftover is removed under its hands
  fails with Retryable and publishes nothing; so remove only what is older than any write can last.

Keys are `/`-separated relative paths without empty, `.` or `..` parts; any Unicode except NUL; at most 900 bytes, each
part at most 200 bytes. No key is also the folder of other keys. Parts that begin with `.spanvault-` belong to the backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from spanvault.model.base import Value
from spanvault.model.uri_parameters import ObjectLock


class ObjectInfo(Value):
    """A stored object: key relative to the storage's root, size in bytes, when it was written (Unix seconds), and whether a
    lock protects it, where the store tells that with a listing (None: it does not)."""

    key: str
    size: int
    modified: float
    locked: bool | None = None


class Unfinished(Value):
    """A write that has not ended, or never will: its `key` where the backend knows it (else empty), when it began (Unix
    seconds; for a temporary file its last write), and the backend's own name for it."""

    key: str
    started: float
    handle: str


@runtime_checkable
class Writer(Protocol):
    """Receives an object's bytes in order."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; returns its length."""


@runtime_checkable
class Storage(Protocol):
    """A place for write-once objects below one root URI. Instances may be used from several threads."""

    @property
    def display_uri(self) -> str:
        """The root without secrets, for people and documents."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object (up to 64 MiB) whole. Raises AlreadyExists with `create_only` if the key exists."""

    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        """Stream an object of unknown size; it becomes visible when the `with` block ends without an exception.

        For keys that nobody else writes (unique names); an existing object is replaced.
        """

    def get(self, key: str) -> bytes:
        """The whole object, for small ones. Raises NotFound."""

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order, in bounded memory, no chunk longer than `chunk_size` bytes. Raises NotFound (at
        the first chunk)."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, lazily (any number of them)."""

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The distinct next path parts below `prefix` (which is empty or ends in `/`), ascending, each ending in `/`;
        objects directly below `prefix` are not reported."""

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Writes under way and what interrupted ones left, in no particular order."""

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove what an interrupted write left, if it is still there."""


class LockInfo(Value):
    """How a stored object is protected: in which mode, until when (Unix seconds; 0: by no date), and whether by a legal
    hold, which has no end."""

    mode: str | None
    until: float
    legal_hold: bool


@runtime_checkable
class LockableStorage(Storage, Protocol):
    """A Storage whose objects can be protected from deletion by anybody."""

    @property
    def object_lock(self) -> ObjectLock | None:
        """What new objects are protected with."""

    def lock_of(self, key: str) -> LockInfo | None:
        """How the object is protected, None if it is not (any more). Raises NotFound."""

    def extend_lock(self, key: str, until: float) -> bool:
        """Protect the object at least until `until` (Unix seconds), in the mode that it has, else in that of new objects;
        whether that had to be done: a lock that ends later stays as it is. Raises NotFound; BadInput if neither has a mode."""
