"""What a key service does for a chain: it wraps the data key with a key that never leaves it."""

from __future__ import annotations

from typing import Protocol


class KeyService(Protocol):
    """One key of one key service.

    `key` is its URI without credentials, as the encryption info shows it; `key_id` is the same text for two URIs of the
    same key, whatever their credentials. Both calls raise BadInput, NotFound or Refused where the key cannot be used as
    asked, Retryable where trying again may help; `unwrap` raises Damaged if `wrapped` is not what `wrap` gave for `chain`.
    """

    @property
    def key(self) -> str:
        """The key's URI without credentials."""

    @property
    def key_id(self) -> str:
        """Names the key, however it is reached."""

    def wrap(self, data_key: bytes, chain: str) -> bytes:
        """The data key (32 bytes), encrypted by the service; bound to the chain's id where the service can do that."""

    def unwrap(self, wrapped: bytes, chain: str) -> bytes:
        """The data key that `wrap` was given for the same chain."""
