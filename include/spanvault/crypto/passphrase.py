"""From a passphrase to a key, by Argon2id (RFC 9106)."""

from __future__ import annotations

import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import SecretStr

from spanvault.errors import Retryable
from spanvault.model.encryption import Argon2Parameters

# The second recommended choice of RFC 9106, section 4: 64 MiB, three passes, four lanes; a quarter of a second.
PARAMETERS = Argon2Parameters(memory_kib=64 * 1024, iterations=3, lanes=4)
SALT_BYTES = 16
KEY_BYTES = 32


def passphrase_to_key(passphrase: SecretStr, salt: bytes, parameters: Argon2Parameters) -> bytes:
    """The key (32 bytes) that the passphrase gives. It is taken as UTF-8 of its composed form (Unicode NFC): keyboards of
    different systems write the same letter differently.

    Raises Retryable if the machine has not the memory.
    """
    text = unicodedata.normalize("NFC", passphrase.get_secret_value()).encode()
    derivation = Argon2id(
        salt=salt,
        length=KEY_BYTES,
        iterations=parameters.iterations,
        lanes=parameters.lanes,
        memory_cost=parameters.memory_kib,
    )
    try:
        return derivation.derive(text)
    except MemoryError:
        raise Retryable(
            f"There are not {parameters.memory_kib // 1024} MiB of memory free, which the passphrase needs; free some."
        ) from None
