"""The data keys of one collection's chains: made with a chain's first object, unlocked when first needed.

docs/format.md, Encryption, is the specification. A chain is encrypted if, and only if, its folder holds an encryption info;
the one with the highest number counts.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from pydantic import SecretStr

from spanvault.crypto.info import kms_entry, new_data_key, passphrase_entry, sealed, unlock_kms, unlock_passphrase
from spanvault.crypto.key_service import KeyService
from spanvault.errors import AlreadyExists, Busy, Damaged, KeyMismatch, Locked, Refused
from spanvault.model.clock import Clock, now
from spanvault.model.encryption import EncryptionDraft, EncryptionInfo, KmsKey, PassphraseKey
from spanvault.storage.base import ObjectInfo, Storage

INFO_PREFIX = "ENCRYPTION-INFO-"
_INFO = re.compile(rf"{INFO_PREFIX}(\d{{6}})\.json")
_MAX_INFO_BYTES = 1 << 20
_OPTION = "encryption_passphrase (with `spanvault collection`: --passphrase-from)"


@dataclass(frozen=True)
class Credentials:
    """What opens chains: a passphrase, or keys of key services of which any one suffices. Neither: nothing does."""

    passphrase: SecretStr | None = None
    services: tuple[KeyService, ...] = ()

    @property
    def given(self) -> bool:
        """Whether there is anything."""
        return self.passphrase is not None or bool(self.services)


@dataclass(frozen=True)
class NewKey:
    """The data key of a chain that is still to be made, wrapped."""

    chain: str
    data_key: bytes = field(repr=False)
    entries: tuple[PassphraseKey | KmsKey, ...]


@dataclass(frozen=True)
class Unlocked:
    """A chain's encryption info and its data key."""

    info: EncryptionInfo
    data_key: bytes = field(repr=False)


