"""Many tuples of the log as columns, all at once: a loop over columns instead of one over values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_TEXT = ord("t")
_LONG = 512  # bytes of a value, from which on to cut out each is no slower than to number their bytes
_MAX_BYTES = 1 << 30  # of messages at once: Arrow's offsets have 31 bits


class RawTuple(NamedTuple):
    """A complete tuple where it lies: in `message`, from `at` on."""

    message: bytes
    at: int


def tuple_columns(tuples: Sequence[RawTuple], width: int) -> list[pa.Array]:
    """The values of tuples that have `width` columns each and leave none out, as columns of text.

    Raises ArrowInvalid for a value that is not UTF-8.
    """
    if sum(len(one.message) - one.at for one in tuples) > _MAX_BYTES and len(tuples) > 1:
        half = len(tuples) // 2
        first, second = tuple_columns(tuples[:half], width), tuple_columns(tuples[half:], width)
        return [pa.concat_arrays([one, other]) for one, other in zip(first, second, strict=True)]
    parts = [one.message[one.at + 2 :] for one in tuples]  # behind the count of columns
    data = np.frombuffer(b"".join(parts), dtype=np.uint8)
    sizes = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    place = np.cumsum(sizes) - sizes
    columns = []
    for _ in range(width):
        present = data[place] == _TEXT
        start = place + 5
        length = np.where(present, _big_endian(data, np.where(present, place + 1, 0)), 0)
        columns.append(_column(data, start, length, present))
        place = np.where(present, start + length, place + 1)
    return columns


def _big_endian(data: NDArray[np.uint8], place: NDArray[np.int64]) -> NDArray[np.int64]:
    found = np.zeros(len(place), dtype=np.int64)
    for byte in range(4):
        found = (found << 8) | data[place + byte]
    return found


def _column(data: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], present: NDArray[np.bool_]) -> pa.Array:
    """The slices of `data` as a string array; null where not present."""
    offsets = np.zeros(len(length) + 1, dtype=np.int32)
    np.cumsum(length, out=offsets[1:])
    if offsets[-1] > _LONG * len(length):
        # Numbers of single bytes would take 24 times the values' memory.
        view = data.data
        content = b"".join(view[at : at + size] for at, size in zip(start.tolist(), length.tolist(), strict=True))
    else:
        within = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1].astype(np.int64), length)
        content = data[np.repeat(start, length) + within].tobytes()
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little").tobytes())
    buffers = [validity, pa.py_buffer(offsets.tobytes()), pa.py_buffer(content)]
    # Binary first: the bytes are UTF-8 by the session's client_encoding, so the cast only checks them.
    return pa.Array.from_buffers(pa.binary(), len(length), buffers).cast(pa.string())
