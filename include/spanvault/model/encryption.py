"""The encryption info of a chain: its data key, wrapped. docs/format.md, section Encryption, specifies it.

Nothing in it is secret without the passphrase or the key service. Bytes are base64 text (RFC 4648, section 4).
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from spanvault.errors import Damaged, Refused
from spanvault.model.base import Value

ENCRYPTION_VERSION = 1

_MEBIBYTE = 1024
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def to_base64(data: bytes) -> str:
    """The bytes as text."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes:
    """The bytes that `to_base64` wrote. Raises ValueError for text that it would not write."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("this is not base64") from None
    if to_base64(data) != text:
        raise ValueError("this is not the base64 of any bytes")
    return data


def _bytes(least: int, most: int) -> AfterValidator:
    """Checks base64 text of so many bytes."""

    def check(text: str) -> str:
        count = len(from_base64(text))
        if not least <= count <= most:
            raise ValueError(f"these are {count} bytes, not {least if least == most else f'{least} to {most}'}")
        return text

    return AfterValidator(check)


# A key's name is shown to people before it is known to be authentic: no control characters.
_Name = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class Argon2Parameters(Value):
    """What Argon2id (RFC 9106) costs: memory in KiB, passes over it, lanes.

    The bounds keep whoever can write to the storage from making a reader take all memory or compute for hours: at most
    1 GiB and 16 passes.
    """

    memory_kib: int = Field(ge=8 * _MEBIBYTE, le=1024 * _MEBIBYTE)
    iterations: int = Field(ge=1, le=16)
    lanes: int = Field(ge=1, le=16)


class PassphraseKey(Value):
    """The data key, wrapped with a key that is made of a passphrase. `salt` has 16 bytes; `wrapped` are the nonce (12
    bytes), the encrypted data key (32) and the tag (16)."""

    kind: Literal["passphrase"] = "passphrase"
    salt: Annotated[str, _bytes(16, 16)]
    parameters: Argon2Parameters
    wrapped: Annotated[str, _bytes(60, 60)]


class KmsKey(Value):
    """The data key, wrapped by a key of a key service. `key` is its URI without credentials, `key_id` is the same text for
    all URIs of that key, `wrapped` is what the service gave."""

    kind: Literal["kms"] = "kms"
    key: _Name
    key_id: _Name
    wrapped: Annotated[str, _bytes(32, 8192)]


class EncryptionDraft(Value):
    """An encryption info before it is sealed (crypto/info.py): what a person decides, and the wrapped keys.

    `chain` is a random id of the chain, `number` counts its infos from 0; the one with the highest number counts.
    """

    format_version: int = ENCRYPTION_VERSION
    chain: str = Field(pattern=_UUID)
    number: int = Field(ge=0, le=999_999)
    created_at: datetime
    keys: tuple[Annotated[PassphraseKey | KmsKey, Field(discriminator="kind")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_kind_of_keys(self) -> Self:
        passphrases = sum(isinstance(entry, PassphraseKey) for entry in self.keys)
        if passphrases and len(self.keys) > 1:
            raise ValueError("a passphrase's key stands alone; it cannot be beside other keys")
        names = [entry.key_id for entry in self.keys if isinstance(entry, KmsKey)]
        if len(set(names)) < len(names):
            raise ValueError("a key of a key service is there twice")
        return self


class EncryptionInfo(EncryptionDraft):
    """ENCRYPTION-INFO-<number>.json of a chain. `check` (32 bytes) tells the chain's data key from any other, `mac` (32
    bytes) is the authentication code of everything else, under a key that is derived from the data key."""

    check: Annotated[str, _bytes(32, 32)]
    mac: Annotated[str, _bytes(32, 32)]

    @classmethod
    def parse(cls, data: bytes, where: str) -> EncryptionInfo:
        """The info in `data`; `where` names the object for people. That it is authentic shows when it is unlocked.

        Raises Refused for a newer format than this version knows, Damaged for bytes that are no encryption info, also for
        costs of Argon2 out of bounds.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{where} is not JSON: its bytes are damaged.") from error
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise Damaged(f"{where} has no format version: it is damaged, or no encryption info.")
        if version > ENCRYPTION_VERSION:
            raise Refused(
                f"{where} was written by a newer Spanvault (format {version}; this version knows formats up to"
                f" {ENCRYPTION_VERSION}); upgrade Spanvault to read it."
            )
        return cls.from_json(data, where)
