"""Encrypted objects: AES-256-GCM in chunks of 1 MiB, in the STREAM construction, so that nothing can be cut off, changed,
moved or exchanged unseen, and a part can be read without the rest. docs/format.md, section Encryption, is the
specification.

STREAM: Hoang, Reyhanitabar, Rogaway, Vizar, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
https://eprint.iacr.org/2015/189, section 7: the nonce of a chunk is a random prefix, its number, and whether it is the
last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from spanvault.errors import Damaged, Refused
from spanvault.storage.base import Writer

CHUNK_BYTES = 1 << 20
"""Plaintext bytes in every chunk but the last."""
VERSION = 1
MAGIC = b"SPVLTENC" + bytes((VERSION,))
"""The first bytes of every encrypted object; the last of them is the version of the form."""
DATA_KEY_BYTES = 32

_SALT_BYTES, _PREFIX_BYTES, _TAG_BYTES = 32, 7, 16
_HEADER = struct.Struct(f">{len(MAGIC)}sI{_SALT_BYTES}s{_PREFIX_BYTES}s")  # magic, chunk size, salt, nonce prefix
_SEALED_BYTES = CHUNK_BYTES + _TAG_BYTES
_MAX_CHUNKS = 1 << 32
_FILE_KEY = b"spanvault file key v1\x00"


class EncryptingWriter:
    """Writes what it is given, encrypted, to `sink`; holds one chunk.

    `identity` is the object's path in its chain. Without `finish` the object is cut off, and found to be.
    """

    def __init__(self, sink: Writer, data_key: bytes, identity: str) -> None:
        header = _HEADER.pack(MAGIC, CHUNK_BYTES, token_bytes(_SALT_BYTES), token_bytes(_PREFIX_BYTES))
        self._sink = sink
        self._cipher = _Cipher(header, data_key, identity)
        self._kept = bytearray()
        self._number = 0
        self._finished = False
        sink.write(header)

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`; returns its length. Raises what the sink raises, ValueError after `finish`."""
        if self._finished:
            raise ValueError("The encrypted object is finished; nothing can be added.")
        view = memoryview(data).cast("B")
        start = 0
        while start < len(view):
            if len(self._kept) == CHUNK_BYTES:  # more follows, so it is not the last
                self._seal(last=False)
            taken = view[start : start + CHUNK_BYTES - len(self._kept)]
            self._kept += taken
            start += len(taken)
        return len(view)

    def finish(self) -> None:
        """Write the last chunk."""
        if self._finished:
            raise ValueError("The encrypted object is finished already.")
        self._finished = True
        self._seal(last=True)

    def _seal(self, *, last: bool) -> None:
        if self._number == _MAX_CHUNKS:
            raise Refused("An encrypted object holds at most 4 PiB; write several.")
        self._sink.write(self._cipher.seal(self._number, self._kept, last=last))
        self._number += 1
        self._kept.clear()


def encrypt(data: bytes, data_key: bytes, identity: str) -> bytes:
    """The encrypted form of a small object."""
    sink = _Buffer()
    writer = EncryptingWriter(sink, data_key, identity)
    writer.write(data)
    writer.finish()
    return bytes(sink.data)


def decrypt(data: bytes, data_key: bytes, identity: str, where: object) -> bytes:
    """What `encrypt` was given. Raises Damaged as `decrypt_chunks` does."""
    return b"".join(decrypt_chunks((data,), data_key, identity, where))


def decrypt_chunks(chunks: Iterable[bytes], data_key: bytes, identity: str, where: object) -> Iterator[bytes]:
    """The plaintext of an encrypted object that comes in pieces of any size; holds two chunks. Every piece of plaintext is
    authentic and in its place; that nothing is missing at the end shows only when the iterator ends without an error.

    Raises Damaged, with the text of `where` in the sentence, for an object that is not whole, not as it was written, written
    under another path or in another chain, or not encrypted.
    """
    kept = bytearray()
    cipher: _Cipher | None = None
    number = 0
    for piece in _small(chunks):
        kept += piece
        if cipher is None and len(kept) >= _HEADER.size:
            cipher = _opened(bytes(kept[: _HEADER.size]), data_key, identity, where)
            del kept[: _HEADER.size]
        while cipher is not None and len(kept) > _SEALED_BYTES:  # more follows, so it is not the last
            yield cipher.open(number, bytes(kept[:_SEALED_BYTES]), last=False)
            del kept[:_SEALED_BYTES]
            number += 1
    if cipher is None:
        cipher = _opened(bytes(kept), data_key, identity, where)
    plain = cipher.open(number, bytes(kept), last=True)
    if plain:
        yield plain


def plaintext_size(size: int) -> int:
    """How many bytes of plaintext an encrypted object of `size` bytes holds. Of a size that no encrypted object has (see
    `decrypt_range`) the answer means nothing, but is no error: it is asked for in listings."""
    full, rest = divmod(max(0, size - _HEADER.size), _SEALED_BYTES)
    return full * CHUNK_BYTES + max(0, rest - _TAG_BYTES)


