"""Encryption once more, written from docs/format.md alone: plain, slow, whole objects in memory, with keys and nonces chosen
by the caller. Uses nothing of Spanvault, HMAC from the standard library, and the block cipher's mode instead of the
one-call API that Spanvault uses. What this writes and Spanvault reads, and the other way round, has both right."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

CHUNK = 1048576
HEADER = 52


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256, RFC 5869, section 2."""
    extracted = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    block, out, number = b"", b"", 0
    while len(out) < length:
        number += 1
        block = hmac.new(extracted, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
    return out[:length]


def gcm_seal(key: bytes, nonce: bytes, plain: bytes, bound: bytes) -> bytes:
    """AES-GCM: ciphertext and tag."""
    cipher = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    cipher.authenticate_additional_data(bound)
    return cipher.update(plain) + cipher.finalize() + cipher.tag


def gcm_open(key: bytes, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The plaintext of `gcm_seal`; raises InvalidTag."""
    cipher = Cipher(algorithms.AES(key), modes.GCM(nonce, sealed[-16:])).decryptor()
    cipher.authenticate_additional_data(bound)
    return cipher.update(sealed[:-16]) + cipher.finalize()


def header(salt: bytes, prefix: bytes) -> bytes:
    """The first bytes of an encrypted object."""
    return b"SPVLTENC\x01" + (1048576).to_bytes(4, "big") + salt + prefix


def encrypt(plain: bytes, data_key: bytes, identity: str, *, salt: bytes, prefix: bytes) -> bytes:
    """An encrypted object."""
    head, name = header(salt, prefix), identity.encode()
    key = hkdf(data_key, salt, b"spanvault file key v1\x00" + name, 32)
    chunks = [plain[start : start + CHUNK] for start in range(0, len(plain), CHUNK)] or [b""]
    sealed = [
        gcm_seal(key, prefix + number.to_bytes(4, "big") + bytes([number == len(chunks) - 1]), chunk, head + name)
        for number, chunk in enumerate(chunks)
    ]
    return head + b"".join(sealed)


def decrypt(data: bytes, data_key: bytes, identity: str) -> bytes:
    """The plaintext of an encrypted object."""
    head, body, name = data[:HEADER], data[HEADER:], identity.encode()
    assert head[:13] == b"SPVLTENC\x01\x00\x10\x00\x00"
    key = hkdf(data_key, head[13:45], b"spanvault file key v1\x00" + name, 32)
    pieces = [body[start : start + CHUNK + 16] for start in range(0, len(body), CHUNK + 16)]
    return b"".join(
        gcm_open(key, head[45:] + number.to_bytes(4, "big") + bytes([number == len(pieces) - 1]), piece, head + name)
        for number, piece in enumerate(pieces)
    )


def canonical(fields: dict[str, Any]) -> bytes:
    """RFC 8785, for what an encryption info holds."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def seal_info(fields: dict[str, Any], data_key: bytes) -> dict[str, Any]:
    """The fields with `check` and `mac`, as a document."""
    check = hkdf(data_key, b"", b"spanvault data key check v1", 32)
    proven = {**fields, "check": base64.b64encode(check).decode()}
    key = hkdf(data_key, b"", b"spanvault encryption info key v1", 32)
    mac = hmac.new(key, canonical(proven), hashlib.sha256).digest()
    return {**proven, "mac": base64.b64encode(mac).decode()}


def wrap(key: bytes, data_key: bytes, chain: str, nonce: bytes) -> str:
    """The data key, wrapped under a passphrase's key."""
    return base64.b64encode(nonce + gcm_seal(key, nonce, data_key, chain.encode())).decode()


def unwrap(document: dict[str, Any], passphrase: str) -> bytes:
    """The data key in an info for a passphrase (which is in composed form), having checked all of it."""
    entry = document["keys"][0]
    costs = entry["parameters"]
    key = Argon2id(
        salt=base64.b64decode(entry["salt"]),
        length=32,
        iterations=costs["iterations"],
        lanes=costs["lanes"],
        memory_cost=costs["memory_kib"],
    ).derive(passphrase.encode())
    wrapped = base64.b64decode(entry["wrapped"])
    data_key = gcm_open(key, wrapped[:12], wrapped[12:], document["chain"].encode())
    bare = {name: value for name, value in document.items() if name not in {"check", "mac"}}
    assert seal_info(bare, data_key) == document
    return data_key
