"""Wrapping a chain's data key, unwrapping it, and telling whether an encryption info is authentic.

docs/format.md, Encryption, is the specification.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
from collections.abc import Sequence
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from spanvault.crypto.key_service import KeyService
from spanvault.errors import Damaged, Refused, SpanvaultError
from spanvault.model.encryption import ENCRYPTION_VERSION, Argon2Parameters, EncryptionInfo, KmsKey, PassphraseKey

_KEY_BYTES = 32
_SALT_BYTES = 16
_NONCE_BYTES = 12
_WRAP_PURPOSE = b"spanvault passphrase v1\x00"
_MAC_PURPOSE = b"spanvault encryption info v1"

WrappedKey = PassphraseKey | KmsKey


def new_data_key() -> bytes:
    """A random key of 256 bits."""
    return os.urandom(_KEY_BYTES)


def passphrase_entry(passphrase: SecretStr, data_key: bytes, chain: str) -> PassphraseKey:
    """The data key, wrapped with the passphrase and bound to the chain."""
    salt, parameters, nonce = os.urandom(_SALT_BYTES), Argon2Parameters(), os.urandom(_NONCE_BYTES)
    wrapped = AESGCM(_derived(passphrase, salt, parameters)).encrypt(nonce, data_key, _bound(chain))
    return PassphraseKey(salt=_text(salt), parameters=parameters, wrapped=_text(nonce + wrapped))


def kms_entry(service: KeyService, data_key: bytes, chain: str) -> KmsKey:
    """The data key, wrapped by a key service. Raises what `KeyService.wrap` raises."""
    return KmsKey(key=service.key, key_id=service.key_id, wrapped=_text(service.wrap(data_key, chain)))


def sealed(chain: str, number: int, created_at: datetime, keys: Sequence[WrappedKey], data_key: bytes) -> EncryptionInfo:
    """The encryption info of these keys, authenticated with the data key."""
    draft = EncryptionInfo(chain=chain, number=number, created_at=created_at, keys=tuple(keys))
    return draft.model_copy(update={"mac": _mac(draft, data_key)})


def unlock_passphrase(info: EncryptionInfo, passphrase: SecretStr) -> bytes:
    """The data key. Raises Refused for a wrong passphrase, Damaged for an info that is not authentic."""
    entry = info.keys[0]
    if not isinstance(entry, PassphraseKey):
        raise Refused("it is encrypted with keys of a key service, not with a passphrase.")
    wrapped = _bytes(entry.wrapped)
    try:
        key = AESGCM(_derived(passphrase, _bytes(entry.salt), entry.parameters))
        data_key = key.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _bound(info.chain))
    except (InvalidTag, ValueError):
        raise Refused("the passphrase does not fit; maybe it is another one.") from None
    return _authentic(info, data_key)


def unlock_kms(info: EncryptionInfo, services: Sequence[KeyService]) -> bytes:
    """The data key, by the first of `services` that gives it.

    Raises Refused when none of them is the info's, the last service's own error when none of those that are can be used, and
    Damaged for an info that is not authentic.
    """
    entries = {entry.key_id: entry for entry in info.keys if isinstance(entry, KmsKey)}
    fitting = [(service, entries[service.key_id]) for service in services if service.key_id in entries]
    if not fitting:
        given = ", ".join(service.key for service in services)
        raise Refused(
            f"none of the keys that are given ({given}) is one of its keys, {', '.join(e.key for e in entries.values())}."
        )
    failures: list[SpanvaultError] = []
    for service, entry in fitting:
        try:
            data_key = service.unwrap(_bytes(entry.wrapped), info.chain)
        except SpanvaultError as error:
            failures.append(error)
            continue
        return _authentic(info, data_key)
    if len(failures) == 1:
        raise failures[0]
    raise type(failures[-1])(f"None of the keys could be used: {' '.join(map(str, failures))}")


def parse_info(data: bytes, where: str) -> EncryptionInfo:
    """The document in `data`. Raises Refused for a newer format, Damaged for what is none."""
    try:
        fields = json.loads(data)
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{where} is not an encryption info: its bytes are damaged.") from None
    if isinstance(version, int) and version > ENCRYPTION_VERSION:
        raise Refused(f"{where} is of a newer format ({version}) than this Spanvault knows; upgrade Spanvault to read it.")
    if version != ENCRYPTION_VERSION:
        raise Damaged(f"{where} is of a format that never was ({version!r}).")
    return EncryptionInfo.from_json(data, where)


def _authentic(info: EncryptionInfo, data_key: bytes) -> bytes:
    if len(data_key) != _KEY_BYTES or not hmac.compare_digest(_mac(info, data_key), info.mac):
        raise Damaged("the encryption info is not what was written: it was changed, or put together from others.")
    return data_key


def _mac(info: EncryptionInfo, data_key: bytes) -> str:
    fields = info.model_dump(mode="json", exclude={"mac"})
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    key = HKDF(SHA256(), _KEY_BYTES, salt=None, info=_MAC_PURPOSE).derive(data_key)
    return _text(hmac.digest(key, canonical.encode(), "sha256"))


def _derived(passphrase: SecretStr, salt: bytes, parameters: Argon2Parameters) -> bytes:
    derive = Argon2id(
        salt=salt,
        length=_KEY_BYTES,
        iterations=parameters.iterations,
        lanes=parameters.lanes,
        memory_cost=parameters.memory_kib,
    )
    return derive.derive(passphrase.get_secret_value().encode())


def _bound(chain: str) -> bytes:
    return _WRAP_PURPOSE + chain.encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise Damaged("the encryption info is not what was written: a value of it is no base64 text.") from None