def decrypt_range(
    read: Callable[[int, int], bytes],
    size: int,
    start: int,
    length: int,
    data_key: bytes,
    identity: str,
    where: object,
) -> bytes:
    """`length` bytes of plaintext from `start` on, fewer only where the object ends (which is proven). `read(start, length)`
    reads from the encrypted object of `size` bytes; it is called for the header and for the chunks that hold the range.

    Raises Damaged as `decrypt_chunks` does, for what it reads.
    """
    if start < 0 or length < 0:
        raise ValueError("A range begins at 0 or later and is not negative.")
    cipher = _opened(_read(read, 0, min(size, _HEADER.size), where), data_key, identity, where)
    last = max(0, -(-(size - _HEADER.size) // _SEALED_BYTES) - 1)
    if length == 0:
        return b""
    first = min(start // CHUNK_BYTES, last)
    final = min((start + length - 1) // CHUNK_BYTES, last)
    offset = _HEADER.size + first * _SEALED_BYTES
    sealed = memoryview(_read(read, offset, min(size, offset + (final - first + 1) * _SEALED_BYTES) - offset, where))
    plain = b"".join(
        cipher.open(number, sealed[(number - first) * _SEALED_BYTES :][:_SEALED_BYTES], last=number == last)
        for number in range(first, final + 1)
    )
    skipped = start - first * CHUNK_BYTES
    return plain[skipped : skipped + length]


class _Cipher:
    """One object's key and header; seals and opens its chunks."""

    def __init__(self, header: bytes, data_key: bytes, identity: str, where: object = "") -> None:
        if len(data_key) != DATA_KEY_BYTES:
            raise ValueError(f"A data key has {DATA_KEY_BYTES} bytes.")
        _, _, salt, prefix = _HEADER.unpack(header)
        self._prefix: bytes = prefix
        name = identity.encode()
        derivation = HKDF(algorithm=SHA256(), length=DATA_KEY_BYTES, salt=salt, info=_FILE_KEY + name)
        self._aead = AESGCM(derivation.derive(data_key))
        self._bound = header + name
        self._where = where

    def seal(self, number: int, plain: bytearray, *, last: bool) -> bytes:
        return self._aead.encrypt(self._nonce(number, last), plain, self._bound)

    def open(self, number: int, sealed: bytes | memoryview, *, last: bool) -> bytes:
        """The plaintext of a chunk. An empty last one is there in an empty object only."""
        if len(sealed) < _TAG_BYTES or (number > 0 and len(sealed) == _TAG_BYTES):
            raise Damaged(f"{self._where} is cut off: {len(sealed)} bytes remain where chunk {number} of it should be.")
        try:
            return self._aead.decrypt(self._nonce(number, last), sealed, self._bound)
        except InvalidTag:
            raise Damaged(
                f"{self._where} is not what was written: chunk {number} of it was changed, moved or cut off,"
                " or it, or the ENCRYPTION-INFO, belongs to another place or backup; restore from another copy."
            ) from None

    def _nonce(self, number: int, last: bool) -> bytes:
        return self._prefix + struct.pack(">IB", number, last)


class _Buffer:
    """A Writer into memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview, /) -> int:
        self.data += data
        return len(data)


def _opened(header: bytes, data_key: bytes, identity: str, where: object) -> _Cipher:
    """The cipher that an object's header tells of."""
    if header[: len(MAGIC) - 1] != MAGIC[: min(len(header), len(MAGIC) - 1)]:
        raise Damaged(f"{where} is not encrypted, but its backup is: it was exchanged, or written by something else.")
    if len(header) < _HEADER.size:
        raise Damaged(f"{where} is cut off: it has only {len(header)} bytes.")
    magic, chunk_bytes, _, _ = _HEADER.unpack(header)
    if magic != MAGIC:
        raise Damaged(
            f"{where} is encrypted in form {magic[-1]}, and this version knows form {VERSION} only: a newer Spanvault"
            " wrote it, or it is damaged."
        )
    if chunk_bytes != CHUNK_BYTES:
        raise Damaged(f"{where} is damaged: it says that its chunks have {chunk_bytes} bytes; all have {CHUNK_BYTES}.")
    return _Cipher(header, data_key, identity, where)


def _small(chunks: Iterable[bytes]) -> Iterator[memoryview]:
    """The same bytes in pieces of one chunk at most, so that a long one is not copied as a whole."""
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _SEALED_BYTES):
            yield view[start : start + _SEALED_BYTES]


def _read(read: Callable[[int, int], bytes], start: int, length: int, where: object) -> bytes:
    if length <= 0:
        return b""
    data = read(start, length)
    if len(data) != length:
        raise Damaged(f"{where} is cut off: {len(data)} bytes were read at {start} where {length} should be.")
    return data
