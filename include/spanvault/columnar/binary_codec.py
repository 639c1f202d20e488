"""Arrow -> input for `COPY ... FROM STDIN (FORMAT binary)`, whole columns at a time.

The server takes binary rows for two thirds of the CPU time that CSV costs it. A row is the number of its columns (int16),
then of each the length of its value (int32, -1 for NULL) and the value as the type's receive function wants it, all big
endian (https://www.postgresql.org/docs/18/sql-copy.html, "Binary Format"). Types whose binary form is made here are those
of columnar/types.py, text and what is received as text, uuid, json and numeric; a batch with anything else is not encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spanvault.columnar.csv_codec import text_to_typed
from spanvault.columnar.hexadecimal import decode_uuids
from spanvault.columnar.types import NUMERIC_OID, arrow_type
from spanvault.model.schema import Column

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER: Final = b"\xff\xff"

# An Arrow array of bytes ends at 2 GiB. A value may have so many bytes more than in Arrow: its length, or numeric's groups.
_MAX_BYTES: Final = 1 << 30
_EXPANSION: Final = 32
_TEXT: Final = frozenset({25, 114, 1042, 1043})  # text, json, char(n), varchar
_UUID: Final = 2950
_JSONB: Final = 3802
_JSONB_VERSION: Final = np.uint8(1)
# PostgreSQL counts from 2000-01-01 (datatype/timestamp.h), Arrow from 1970-01-01.
_EPOCH_DAYS: Final = 10_957
_EPOCH_MICROSECONDS: Final = _EPOCH_DAYS * 86_400_000_000
# numeric's digits have base 10,000 (numeric.c); 64 bits hold 18 decimal digits, and 10 ** 16 times 10,000 no more.
_MAX_DIGITS: Final = 18
_MAX_SCALE: Final = 16
_GROUP: Final = 10_000
_NEGATIVE: Final = 0x4000
_POWERS: Final = 10 ** np.arange(_MAX_DIGITS + 1, dtype=np.int64)

Values = np.ndarray[Any, np.dtype[Any]]


class _NotBinary(Exception):
    """The column has values without a binary form here."""


def encode_binary(batch: pa.RecordBatch | pa.Table, columns: Sequence[Column]) -> memoryview | None:
    """The rows as binary COPY's, without header and trailer; None if a column has values that only CSV can bring.

    Takes each column in its typed form or as text; `columns` are found by stored name.
    """
    if not columns or batch.nbytes + _EXPANSION * len(columns) * batch.num_rows > _MAX_BYTES:
        return None
    rows = _Rows(batch.num_rows)
    rows.fixed(np.full(batch.num_rows, len(columns), ">i2"))
    try:
        for column in columns:
            _add(rows, _one_array(batch.column(column.stored_as)), column)
    except _NotBinary:
        return None
    return rows.joined()


def _one_array(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


class _Rows:
    """Parts of rows, in order. What has the same length in every row is put together before Arrow joins it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._fixed: list[Values] = []
        self._parts: list[pa.Array] = []

    def fixed(self, values: Values) -> None:
        """Append to each row its value, as its bytes are in memory."""
        self._fixed.append(values)

    def variable(self, values: pa.Array) -> None:
        """Append to each row its bytes."""
        self._close()
        self._parts.append(values)

    def joined(self) -> memoryview:
        """The bytes of all rows, one after the other."""
        self._close()
        joined = self._parts[0] if len(self._parts) == 1 else pc.binary_join_element_wise(*self._parts, b"")
        _, offsets, data = joined.buffers()
        bounds = np.frombuffer(offsets, np.int32)[joined.offset : joined.offset + len(joined) + 1]
        return memoryview(data)[bounds[0] : bounds[-1]] if len(joined) else memoryview(b"")

    def _close(self) -> None:
        if self._fixed:
            fields = [(f"f{index}", values.dtype, values.shape[1:]) for index, values in enumerate(self._fixed)]
            rows = np.empty(self._count, fields)
            for (name, *_), values in zip(fields, self._fixed, strict=True):
                rows[name] = values
            self._parts.append(_as_binary(rows))
            self._fixed = []


