"""Whatever is done to an encrypted object, reading it says so and gives nothing that was not written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.crypto.stream import CHUNK_BYTES, decrypt, decrypt_chunks, decrypt_range, encrypt
from spanvault.errors import Damaged
from tests.kit import encryption_reference as reference

KEY = bytes(range(32))
PATH, OTHER_PATH = "000001/data/a.parquet", "000001/data/b.parquet"
WHERE = "The object 2026/11/22-143000.12/000001/data/a.parquet in s3://backups"
HEADER, SEALED = 52, CHUNK_BYTES + 16
PLAIN = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"the rest"
DATA = encrypt(PLAIN, KEY, PATH)
CHUNKS = [DATA[HEADER:][start : start + SEALED] for start in range(0, len(DATA) - HEADER, SEALED)]
HEAD = DATA[:HEADER]
FULL = encrypt(PLAIN[: 2 * CHUNK_BYTES], KEY, PATH)
"""Two full chunks: its last one could be any but the last."""
OTHER = encrypt(PLAIN, KEY, PATH)
"""The same bytes at the same path, encrypted once more."""

HEADER_PARTS = {
    "magic": (range(8), "is not encrypted"),
    "version": (range(8, 9), "is encrypted in form"),
    "chunk size": (range(9, 13), "says that its chunks have"),
    "salt": (range(13, 45), "chunk 0 of it was changed"),
    "nonce prefix": (range(45, 52), "chunk 0 of it was changed"),
}


def refused(data: bytes, words: str = "", *, key: bytes = KEY, path: str = PATH) -> None:
    """Reading all of it says so, in one sentence that names the object; what came before is as it was written."""
    with pytest.raises(Damaged) as whole:
        decrypt(data, key, path, WHERE)
    assert str(whole.value).startswith(WHERE)
    assert words in str(whole.value)
    assert "\n" not in str(whole.value)
    assert KEY.hex() not in str(whole.value)
    came = bytearray()
    with pytest.raises(Damaged):
        for piece in decrypt_chunks((data[i : i + 300_000] for i in range(0, len(data), 300_000)), key, path, WHERE):
            came += piece
    assert PLAIN.startswith(came)
    assert len(came) % CHUNK_BYTES == 0


def part(data: bytes, start: int, length: int, size: int | None = None) -> bytes:
    return decrypt_range(lambda at, many: data[at : at + many], size or len(data), start, length, KEY, PATH, WHERE)


def flipped(data: bytes, place: int, mask: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def test_the_untouched_object_is_right() -> None:
    assert decrypt(DATA, KEY, PATH, WHERE) == PLAIN
    assert decrypt(FULL, KEY, PATH, WHERE) == PLAIN[: 2 * CHUNK_BYTES]
    assert len(CHUNKS) == 3
    assert HEAD + b"".join(CHUNKS) == DATA


@pytest.mark.parametrize("name", list(HEADER_PARTS))
def test_every_byte_of_the_header_counts(name: str) -> None:
    places, words = HEADER_PARTS[name]
    for place in places:
        for mask in (1, 0x80):
            refused(flipped(DATA, place, mask), words)
            with pytest.raises(Damaged, match=words):
                part(flipped(DATA, place, mask), 0, 1)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("offset", [0, 1, -17, -16, -1], ids=["first", "second", "last", "tag's first", "tag's last"])
def test_every_chunk_and_tag_counts(number: int, offset: int) -> None:
    begin = HEADER + number * SEALED
    place = begin + offset if offset >= 0 else begin + len(CHUNKS[number]) + offset
    changed = flipped(DATA, place)
    refused(changed, f"chunk {number} of it was changed")
    with pytest.raises(Damaged, match=f"chunk {number} "):
        part(changed, number * CHUNK_BYTES, 1)
    for untouched in {0, 1, 2} - {number}:  # what is read of the rest is still right
        start = untouched * CHUNK_BYTES
        assert part(changed, start, 5) == PLAIN[start : start + 5]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="to nothing"),
        pytest.param(5, id="in the magic"),
        pytest.param(9, id="after the magic"),
        pytest.param(HEADER - 1, id="in the header"),
        pytest.param(HEADER, id="header only"),
        pytest.param(HEADER + 15, id="less than a tag"),
        pytest.param(HEADER + 16, id="as long as an empty one"),
        pytest.param(HEADER + 100, id="in the first chunk"),
        pytest.param(HEADER + SEALED - 1, id="before the first border"),
        pytest.param(HEADER + SEALED, id="at the first border"),
        pytest.param(HEADER + SEALED + 16, id="an empty second chunk"),
        pytest.param(HEADER + 2 * SEALED, id="at the second border"),
        pytest.param(len(DATA) - 17, id="in the last chunk"),
        pytest.param(len(DATA) - 1, id="by one byte"),
    ],
)
def test_what_is_cut_off_is_missed(size: int) -> None:
    refused(DATA[:size])
    for start in (0, 2 * CHUNK_BYTES, len(PLAIN) - 1, 5 * CHUNK_BYTES):  # to the end, which is what is gone
        with pytest.raises(Damaged):
            part(DATA[:size], start, 6 * CHUNK_BYTES)


def test_an_object_of_full_chunks_is_missed_too() -> None:
    refused(FULL[: HEADER + SEALED], "chunk 0 of it was changed")


def test_a_storage_that_gives_less_than_it_says_is_caught() -> None:
    with pytest.raises(Damaged, match="is cut off"):
        part(DATA[: HEADER + 100], 0, 5, size=len(DATA))
    with pytest.raises(Damaged, match="is cut off"):
        part(DATA[:20], 0, 5, size=len(DATA))


@pytest.mark.parametrize(
    "added",
    [b"\x00", bytes(16), bytes(100), bytes(SEALED), CHUNKS[2], CHUNKS[0], HEAD, DATA],
    ids=["a byte", "a tag's length", "zeros", "a chunk of zeros", "the last chunk", "the first chunk", "a header", "all again"],
)
def test_nothing_can_be_added(added: bytes) -> None:
    refused(DATA + added)
    refused(FULL + added)
    refused(added + DATA)


@pytest.mark.parametrize(
    ("order", "first_wrong"),
    [
        pytest.param([1, 0, 2], 0, id="swapped"),
        pytest.param([0, 2, 1], 1, id="last swapped"),
        pytest.param([0, 0, 1, 2], 1, id="doubled"),
        pytest.param([0, 1, 2, 2], 2, id="last doubled"),
        pytest.param([0, 2], 1, id="middle gone"),
        pytest.param([1, 2], 0, id="first gone"),
        pytest.param([2], 0, id="last alone"),
        pytest.param([0, 1, 1, 2], 2, id="repeated"),
    ],
)
def test_chunks_are_bound_to_their_places(order: list[int], first_wrong: int) -> None:
    data = HEAD + b"".join(CHUNKS[number] for number in order)
    refused(data, f"chunk {first_wrong} of it was changed")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_chunks_of_another_object_do_not_fit(number: int) -> None:
    start = HEADER + number * SEALED
    data = DATA[:start] + OTHER[start : start + SEALED] + DATA[start + SEALED :]
    refused(data, f"chunk {number} of it was changed")


def test_the_header_of_another_object_does_not_fit() -> None:
    refused(OTHER[:HEADER] + DATA[HEADER:], "chunk 0 of it was changed")


@pytest.mark.parametrize(
    "path",
    [OTHER_PATH, "000002/data/a.parquet", "000001/data/a.parquet ", "000001/data/a.parque", "", "000001/data/A.parquet"],
)
def test_objects_are_bound_to_their_paths(path: str) -> None:
    refused(DATA, "belongs to another place or backup", path=path)


def test_the_path_cannot_reach_into_the_data() -> None:
    """The same bytes under the derivation and the binding, split elsewhere, are another path."""
    first = encrypt(b"", KEY, "a/b")
    refused(first, path="a/")
    refused(encrypt(b"b", KEY, "a/"), path="a/b")


def test_another_backups_data_key_does_not_open_it() -> None:
    refused(DATA, "belongs to another place or backup", key=bytes(32))
    refused(DATA, key=flipped(KEY, 31))
    with pytest.raises(Damaged):
        decrypt_range(lambda at, many: DATA[at : at + many], len(DATA), 0, 1, bytes(32), PATH, WHERE)


@pytest.mark.parametrize(
    "plain",
    [b"{}", b'{"format_version": 1}' * 100, b"PAR1" + bytes(100), b"SPVLTEN", b"SPVLTEND\x01" + bytes(100), bytes(SEALED)],
    ids=["JSON", "longer JSON", "Parquet", "nearly", "other magic", "zeros"],
)
def test_plain_text_is_never_taken_for_an_encrypted_object(plain: bytes) -> None:
    refused(plain, "is cut off" if plain == b"SPVLTEN" else "is not encrypted")
    with pytest.raises(Damaged):
        part(plain, 0, 1)


def test_another_form_is_refused_by_its_number() -> None:
    refused(b"SPVLTENC\x02" + DATA[9:], "form 2")


@pytest.mark.parametrize("size", [0, 1, 16, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 2**32 - 1])
def test_other_chunk_sizes_are_refused(size: int) -> None:
    refused(DATA[:9] + size.to_bytes(4, "big") + DATA[13:], f"{size} bytes")


def test_an_empty_last_chunk_after_others_is_refused() -> None:
    """No writer makes one: each content has one form, of which the size follows."""
    salt, prefix, name = HEAD[13:45], HEAD[45:], PATH.encode()
    key = reference.hkdf(KEY, salt, b"spanvault file key v1\x00" + name, 32)
    first = reference.gcm_seal(key, prefix + bytes(5), PLAIN[:CHUNK_BYTES], HEAD + name)
    last = reference.gcm_seal(key, prefix + b"\x00\x00\x00\x01\x01", b"", HEAD + name)
    assert first == CHUNKS[0]
    refused(HEAD + first + last, "is cut off")


SMALL = encrypt(b"attack at dawn", KEY, PATH)


@pytest.mark.parametrize("place", range(len(SMALL)))
def test_every_bit_of_a_small_object_counts(place: int) -> None:
    for bit in range(8):
        refused_small(flipped(SMALL, place, 1 << bit))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_edit_is_unseen(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DATA)))
    removed = data.draw(st.integers(0, min(200, len(DATA) - start)))
    added = data.draw(st.binary(max_size=20))
    edited = DATA[:start] + added + DATA[start + removed :]
    if edited != DATA:
        refused(edited)


READERS: list[Callable[[bytes], bytes]] = [
    lambda data: decrypt(data, KEY, PATH, WHERE),
    lambda data: decrypt_range(lambda at, many: data[at : at + many], len(data), 0, 14, KEY, PATH, WHERE),
]


def refused_small(data: bytes) -> None:
    for read in READERS:
        with pytest.raises(Damaged):
            read(data)
