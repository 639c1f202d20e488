"""A chain's data key: made, wrapped for those who may have it, sealed into an encryption info, and unlocked again.

docs/format.md, section Encryption, is the specification. Sentences name keys by their URIs and infos by their file names,
never what is secret.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from hashlib import sha256
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr, ValidationError

from spanvault.crypto.key_service import KeyService
from spanvault.crypto.passphrase import PARAMETERS, SALT_BYTES, passphrase_to_key
from spanvault.crypto.stream import DATA_KEY_BYTES
from spanvault.errors import Damaged, Refused, Retryable, SpanvaultError
from spanvault.model.encryption import EncryptionDraft, EncryptionInfo, KmsKey, PassphraseKey, from_base64, to_base64

_NONCE_BYTES = 12
_CHECK = b"spanvault data key check v1"
_MAC_KEY = b"spanvault encryption info key v1"


def new_data_key() -> bytes:
    """A random data key, 32 bytes."""
    return token_bytes(DATA_KEY_BYTES)


def passphrase_entry(passphrase: SecretStr, data_key: bytes, chain: str) -> PassphraseKey:
    """The data key, wrapped with a key that is made of the passphrase; bound to the chain's id. Takes 64 MiB of memory and
    part of a second. Raises Retryable without the memory."""
    salt, nonce = token_bytes(SALT_BYTES), token_bytes(_NONCE_BYTES)
    key = passphrase_to_key(passphrase, salt, PARAMETERS)
    wrapped = nonce + AESGCM(key).encrypt(nonce, data_key, chain.encode())
    return PassphraseKey(salt=to_base64(salt), parameters=PARAMETERS, wrapped=to_base64(wrapped))


def kms_entry(service: KeyService, data_key: bytes, chain: str) -> KmsKey:
    """The data key, wrapped by a key service. Raises what the service raises, Damaged for an answer that is none."""
    wrapped = service.wrap(data_key, chain)
    try:
        return KmsKey(key=service.key, key_id=service.key_id, wrapped=to_base64(wrapped))
    except ValidationError:
        raise Damaged(
            f"{service.key} gave {len(wrapped)} bytes as the wrapped data key, which cannot be one; find out what answers there."
        ) from None


def sealed(draft: EncryptionDraft, data_key: bytes) -> EncryptionInfo:
    """The draft with the proofs that it belongs to the data key and is whole."""
    fields = {name: getattr(draft, name) for name in EncryptionDraft.model_fields}
    unproven = EncryptionInfo(**fields, check=to_base64(_derived(data_key, _CHECK)), mac=to_base64(bytes(32)))
    return unproven.model_copy(update={"mac": to_base64(_mac(unproven, data_key))})


def unlock_passphrase(info: EncryptionInfo, passphrase: SecretStr) -> bytes:
    """The data key.

    Raises Refused for a wrong passphrase (or a wrapped key that was changed: that cannot be told apart) and if the info is
    for key services, Damaged for an info that was changed, Retryable without the memory.
    """
    entry = info.keys[0]
    if not isinstance(entry, PassphraseKey):
        raise Refused(f"{_where(info)} is for keys of a key service, not for a passphrase; give kms with {_names(info)}.")
    key = passphrase_to_key(passphrase, from_base64(entry.salt), entry.parameters)
    wrapped = from_base64(entry.wrapped)
    try:
        data_key = AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], info.chain.encode())
    except InvalidTag:
        raise Refused(
            f"{_where(info)} cannot be decrypted with this passphrase: check the passphrase; if it is right, the wrapped"
            " key was changed."
        ) from None
    if not _belongs(info, data_key):
        raise Damaged(f"{_where(info)} was changed: the key in it is not the one that its check is of.")
    return _proven(info, data_key)


def unlock_kms(info: EncryptionInfo, services: Sequence[KeyService]) -> bytes:
    """The data key, from the first of the services that unwraps it; `services` of other keys are passed over.

    If none does, raises Retryable if trying again may help, Damaged if all say that what they wrapped was changed, else
    Refused, each with the services' reasons. Raises Damaged for an info that was changed.
    """
    if isinstance(info.keys[0], PassphraseKey):
        raise Refused(
            f"{_where(info)} is for a passphrase, not for keys of a key service; give encryption_passphrase instead of kms."
        )
    entries = {entry.key_id: entry for entry in info.keys if isinstance(entry, KmsKey)}
    reasons: list[SpanvaultError] = []
    for service in services:
        entry = entries.get(service.key_id)
        if entry is None:
            reasons.append(Refused(f"{service.key} is none of its keys."))
            continue
        try:
            data_key = service.unwrap(from_base64(entry.wrapped), info.chain)
        except SpanvaultError as error:
            reasons.append(error)
            continue
        if _belongs(info, data_key):
            return _proven(info, data_key)
        reasons.append(Damaged(f"{service.key} unwrapped another key than that of the backup."))
    raise _none_fits(info, reasons)


def _none_fits(info: EncryptionInfo, reasons: list[SpanvaultError]) -> SpanvaultError:
    said = " ".join(str(reason) for reason in reasons) or "No key was given."
    sentence = f"{_where(info)} cannot be decrypted with the keys given; it needs one of {_names(info)}. {said}"
    if any(isinstance(reason, Retryable) for reason in reasons):
        return Retryable(sentence)
    if reasons and all(isinstance(reason, Damaged) for reason in reasons):
        return Damaged(sentence)
    return Refused(sentence)


def _belongs(info: EncryptionInfo, data_key: bytes) -> bool:
    """Whether it is the chain's data key."""
    return len(data_key) == DATA_KEY_BYTES and hmac.compare_digest(_derived(data_key, _CHECK), from_base64(info.check))


def _proven(info: EncryptionInfo, data_key: bytes) -> bytes:
    if not hmac.compare_digest(_mac(info, data_key), from_base64(info.mac)):
        raise Damaged(
            f"{_where(info)} was changed by somebody who does not have the data key, or belongs to another chain;"
            " put the one back that was written."
        )
    return data_key


def _mac(info: EncryptionInfo, data_key: bytes) -> bytes:
    """HMAC-SHA256 over all fields but `mac`, in the canonical form of RFC 8785 (which is this, without numbers that are
    not whole and with keys in ASCII)."""
    fields = info.model_dump(mode="json", exclude={"mac"})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.new(_derived(data_key, _MAC_KEY), text.encode(), sha256).digest()


def _derived(data_key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(data_key)


def _where(info: EncryptionInfo) -> str:
    return f"ENCRYPTION-INFO-{info.number:06d}.json of the chain {info.chain}"


def _names(info: EncryptionInfo) -> str:
    return ", ".join(entry.key for entry in info.keys if isinstance(entry, KmsKey))
