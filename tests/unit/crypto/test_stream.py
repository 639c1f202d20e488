"""Encrypted objects: what goes in comes out, in any pieces, in part or whole, in bounded memory; and an independent
implementation agrees."""

from __future__ import annotations

import gc
import hashlib
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.crypto import stream
from spanvault.crypto.stream import (
    CHUNK_BYTES,
    MAGIC,
    EncryptingWriter,
    decrypt,
    decrypt_chunks,
    decrypt_range,
    encrypt,
    plaintext_size,
)
from spanvault.errors import Refused
from tests.kit import encryption_reference as reference

KEY = bytes(range(32))
PATH = "000000/data/é.parquet"
WHERE = "The object a/b"
SALT, PREFIX = bytes(range(0x40, 0x60)), bytes(range(0xA0, 0xA7))
HEADER, TAG = 52, 16
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES - 1, 3 * CHUNK_BYTES + 7]
HEAD = "5350564c54454e430100100000404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5fa0a1a2a3a4a5a6"
# Made with Node.js's crypto module from docs/format.md, not with this project's code.
SMALL = {
    "empty": (b"", HEAD + "1c41c97c118e5a99282ba240496596f4"),
    "text": (b"attack at dawn", HEAD + "694b1436eee055c0e4954167a2297b0cc406ecf993b486d6404b5254c561"),
}
LARGE = {
    2 * CHUNK_BYTES: (2097236, "3460e9f9e2068f0e43471971b03b18fe30e27bc6bd3e6c754871a478e6c95b6d"),
    2 * CHUNK_BYTES + 1: (2097253, "11f8cee7c343cc17b25b40fa505b70ad2399d4d1b88d6d2e2fe13040d7641b32"),
}


class Sink:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes | memoryview, /) -> int:
        self.pieces.append(bytes(data))
        return len(data)


class Ranges:
    """Reads ranges of an object, and keeps which."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, length: int) -> bytes:
        self.asked.append((start, length))
        return self.data[start : start + length]


def pattern(size: int) -> bytes:
    """Bytes whose place shows: 0 to 250, over and over (251 is prime to the chunk size)."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(scope="module")
def long() -> bytes:
    return encrypt(pattern(3 * CHUNK_BYTES + 7), KEY, PATH)


@pytest.mark.parametrize(
    ("key", "salt", "info", "okm"),
    [
        (
            "0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        ("0b" * 22, b"", b"", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"),
    ],
    ids=["case 1", "case 3"],
)
def test_hkdf_is_that_of_rfc_5869(key: str, salt: bytes, info: bytes, okm: str) -> None:
    data = bytes.fromhex(key)
    assert reference.hkdf(data, salt, info, 42).hex() == okm
    assert HKDF(algorithm=SHA256(), length=42, salt=salt or None, info=info).derive(data).hex() == okm


