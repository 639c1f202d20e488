"""Rows of a file in the shape in which they are given out, and values as text.

Columns are matched by attnum: it survives renames, and a column that was dropped and added again has another.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from spanvault.columnar.csv_codec import text_to_typed
from spanvault.columnar.hexadecimal import encode_hex
from spanvault.columnar.types import INTEGER_TYPES, arrow_type
from spanvault.errors import Damaged
from spanvault.model.schema import Column, Table


class Projection:
    """Gives rows of files that were written in the shape `written` as rows of `given`.

    `columns` are the stored names to read from such a file. A column that the file's shape lacks has its missing value in
    every row: what PostgreSQL shows for rows that are older than the column. Columns in `as_text` (stored names in
    `given`) come out as text.
    """

    def __init__(self, given: Table, written: Table, as_text: frozenset[str] = frozenset()) -> None:
        in_file = {column.attnum: column for column in written.data_columns}
        self.names = [column.stored_as for column in given.data_columns]
        self._sources = [in_file[column.attnum].stored_as if column.attnum in in_file else None for column in given.data_columns]
        self._missing = {
            column.stored_as: missing_scalar(column, as_text=column.stored_as in as_text)
            for column, source in zip(given.data_columns, self._sources, strict=True)
            if source is None
        }
        self._as_text = as_text
        self.columns = [source for source in self._sources if source is not None]
        self.is_identity = self._sources == self.names and not as_text
        self.place_of = {source: place for place, source in enumerate(self._sources) if source is not None}
        _check_generated(given, written)

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch of the file's `columns` as one of `names`."""
        if self.is_identity:
            return batch
        arrays = [self._array(batch, place) for place in range(len(self.names))]
        # Without columns a batch made of arrays would have no rows.
        return pa.RecordBatch.from_arrays(arrays, names=self.names) if arrays else batch.select([])

    def _array(self, batch: pa.RecordBatch, place: int) -> pa.Array:
        name, source = self.names[place], self._sources[place]
        if source is None:
            return pa.repeat(self._missing[name], batch.num_rows)
        return values_as_text(batch.column(source)) if name in self._as_text else batch.column(source)


def missing_scalar(column: Column, *, as_text: bool = False) -> pa.Scalar:
    """The column's value in rows that are older than it: in the column's type if it converts exactly, else as text."""
    data_type = pa.string() if as_text else arrow_type(column, is_key=False)
    text = _only_element(column.missing_value) if column.missing_value is not None else None
    if text is None:
        return pa.scalar(None, data_type)
    array = pa.array([text], pa.string())
    try:
        return array[0] if data_type == pa.string() else text_to_typed(array, data_type)[0]
    except pa.ArrowInvalid:
        return array[0]


def _only_element(array_text: str) -> str | None:
    """The element of PostgreSQL's text of an array with one
    (https://www.postgresql.org/docs/18/arrays.html#ARRAYS-IO)."""
    inside = array_text[1:-1]
    if not inside.startswith('"'):
        return None if inside == "NULL" else inside
    quoted = iter(inside[1:-1])
    return "".join(next(quoted, "") if character == "\\" else character for character in quoted)


def _check_generated(given: Table, written: Table) -> None:
    generated = {column.attnum for column in written.columns if column.generated}
    for column in given.data_columns:
        if column.attnum in generated:
            raise Damaged(
                f"The column {column.name} of {given.qualified} was a generated one in an earlier layer, so its values are"
                " not in this backup; restore to that layer, or to one before it, instead."
            )


def values_as_text(values: pa.Array) -> pa.Array:
    """PostgreSQL's text of values in any of the types of columnar/types.py.

    The text of a number or a time may be spelled otherwise than PostgreSQL would, but reads as the same value; equal
    values always have equal text.
    """
    data_type = values.type
    if pa.types.is_string(data_type):
        return values
    if pa.types.is_binary(data_type):
        return encode_hex(values)
    if pa.types.is_boolean(data_type):
        return pc.if_else(values, "t", "f")
    if pa.types.is_timestamp(data_type):
        # Through the naive form: printing a zoned one needs a time zone database, which small images lack.
        text = pc.cast(pc.cast(values, pa.timestamp("us")), pa.string())
        text = pc.replace_substring_regex(pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$", r"\1"), r"\.0+$", "")
        return pc.binary_join_element_wise(text, "+00", "") if data_type.tz else text
    return pc.cast(values, pa.string())


def comparable_text(values: pa.Array, column: Column) -> pa.Array:
    """Text that is equal exactly where the values are, also between a file that has the column typed and one that has it
    as text."""
    data_type = arrow_type(column, is_key=False)
    if not pa.types.is_string(values.type):
        return values_as_text(values)
    if pa.types.is_string(data_type):
        return values
    encoded = values.dictionary_encode()
    return _where_exact(encoded.dictionary, data_type).take(encoded.indices)


def _where_exact(text: pa.Array, data_type: pa.DataType) -> pa.Array:
    """The text that the typed form would have, of every value that has a typed form. The others are found by halving."""
    try:
        return values_as_text(text_to_typed(text, data_type))
    except pa.ArrowInvalid:
        if len(text) == 1:
            return text
    middle = len(text) // 2
    return pa.concat_arrays([_where_exact(text[:middle], data_type), _where_exact(text[middle:], data_type)])


def key_type(column: Column) -> pa.DataType:
    """How keys of this column are compared: integers as numbers, everything else by its exact text."""
    return pa.int64() if column.type_oid in INTEGER_TYPES else pa.string()


def key_values(parts: Sequence[pa.Array | pa.ChunkedArray], columns: Sequence[Column]) -> list[pa.Array | pa.ChunkedArray]:
    """Key columns of a file, typed or text, in their `key_type`."""
    return [pc.cast(part, key_type(column)) for part, column in zip(parts, columns, strict=True)]


def key_lists(lists: pa.Array, columns: Sequence[Column]) -> list[pa.Array]:
    """Keys that stand as lists of text (none null), a part for each key column, in their `key_type`."""
    return key_values([pc.list_element(lists, place) for place in range(len(columns))], columns)
