"""bytea and uuid between PostgreSQL's hexadecimal text and bytes, a whole array at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DIGITS: Final = b"0123456789abcdef"
_PREFIX: Final = 256
_UUID_CHARACTERS: Final = 36
_UUID_DASHES: Final = [8, 13, 18, 23]
_UUID_DIGITS: Final = [index for index in range(_UUID_CHARACTERS) if index not in _UUID_DASHES]
_SEGMENT: Final = 1 << 20  # pairs decoded at a time: bounds the temporary index arrays


def _decode_table() -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Byte value by the two digits read as one uint16 in memory order; _PREFIX for `\\x`, -1 for anything else."""
    table = np.full(1 << 16, -1, np.int16)
    pairs = [_DIGITS[value >> 4 : (value >> 4) + 1] + _DIGITS[value & 15 : (value & 15) + 1] for value in range(256)]
    table[np.frombuffer(b"".join(pairs), np.uint16)] = np.arange(256)
    table[np.frombuffer(rb"\x", np.uint16)] = _PREFIX
    return table


_DECODE: Final = _decode_table()
_ENCODE: Final = np.frombuffer(b"".join(f"{value:02x}".encode() for value in range(256)), np.uint16)


def decode_hex(text: pa.StringArray) -> pa.BinaryArray:
    """The bytes of bytea values in hexadecimal text form.

    Raises ValueError when a value is not in that form.
    """
    offsets, data = bytes_of(text)
    lengths = np.diff(offsets)
    if data.size % 2 or np.any(lengths % 2) or pc.all(pc.starts_with(text, "\\x"), min_count=0).as_py() is False:
        raise ValueError("not in hexadecimal form")
    pairs = data.view(np.uint16)
    present = lengths > 0
    # Each value's prefix goes.
    out = np.empty(pairs.size - np.count_nonzero(present), np.uint8)
    filled = 0
    for start in range(0, pairs.size, _SEGMENT):
        segment = _DECODE[pairs[start : start + _SEGMENT]]
        decoded = segment[segment != _PREFIX]
        if segment.min() < 0 or filled + decoded.size > out.size:
            raise ValueError("not in hexadecimal form")
        out[filled : filled + decoded.size] = decoded
        filled += decoded.size
    if filled != out.size:
        raise ValueError("not in hexadecimal form")
    ends = np.cumsum(lengths // 2 - present, dtype=np.int32)
    return array_of_bytes(pa.binary(), text, np.concatenate([np.zeros(1, np.int32), ends]), out)


def encode_hex(values: pa.BinaryArray) -> pa.StringArray:
    """PostgreSQL's hexadecimal text of bytes."""
    offsets, data = bytes_of(values)
    digits = array_of_bytes(pa.string(), values, (offsets - offsets[0]) * 2, _ENCODE[data].view(np.uint8))
    return pc.binary_join_element_wise("\\x", digits, "")


def decode_uuids(text: pa.StringArray) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The sixteen bytes of each uuid in PostgreSQL's text form, none of them NULL.

    Raises ValueError when a value is not in that form.
    """
    offsets, data = bytes_of(text)
    if np.any(np.diff(offsets) != _UUID_CHARACTERS):
        raise ValueError("not in the form of a uuid")
    characters = data.reshape(-1, _UUID_CHARACTERS)
    pairs = _DECODE[np.ascontiguousarray(characters[:, _UUID_DIGITS]).view(np.uint16)]
    if np.any(characters[:, _UUID_DASHES] != ord("-")) or pairs.min(initial=0) < 0 or pairs.max(initial=0) > 0xFF:
        raise ValueError("not in the form of a uuid")
    return pairs.astype(np.uint8)


def bytes_of(
    array: pa.Array,
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """Offsets of a string or binary array (length + 1) and the bytes between the first and the last of them."""
    _, offset_buffer, data_buffer = array.buffers()
    if not len(array):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    return offsets, data[offsets[0] : offsets[-1]]


def array_of_bytes(data_type: pa.DataType, like: pa.Array, offsets: np.ndarray, data: np.ndarray) -> pa.Array:
    """A string or binary array with these offsets (length + 1) into `data`, NULL where `like` is."""
    validity = pc.is_valid(like).buffers()[1] if like.null_count else None
    buffers = [validity, pa.py_buffer(np.ascontiguousarray(offsets, np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(data_type, len(like), buffers, null_count=like.null_count)
