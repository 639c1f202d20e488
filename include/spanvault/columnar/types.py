"""Which Arrow type a PostgreSQL column has in data files.

A type has a typed form only where every ordinary value converts to it and back without any difference; all other types
are PostgreSQL's own text. Types are recognised by OID: those of built-in types never change
(https://github.com/postgres/postgres/blob/REL_18_STABLE/src/include/catalog/pg_type.dat).
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from spanvault.model.schema import Column, Table

INTEGER_TYPES: Final[dict[int, pa.DataType]] = {20: pa.int64(), 21: pa.int16(), 23: pa.int32()}
NUMERIC_OID: Final = 1700
_TYPED: Final[dict[int, pa.DataType]] = {
    **INTEGER_TYPES,
    16: pa.bool_(),
    17: pa.binary(),
    700: pa.float32(),
    701: pa.float64(),
    1082: pa.date32(),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
}
# Parquet cannot say how many rows there are without any column: a table that stores none gets this one, all null.
ROW_MARKER: Final = pa.field("_row", pa.bool_())


def arrow_type(column: Column, *, is_key: bool) -> pa.DataType:
    """The column's type in data files, unless the file names it among its `text_columns`.

    Key columns are typed only as integers: a key's text must be the same in every file, and only integers and text
    have one text form.
    """
    if is_key:
        return INTEGER_TYPES.get(column.type_oid, pa.string())
    if column.type_oid == NUMERIC_OID:
        return _numeric_type(column.typmod)
    return _TYPED.get(column.type_oid, pa.string())


def _numeric_type(typmod: int) -> pa.DataType:
    """decimal128 for numeric(p,s) with 0 <= s <= p <= 38, else text: without a typmod every value has its own scale.

    The typmod packs precision and an 11-bit signed scale (make_numeric_typmod in PostgreSQL's numeric.c).
    """
    if typmod < 4:
        return pa.string()
    precision = ((typmod - 4) >> 16) & 0xFFFF
    scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
    if precision > 38 or not 0 <= scale <= precision:
        return pa.string()
    return pa.decimal128(precision, scale)


def column_field(column: Column, *, is_key: bool, as_text: bool = False) -> pa.Field:
    """The column in a file's schema; its metadata tell attnum and PostgreSQL's name of the type."""
    data_type = pa.string() if as_text else arrow_type(column, is_key=is_key)
    return pa.field(column.stored_as, data_type, metadata={"attnum": str(column.attnum), "postgresql_type": column.type_name})


def file_schema(table: Table, text_columns: frozenset[str] = frozenset()) -> pa.Schema:
    """The schema of a data file of `table`: its data columns in attnum order, by stored name, those in `text_columns`
    (stored names) as text; ROW_MARKER alone for a table without data columns."""
    fields = [
        column_field(column, is_key=column.attnum in table.key, as_text=column.stored_as in text_columns)
        for column in table.data_columns
    ]
    return pa.schema(fields or [ROW_MARKER])