def _as_binary(values: Values) -> pa.Array:
    """An array of bytes with what each value has in memory."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.dtype.itemsize
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(values)])


def _add(rows: _Rows, array: pa.Array, column: Column) -> None:
    if column.type_oid in _TEXT or column.type_kind == "e":
        _add_bytes(rows, _bytes_of(array))
    elif column.type_oid == _JSONB:
        _add_jsonb(rows, _bytes_of(array))
    elif column.type_oid == _UUID:
        _add_fixed(rows, array, _uuids)
    elif column.type_oid == NUMERIC_OID:
        _add_fixed(rows, array, lambda present: _numerics(present, column))
    else:
        array = _typed(array, column)
        if pa.types.is_binary(array.type):
            _add_bytes(rows, array)
        else:
            _add_fixed(rows, array, _plain)


def _bytes_of(array: pa.Array) -> pa.Array:
    if not pa.types.is_string(array.type):
        raise _NotBinary
    return pc.cast(array, pa.binary())


def _typed(array: pa.Array, column: Column) -> pa.Array:
    wanted = arrow_type(column, is_key=False)
    if pa.types.is_string(wanted):
        raise _NotBinary
    if array.type == wanted:
        return array
    try:
        return text_to_typed(array, wanted)
    except pa.ArrowInvalid:
        raise _NotBinary from None


def _lengths(array: pa.Array) -> Values:
    lengths: Values = pc.fill_null(pc.binary_length(array), -1).to_numpy()
    return lengths


def _add_bytes(rows: _Rows, array: pa.Array) -> None:
    rows.fixed(_lengths(array).astype(">i4"))
    rows.variable(pc.fill_null(array, b"") if array.null_count else array)


def _add_jsonb(rows: _Rows, array: pa.Array) -> None:
    if array.null_count:
        version = pa.scalar(_JSONB_VERSION.tobytes(), pa.binary())
        _add_bytes(rows, pc.binary_join_element_wise(version, array, b""))
        return
    rows.fixed((_lengths(array) + 1).astype(">i4"))
    rows.fixed(np.full(len(array), _JSONB_VERSION))
    rows.variable(array)


def _add_fixed(rows: _Rows, array: pa.Array, convert: Callable[[pa.Array], Values]) -> None:
    """Values of one length; `convert` gets those that are not NULL, and gives one row of bytes or one number for each."""
    values = convert(array.drop_null() if array.null_count else array)
    width = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=int))
    if not array.null_count:
        rows.fixed(np.full(len(array), width, ">i4"))
        rows.fixed(values)
        return
    present = pc.is_valid(array).to_numpy(zero_copy_only=False)
    rows.fixed(np.where(present, width, -1).astype(">i4"))
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(present * np.int32(width), dtype=np.int32)])
    data = np.ascontiguousarray(values)
    rows.variable(pa.Array.from_buffers(pa.binary(), len(array), [None, pa.py_buffer(offsets), pa.py_buffer(data)]))


def _plain(array: pa.Array) -> Values:
    values: Values
    if pa.types.is_timestamp(array.type):
        values = pc.cast(array, pa.int64()).to_numpy() - _EPOCH_MICROSECONDS
    elif pa.types.is_date(array.type):
        values = pc.cast(array, pa.int32()).to_numpy() - np.int32(_EPOCH_DAYS)
    elif pa.types.is_boolean(array.type):
        values = pc.cast(array, pa.uint8()).to_numpy()
    else:
        values = array.to_numpy()
    return values.astype(values.dtype.newbyteorder(">"))


def _uuids(array: pa.Array) -> Values:
    try:
        return decode_uuids(array)
    except ValueError:
        raise _NotBinary from None


def _numerics(array: pa.Array, column: Column) -> Values:
    """numeric_recv's form: groups in front of the point and behind it, as many in every row; it drops those that are zero."""
    if not pa.types.is_string(array.type):
        if array.type.precision > _MAX_DIGITS or array.type.scale > _MAX_SCALE:
            raise _NotBinary
        unscaled = np.frombuffer(array.buffers()[1], "<i8")[2 * array.offset : 2 * (array.offset + len(array)) : 2]
        scales: Values | int = array.type.scale
        whole, fraction = array.type.precision - array.type.scale, array.type.scale
    else:
        unscaled, scales = _unscaled(array)
        fraction = int(scales.max(initial=0))
        whole = len(str(int((np.abs(unscaled) // _POWERS[scales]).max(initial=0))))
    return _grouped(unscaled, scales, -(-whole // 4), -(-fraction // 4))


def _unscaled(text: pa.Array) -> tuple[Values, Values]:
    """The digits of numbers in text, as one integer each, and how many of them stand behind the point."""
    points = pc.find_substring(text, ".").to_numpy()
    lengths = pc.binary_length(text).to_numpy()
    scales = np.where(points < 0, 0, lengths - points - 1)
    digits = lengths - (points >= 0) - pc.cast(pc.starts_with(text, "-"), pa.uint8()).to_numpy()
    if digits.max(initial=0) > _MAX_DIGITS or scales.max(initial=0) > _MAX_SCALE:
        raise _NotBinary
    try:
        return pc.cast(pc.replace_substring(text, ".", ""), pa.int64()).to_numpy(), scales
    except pa.ArrowInvalid:  # NaN, Infinity
        raise _NotBinary from None


def _grouped(unscaled: Values, scales: Values | int, whole_groups: int, fraction_groups: int) -> Values:
    magnitude = np.abs(unscaled)
    whole = magnitude // _POWERS[scales]
    fraction = (magnitude - whole * _POWERS[scales]) * _POWERS[4 * fraction_groups - scales]
    rows = np.empty((len(unscaled), 4 + whole_groups + fraction_groups), ">i2")
    rows[:, 0] = whole_groups + fraction_groups
    rows[:, 1] = whole_groups - 1
    rows[:, 2] = np.where(unscaled < 0, _NEGATIVE, 0)
    rows[:, 3] = scales
    for index, group in enumerate(_groups(fraction, fraction_groups)):
        rows[:, 3 + whole_groups + fraction_groups - index] = group
    for index, group in enumerate(_groups(whole, whole_groups)):
        rows[:, 3 + whole_groups - index] = group
    return rows


def _groups(values: Values, count: int) -> Iterator[Values]:
    """The digits with base 10,000 of integers, the last one first."""
    for _ in range(count):
        values, group = values // _GROUP, values % _GROUP
        yield group
