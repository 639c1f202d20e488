"""A storage whose chains may be encrypted, seen decrypted: what is read is authentic, what is written is encrypted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from spanvault.crypto.keyring import INFO_PREFIX, Keyring
from spanvault.crypto.stream import EncryptingWriter, decrypt, decrypt_chunks, encrypt, plaintext_size
from spanvault.errors import AlreadyExists
from spanvault.storage.base import LockableStorage, ObjectInfo, Storage, Unfinished, Writer
from spanvault.storage.lock_through import LocksOfInner
from spanvault.storage.where import ObjectAt

FIRST_PATH = "PLAN.json"
"""What is written first of a chain: with it the chain's data key is made."""

# A chain's folder is named by its time; what is beside the chains (collection, index) is never encrypted.
_IN_CHAIN = re.compile(r"(\d{4}/\d{2}/\d{2}-\d{6}\.\d{2})/(.+)", re.DOTALL)


def decrypted(inner: Storage, keyring: Keyring) -> EncryptedStorage:
    """`inner` with the chains of `keyring`'s collection decrypted; it can lock objects if `inner` can."""
    return (LockableEncryptedStorage if isinstance(inner, LockableStorage) else EncryptedStorage)(inner, keyring)


class EncryptedStorage:
    """`inner` with the chains of `keyring`'s collection decrypted. `inner` is that collection, or a place where more of its
    chains' files lie.

    Nothing is written in the clear into a chain where a key is given. Sizes are those of the plaintext. What is encrypted is
    bound to the chain by its data key, and to its path in the chain.
    """

    def __init__(self, inner: Storage, keyring: Keyring) -> None:
        self.inner = inner
        self._keyring = keyring

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self.inner.display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole, encrypted if its chain is; the first object of a chain decides. Raises AlreadyExists
        for the first one if the chain is another's."""
        data_key = self._key_to_write(key)
        if data_key is not None:
            data = encrypt(data, data_key, _identity(key))
        self.inner.put(key, data, create_only=create_only)
        if data_key is None and _chain_of(key) and _identity(key) == FIRST_PATH:
            self._confirm_plain(key)

    def _confirm_plain(self, key: str) -> None:
        """Give up a chain that began in the clear while another run put its encryption info there: of two that both wrote
        one must see the other."""
        try:
            self._keyring.require_plain(_chain_of(key))
        except AlreadyExists:
            self.inner.delete(key)
            raise

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object; visible when the block ends without an exception."""
        data_key = self._key_to_write(key)
        with self.inner.open_write(key) as sink:
            if data_key is None:
                yield sink
            else:
                writer = EncryptingWriter(sink, data_key, _identity(key))
                yield writer
                writer.finish()

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound, Damaged, KeyMismatch."""
        data_key = self._key_to_read(key)
        data = self.inner.get(key)
        return data if data_key is None else decrypt(data, data_key, _identity(key), self._where(key))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order. Raises what `get` raises."""
        data_key = self._key_to_read(key)
        chunks = self.inner.read_chunks(key, chunk_size)
        if data_key is None:
            yield from chunks
            return
        for plain in decrypt_chunks(chunks, data_key, _identity(key), self._where(key)):
            for start in range(0, len(plain), chunk_size):
                yield plain[start : start + chunk_size]

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None."""
        found = self.inner.head(key)
        return None if found is None else self._seen(found)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending, lazily."""
        return map(self._seen, self.inner.list(prefix))

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The distinct next path parts below `prefix`."""
        return self.inner.list_folders(prefix)

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        self.inner.delete(key)

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Writes under way and what interrupted ones left."""
        return self.inner.list_unfinished()

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove what an interrupted write left."""
        self.inner.remove_unfinished(unfinished)

    def _key_to_read(self, key: str) -> bytes | None:
        subdir = _chain_of(key)
        unlocked = self._keyring.unlock(subdir) if subdir else None
        return unlocked.data_key if unlocked else None

    def _key_to_write(self, key: str) -> bytes | None:
        subdir = _chain_of(key)
        if not subdir:
            return None
        if _identity(key) == FIRST_PATH:
            self._keyring.begin(subdir)
        else:
            self._keyring.require(subdir)
        return self._key_to_read(key)

    def _seen(self, found: ObjectInfo) -> ObjectInfo:
        subdir = _chain_of(found.key)
        if not subdir or not self._keyring.is_encrypted(subdir):
            return found
        return found.model_copy(update={"size": plaintext_size(found.size)})

    def _where(self, key: str) -> ObjectAt:
        return ObjectAt(self.inner, key)


class LockableEncryptedStorage(LocksOfInner, EncryptedStorage):
    """An EncryptedStorage over a storage that can lock objects."""

    inner: LockableStorage


def _chain_of(key: str) -> str:
    """The chain whose encrypted part holds the key; empty for everything else."""
    match = _IN_CHAIN.fullmatch(key)
    return match[1] if match and not match[2].startswith(INFO_PREFIX) else ""


def _identity(key: str) -> str:
    match = _IN_CHAIN.fullmatch(key)
    return match[2] if match else key