class Keyring:
    """The keys of the chains in `collection` (as it is stored, not decrypted), for one user. May be used by several threads.

    `credentials` is called when a chain is first opened: reading a passphrase may ask a person, and opening a key service
    contacts it.
    """

    def __init__(self, collection: Storage, credentials: Callable[[], Credentials] = Credentials, clock: Clock = now) -> None:
        self._collection = collection
        self._find = credentials
        self._clock = clock
        self._credentials: Credentials | None = None
        self._infos: dict[str, EncryptionInfo | None] = {}
        self._encrypted: dict[str, bool] = {}
        self._open: dict[str, Unlocked] = {}
        self._new: NewKey | None = None
        self._lock = threading.RLock()

    @property
    def credentials(self) -> Credentials:
        """What the user has given."""
        with self._lock:
            if self._credentials is None:
                self._credentials = self._find()
            return self._credentials

    def info(self, subdir: str) -> EncryptionInfo | None:
        """The chain's newest encryption info, None if it is not encrypted. Raises Damaged, Refused for a newer format."""
        with self._lock:
            if subdir not in self._infos:
                self._infos[subdir] = read_info(self._collection, subdir)
            return self._infos[subdir]

    def is_encrypted(self, subdir: str) -> bool:
        """Whether the chain has an encryption info, readable or not."""
        with self._lock:
            if subdir not in self._encrypted:
                self._encrypted[subdir] = is_encrypted(self._collection, subdir)
            return self._encrypted[subdir]

    def unlock(self, subdir: str) -> Unlocked | None:
        """The chain's data key, None if the chain is not encrypted.

        Raises KeyMismatch when nothing that fits is given, Damaged for an info that was tampered with, and what key
        services raise.
        """
        with self._lock:
            if subdir not in self._open:
                info = self.info(subdir)
                if info is None:
                    return None
                self._open[subdir] = Unlocked(info, self._unwrap(subdir, info))
            return self._open[subdir]

    def opened(self) -> dict[str, Unlocked]:
        """The chains that were opened, for `take`."""
        with self._lock:
            return dict(self._open)

    def take(self, opened: Mapping[str, Unlocked]) -> None:
        """Take over what another process of the same user opened: opening costs a call to a key service, or a quarter of a
        second for a passphrase."""
        with self._lock:
            self._open.update(opened)

    def require(self, subdir: str) -> None:
        """Raise KeyMismatch unless the chain is encrypted if, and only if, something to open it is given, and what is given
        fits: data must never be written or read in the clear where somebody expects it to be encrypted."""
        unlocked = self.unlock(subdir)
        if unlocked is None and self.credentials.given:
            raise KeyMismatch(
                f"The backup {subdir} in {self._collection.display_uri} does not appear to be encrypted: leave "
                "encryption_passphrase and kms out, take a full backup with them, or find out who removed its encryption info."
            )
        if unlocked is not None:
            _check_services(subdir, unlocked.info, self.credentials.services)

    def prepare(self) -> None:
        """Make the data key of the next chain that begins, which contacts the key services: before anything is done that
        a failure would leave behind. Nothing where nothing is given to protect it with. Raises what key services raise."""
        with self._lock:
            if self.credentials.given and self._new is None:
                chain, data_key = str(uuid.uuid4()), new_data_key()
                self._new = NewKey(chain, data_key, entries_for(self.credentials, data_key, chain))

    def begin(self, subdir: str) -> Unlocked | None:
        """The data key of a chain that begins now, made and stored; None if nothing is given to protect it with.

        The chain is its who created the info, so that it never has other keys than its run was given. Raises AlreadyExists
        if the folder is another's, and what `unlock` raises.
        """
        with self._lock:
            self.require_plain(subdir)
            self.prepare()
            if self._new is None:
                return None
            new, self._new = self._new, None
            draft = EncryptionDraft(chain=new.chain, number=0, created_at=self._clock(), keys=new.entries)
            info = sealed(draft, new.data_key)
            if not put_info(self._collection, subdir, info):
                raise AlreadyExists(f"There is a backup {subdir} already.")
            if self._is_taken(subdir):
                self._collection.delete(info_key(subdir, 0))  # before it makes a backup unreadable that has no need of it
                raise AlreadyExists(f"There is a backup {subdir} already, and it is not encrypted.")
            self._forget(subdir)
            self._open[subdir] = Unlocked(info, new.data_key)
            return self._open[subdir]

    def require_plain(self, subdir: str) -> None:
        """Raise AlreadyExists if the chain has an encryption info by now, whatever was found earlier."""
        with self._lock:
            self._forget(subdir)
            if self.is_encrypted(subdir):
                raise AlreadyExists(f"There is a backup {subdir} already, and it is encrypted.")

    def _forget(self, subdir: str) -> None:
        self._infos.pop(subdir, None)
        self._encrypted.pop(subdir, None)

    def _is_taken(self, subdir: str) -> bool:
        """Whether there is more of the chain than the info."""
        return any(info.key != info_key(subdir, 0) for info in islice(self._collection.list(f"{subdir}/"), 2))

    def _unwrap(self, subdir: str, info: EncryptionInfo) -> bytes:
        where = f"The backup {subdir} in {self._collection.display_uri}"
        credentials = self.credentials
        by_passphrase = isinstance(info.keys[0], PassphraseKey)
        if not credentials.given:
            need = f"its {_OPTION}" if by_passphrase else f"kms with one of {_names(info)}"
            raise KeyMismatch(f"{where} is encrypted; give {need}.")
        if by_passphrase and credentials.passphrase is None:
            raise KeyMismatch(f"{where} is encrypted with a passphrase; give {_OPTION} instead of kms.")
        if not by_passphrase and not credentials.services:
            raise KeyMismatch(f"{where} is encrypted with keys of a key service; give kms with one of {_names(info)}.")
        try:
            if credentials.passphrase is not None:
                return unlock_passphrase(info, credentials.passphrase)
            return unlock_kms(info, credentials.services)
        except Refused as error:
            raise KeyMismatch(f"{where}: {error}") from None


def entries_for(credentials: Credentials, data_key: bytes, chain: str) -> tuple[PassphraseKey | KmsKey, ...]:
    """The data key, wrapped for each of the credentials."""
    if credentials.passphrase is not None:
        return (passphrase_entry(credentials.passphrase, data_key, chain),)
    keys = {service.key_id: service for service in reversed(credentials.services)}  # of two ways to one key the first
    return tuple(kms_entry(service, data_key, chain) for service in reversed(keys.values()))


def read_info(storage: Storage, subdir: str) -> EncryptionInfo | None:
    """The newest encryption info of a chain; None if it has none. Raises Damaged, Refused for a newer format."""
    found = _newest_info(storage, subdir)
    if found is None:
        return None
    number, newest = found
    where = f"The encryption info {newest.key}"
    if newest.size > _MAX_INFO_BYTES:
        raise Damaged(f"{where} has {newest.size} bytes, far more than any that Spanvault writes.")
    info = EncryptionInfo.parse(storage.get(newest.key), where)
    if info.number != number:
        raise Damaged(f"{where} says that it is number {info.number}: it was renamed.")
    return info


