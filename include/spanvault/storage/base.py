"""The Storage protocol and the contract that every backend keeps; tests/storage/test_contract.py checks each of them.

What the rest of Spanvault relies on:

* **Atomic visibility.** An object exists whole or not at all. After any exception inside `open_write`, or a killed
  process, nothing is visible under the key.
* **Read after write, list after write.** Once `put` or `open_write` has returned, every reader sees the object.
* **Create-only.** With `create_only=True` exactly one of any number of racing writers succeeds; the others get
  AlreadyExists, and never before the winner's object can be read.
* **Idempotent delete.** Deleting what does not exist succeeds.
* **Order.** `list` returns keys in ascending UTF-8 byte order, lazily.
* **Errors.** NotFound for a missing key or bucket (the sentence says which), AlreadyExists, BadInput for wrong
  credentials or addresses, Retryable for anything that may pass. A lost answer to a create-only write that may have
  happened is resolved by reading the object back: equal bytes mean success, unreadable means StateUnknown.

Keys are `/`-separated relative paths without `.` or `..` parts; any Unicode except NUL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from spanvault.model.base import Value


class ObjectInfo(Value):
    """A stored object: key relative to the storage's root, size in bytes, and when it was written (Unix seconds)."""

    key: str
    size: int
    modified: float


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
        """The object's bytes in order, in bounded memory. Raises NotFound (at the first chunk)."""

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, lazily (any number of them)."""

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The distinct next path parts below `prefix` (which is empty or ends in `/`), ascending, each ending in `/`;
        objects directly below `prefix` are not reported."""

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