def test_gcm_is_that_of_its_specification() -> None:
    """Test case 16 of McGrew and Viega, "The Galois/Counter Mode of Operation"."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert reference.gcm_seal(key, nonce, plain, bound) == sealed
    assert AESGCM(key).encrypt(nonce, plain, bound) == sealed
    assert reference.gcm_open(key, nonce, sealed, bound) == plain


@pytest.mark.parametrize("name", sorted(SMALL))
def test_small_objects_are_as_another_program_writes_them(name: str) -> None:
    plain, written = SMALL[name]
    assert reference.encrypt(plain, KEY, PATH, salt=SALT, prefix=PREFIX).hex() == written
    assert decrypt(bytes.fromhex(written), KEY, PATH, WHERE) == plain


@pytest.mark.parametrize("size", sorted(LARGE))
def test_long_objects_are_as_another_program_writes_them(size: int) -> None:
    data = reference.encrypt(pattern(size), KEY, PATH, salt=SALT, prefix=PREFIX)
    assert (len(data), hashlib.sha256(data).hexdigest()) == LARGE[size]
    assert decrypt(data, KEY, PATH, WHERE) == pattern(size)


def test_the_writer_writes_those_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "token_bytes", {32: SALT, 7: PREFIX}.__getitem__)
    assert encrypt(b"attack at dawn", KEY, PATH).hex() == SMALL["text"][1]
    data = encrypt(pattern(2 * CHUNK_BYTES + 1), KEY, PATH)
    assert hashlib.sha256(data).hexdigest() == LARGE[2 * CHUNK_BYTES + 1][1]


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_in_comes_out_here_and_elsewhere(size: int) -> None:
    plain = pattern(size)
    data = encrypt(plain, KEY, PATH)
    assert data.startswith(MAGIC)
    assert len(data) == HEADER + size + TAG * max(1, -(-size // CHUNK_BYTES))
    assert plaintext_size(len(data)) == size
    assert reference.decrypt(data, KEY, PATH) == plain
    assert decrypt(data, KEY, PATH, WHERE) == plain


def test_two_objects_of_the_same_bytes_have_nothing_in_common() -> None:
    plain = pattern(1000)
    first, second = encrypt(plain, KEY, PATH), encrypt(plain, KEY, PATH)
    assert first[:13] == second[:13]  # magic and chunk size
    same = sum(one == other for one, other in zip(first[13:], second[13:], strict=True))
    assert same < 50  # 1055 random bytes agree in 4 on average
    assert plain[:16] not in first


@settings(max_examples=40, deadline=None)
@given(
    size=st.one_of(
        st.integers(0, 300),
        st.builds(lambda chunks, off: max(0, chunks * CHUNK_BYTES + off), st.integers(1, 3), st.integers(-2, 2)),
    ),
    cuts=st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=6),
    feed=st.integers(1, 3 * CHUNK_BYTES),
)
def test_in_any_pieces(size: int, cuts: list[int], feed: int) -> None:
    plain, sink = pattern(size), Sink()
    writer = EncryptingWriter(sink, KEY, PATH)
    borders = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, end in pairwise(borders):
        piece = plain[start:end]
        assert writer.write(memoryview(piece) if start % 2 else piece) == len(piece)
    writer.finish()
    data = b"".join(sink.pieces)
    pieces = [data[start : start + max(feed, 1000)] for start in range(0, len(data), max(feed, 1000))]
    assert b"".join(decrypt_chunks(pieces, KEY, PATH, WHERE)) == plain
    assert reference.decrypt(data, KEY, PATH) == plain


def test_byte_by_byte() -> None:
    data = encrypt(b"attack at dawn", KEY, PATH)
    assert b"".join(decrypt_chunks((data[i : i + 1] for i in range(len(data))), KEY, PATH, WHERE)) == b"attack at dawn"


def test_memoryviews_of_wider_items_are_taken_as_bytes() -> None:
    sink = Sink()
    writer = EncryptingWriter(sink, KEY, PATH)
    assert writer.write(memoryview(b"12345678").cast("I")) == 8
    writer.finish()
    assert decrypt(b"".join(sink.pieces), KEY, PATH, WHERE) == b"12345678"


def test_nothing_is_added_to_a_finished_object() -> None:
    writer = EncryptingWriter(Sink(), KEY, PATH)
    writer.finish()
    with pytest.raises(ValueError, match="finished"):
        writer.write(b"1")
    with pytest.raises(ValueError, match="finished"):
        writer.finish()


def test_a_data_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        encrypt(b"", KEY[:16], PATH)


def test_the_counter_never_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_MAX_CHUNKS", 2)
    assert len(encrypt(pattern(2 * CHUNK_BYTES), KEY, PATH)) == HEADER + 2 * (CHUNK_BYTES + TAG)
    with pytest.raises(Refused, match="at most 4 PiB"):
        encrypt(pattern(2 * CHUNK_BYTES + 1), KEY, PATH)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 4 * CHUNK_BYTES), length=st.integers(0, 4 * CHUNK_BYTES))
def test_ranges_are_slices(long: bytes, start: int, length: int) -> None:
    plain = pattern(3 * CHUNK_BYTES + 7)
    assert decrypt_range(Ranges(long), len(long), start, length, KEY, PATH, WHERE) == plain[start : start + length]


@pytest.mark.parametrize(
    ("start", "length", "first", "count"),
    [
        pytest.param(0, 1, 0, 1, id="first byte"),
        pytest.param(CHUNK_BYTES - 1, 1, 0, 1, id="last of a chunk"),
        pytest.param(CHUNK_BYTES, CHUNK_BYTES, 1, 1, id="a chunk"),
        pytest.param(CHUNK_BYTES - 1, 2, 0, 2, id="over a border"),
        pytest.param(CHUNK_BYTES + 5, 2 * CHUNK_BYTES, 1, 3, id="to the last"),
        pytest.param(3 * CHUNK_BYTES, 7, 3, 1, id="the last"),
        pytest.param(3 * CHUNK_BYTES, 999, 3, 1, id="beyond the end"),
        pytest.param(9 * CHUNK_BYTES, 1, 3, 1, id="behind the end"),
    ],
)
def test_only_what_is_needed_is_read(long: bytes, start: int, length: int, first: int, count: int) -> None:
    ranges, sealed = Ranges(long), CHUNK_BYTES + TAG
    decrypt_range(ranges, len(long), start, length, KEY, PATH, WHERE)
    end = min(len(long), HEADER + (first + count) * sealed)
    assert ranges.asked == [(0, HEADER), (HEADER + first * sealed, end - HEADER - first * sealed)]


def test_an_empty_range_reads_the_header_only(long: bytes) -> None:
    ranges = Ranges(long)
    assert decrypt_range(ranges, len(long), 5, 0, KEY, PATH, WHERE) == b""
    assert ranges.asked == [(0, HEADER)]


def test_a_range_of_an_empty_object_is_empty() -> None:
    data = encrypt(b"", KEY, PATH)
    assert decrypt_range(Ranges(data), len(data), 0, 10, KEY, PATH, WHERE) == b""


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1)])
def test_ranges_before_the_object_are_mistakes(long: bytes, start: int, length: int) -> None:
    with pytest.raises(ValueError, match="range"):
        decrypt_range(Ranges(long), len(long), start, length, KEY, PATH, WHERE)


def test_sizes_that_no_encrypted_object_has_are_no_error() -> None:
    assert [plaintext_size(size) for size in (0, HEADER, HEADER + TAG - 1, HEADER + TAG)] == [0, 0, 0, 0]


TOTAL = 64 << 20
MOST = 6 * CHUNK_BYTES
"""Two chunks of plaintext, two of ciphertext, and as much again for the copies in between."""


def test_memory_is_bounded_in_both_directions(tmp_path: Path) -> None:
    path, piece = tmp_path / "object", bytes(3 << 18)
    count, rest = divmod(TOTAL, len(piece))
    gc.collect()
    tracemalloc.start()
    try:
        with path.open("wb") as file:
            writer = EncryptingWriter(file, KEY, PATH)
            for _ in range(count):
                writer.write(piece)
            writer.write(piece[:rest])
            writer.finish()
        encrypting = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with path.open("rb") as file:
            size = sum(map(len, decrypt_chunks(_pieces(file), KEY, PATH, WHERE)))
        decrypting = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == TOTAL
    assert encrypting < MOST
    assert decrypting < MOST


def test_one_long_write_is_not_copied() -> None:
    class Nowhere:
        def write(self, data: bytes | memoryview, /) -> int:
            return len(data)

    plain = bytes(TOTAL)
    gc.collect()
    tracemalloc.start()
    try:
        writer = EncryptingWriter(Nowhere(), KEY, PATH)
        writer.write(plain)
        writer.finish()
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(1 << 20):
        yield data
