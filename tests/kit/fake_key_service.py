"""A fake of a key service, held to the KeyService contract: it wraps with a key of its own."""

from __future__ import annotations

from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault.errors import Damaged, SpanvaultError


class FakeKeyService:
    """One key. `binds` says whether the service binds what it wraps to the chain (AWS and Google do, Azure does not);
    `fails` is raised by `unwrap` instead of an answer; `unwrapped` counts its calls."""

    def __init__(self, name: str, *, binds: bool = True, fails: SpanvaultError | None = None) -> None:
        self.key = f"aws:///{name}?REGION=eu-west-1"
        self.key_id = f"aws:eu-west-1/{name}"
        self.fails = fails
        self.unwrapped = 0
        self._binds = binds
        self._cipher = AESGCM(token_bytes(32))

    def wrap(self, data_key: bytes, chain: str) -> bytes:
        nonce = token_bytes(12)
        return nonce + self._cipher.encrypt(nonce, data_key, self._context(chain))

    def unwrap(self, wrapped: bytes, chain: str) -> bytes:
        self.unwrapped += 1
        if self.fails is not None:
            raise self.fails
        try:
            return self._cipher.decrypt(wrapped[:12], wrapped[12:], self._context(chain))
        except InvalidTag:
            raise Damaged(f"{self.key} cannot unwrap the data key: it is damaged or of another chain.") from None

    def _context(self, chain: str) -> bytes:
        return chain.encode() if self._binds else b""