def is_encrypted(storage: Storage, subdir: str) -> bool:
    """Whether a chain has an encryption info, readable or not. It costs a listing."""
    return _newest_info(storage, subdir) is not None


def _newest_info(storage: Storage, subdir: str) -> tuple[int, ObjectInfo] | None:
    found = storage.list(f"{subdir}/{INFO_PREFIX}")
    numbered = [(int(match[1]), info) for info in found if (match := _INFO.fullmatch(info.key.removeprefix(f"{subdir}/")))]
    return max(numbered, key=lambda pair: pair[0], default=None)


def put_info(storage: Storage, subdir: str, info: EncryptionInfo) -> bool:
    """Store an encryption info; whether it was the first of its number."""
    try:
        storage.put(info_key(subdir, info.number), info.to_json(), create_only=True)
    except AlreadyExists:
        return False
    return True


def info_key(subdir: str, number: int) -> str:
    """The key of a chain's encryption info."""
    return f"{subdir}/{INFO_PREFIX}{number:06d}.json"


def change_keys(
    collection: Storage,
    subdir: str,
    old: Credentials,
    new: Credentials,
    clock: Clock = now,
    note: Callable[[str], None] = lambda _: None,
) -> EncryptionInfo:
    """Let `new` open the chain: keys of key services in addition to those it has, a passphrase instead of the one it has.
    No data is touched. Returns the info that counts from now on. `note` is told of infos that the old passphrase opens and
    that object locks keep.

    Raises KeyMismatch when `old` does not open the chain or is of another kind than `new`, Busy when somebody else changes
    the keys at this moment.
    """
    ring = Keyring(collection, lambda: old, clock)
    unlocked = ring.unlock(subdir)
    if unlocked is None:
        raise KeyMismatch(
            f"The backup {subdir} in {collection.display_uri} does not appear to be encrypted, so there is no key to change; if"
            " it was, find out who removed its encryption info."
        )
    info = unlocked.info
    if (old.passphrase is None) != (new.passphrase is None):
        raise KeyMismatch(
            f"The backup {subdir} is encrypted either with a passphrase or with keys of key services; not with both."
        )
    entries = entries_for(new, unlocked.data_key, info.chain)
    if new.passphrase is None:
        replaced = {entry.key_id for entry in entries if isinstance(entry, KmsKey)}
        kept = [entry for entry in info.keys if isinstance(entry, KmsKey) and entry.key_id not in replaced]
        entries = (*kept, *entries)
    draft = EncryptionDraft(chain=info.chain, number=info.number + 1, created_at=clock(), keys=entries)
    changed = sealed(draft, unlocked.data_key)
    if not put_info(collection, subdir, changed):
        raise Busy(f"The keys of the backup {subdir} were changed by somebody else just now; try again.")
    if new.passphrase is not None:
        _forget(collection, subdir, changed.number, note)
    return changed


def _forget(collection: Storage, subdir: str, before: int, note: Callable[[str], None]) -> None:
    """Delete the infos that the old passphrase opens: whoever replaces a passphrase means that."""
    for info in list(collection.list(f"{subdir}/{INFO_PREFIX}")):
        match = _INFO.fullmatch(info.key.removeprefix(f"{subdir}/"))
        if match and int(match[1]) < before:
            try:
                collection.delete(info.key)
            except Locked as error:
                note(f"An old passphrase still opens the backup {subdir} for who has read its old encryption info: {error}")


def _check_services(subdir: str, info: EncryptionInfo, services: Iterable[KeyService]) -> None:
    known = {entry.key_id for entry in info.keys if isinstance(entry, KmsKey)}
    unknown = [service.key for service in services if service.key_id not in known]
    if unknown:
        raise KeyMismatch(
            f"The key {unknown[0]} was not used when the backup {subdir} was encrypted; its keys are {_names(info)}. "
            "Leave it out, or add it first: ALTER BACKUP ... ADD NEW_KMS = ... WITH OLD_KMS = ..."
        )


def _names(info: EncryptionInfo) -> str:
    return ", ".join(entry.key for entry in info.keys if isinstance(entry, KmsKey))
