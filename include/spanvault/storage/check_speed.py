"""How fast a place is written and read, for storage/check.py: one stream each way, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from spanvault.model.progress import Progress
from spanvault.model.units import format_bytes
from spanvault.storage.check_properties import Broken, Place

_BLOCK = 1 << 20
_NAME = "speed"


@dataclass(frozen=True)
class Measured:
    """So many bytes took so many seconds."""

    bytes: int
    seconds: float

    @property
    def mb_per_second(self) -> float:
        """10^6 bytes a second."""
        return round(self.bytes / max(self.seconds, 1e-6) / 1e6, 1)

    @property
    def sentence(self) -> str:
        """For people."""
        amount = format_bytes(self.bytes)
        amount += " bytes" if amount.isdigit() else ""
        return f"{amount} in one stream took {self.seconds:.1f} s: {self.mb_per_second:.1f} MB/s."


def measure_writing(place: Place, size: int, progress: Progress) -> tuple[Measured, bytes]:
    """Stream `size` random bytes to the place; also their SHA-256."""
    digest, started = hashlib.sha256(), time.monotonic()
    with place.writer.open_write(place.key(_NAME)) as writer:
        for block in _blocks(size):
            digest.update(block)
            writer.write(block)
            progress.advance(bytes_=len(block))
    return Measured(size, time.monotonic() - started), digest.digest()


def measure_reading(place: Place, size: int, expected: bytes, progress: Progress) -> Measured:
    """Stream them back. Raises Broken if they are others."""
    digest, found, started = hashlib.sha256(), 0, time.monotonic()
    for chunk in place.reader.read_chunks(place.key(_NAME), _BLOCK):
        digest.update(chunk)
        found += len(chunk)
        progress.advance(bytes_=len(chunk))
    seconds = time.monotonic() - started
    if (found, digest.digest()) != (size, expected):
        raise Broken(f"Of {size} bytes that were streamed {found} came back, and they are not those that were written.")
    return Measured(size, seconds)


def _blocks(size: int) -> Iterator[bytes]:
    """Bytes that no store can compress or share: random ones, each block with a number of its own."""
    random = os.urandom(_BLOCK)
    for number, start in enumerate(range(0, size, _BLOCK)):
        yield (number.to_bytes(8, "big") + random[8:])[: size - start]
