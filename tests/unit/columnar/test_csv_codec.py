"""The CSV that rows are loaded from, without a server: both forms of each type."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar.csv_codec import encode_csv
from spanvault.columnar.types import arrow_type, file_schema
from tests.kit.shapes import column, table

awkward = (
    st.none()
    | st.text(st.sampled_from(list('"",\n\r\\.xé 🐘\t')), max_size=12)
    | st.text(max_size=5).filter(lambda t: "\0" not in t)
)


def read_csv(data: bytes, names: str) -> list[dict[str, str | None]]:
    """Rows of text, NULL where nothing stands, as PostgreSQL's CSV says it."""
    if not data:
        return []
    table = pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=list(names), block_size=len(data) + 1),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    rows: list[dict[str, str | None]] = table.to_pylist()
    return rows


@settings(deadline=None)
@given(st.lists(st.tuples(awkward, st.none() | st.binary(max_size=9), st.none() | st.integers(-(2**63), 2**63 - 1))))
def test_encoded_rows_read_back(rows: list[tuple[str | None, bytes | None, int | None]]) -> None:
    shape = table(column(1, "a", "text"), column(2, "b", "bytea"), column(3, "c", "bigint"))
    columns = [pa.array([row[n] for row in rows], type_) for n, type_ in enumerate(file_schema(shape).types)]
    batch = pa.RecordBatch.from_arrays(columns, schema=file_schema(shape))
    data = encode_csv(batch, shape.data_columns)
    nulls = [tuple(field is None for field in row.values()) for row in read_csv(data, "abc")]
    assert nulls == [tuple(value is None for value in row) for row in rows]
    fields = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert [field[0] for field in fields] == [row[0] or "" for row in rows]
    assert [field[1] for field in fields] == ["" if row[1] is None else "\\x" + row[1].hex() for row in rows]
    assert [field[2] for field in fields] == ["" if row[2] is None else str(row[2]) for row in rows]


def test_typed_and_text_forms_encode_to_values_postgresql_takes() -> None:
    shape = table(
        column(1, "d", "date"),
        column(2, "z", "timestamptz"),
        column(3, "b", "boolean"),
        column(4, "n", "numeric", (12 << 16) + 2 + 4),
    )
    typed = pa.RecordBatch.from_pylist(
        [
            {"d": date(2020, 2, 29), "z": datetime(2020, 1, 2, 3, 4, 5, 6, UTC), "b": True, "n": Decimal("1.50")},
            dict.fromkeys("dzbn"),
        ],
        file_schema(shape),
    )
    assert encode_csv(typed, shape.data_columns) == b'2020-02-29,"2020-01-02 03:04:05.000006+00",true,1.50\n,,,\n'
    text = pa.RecordBatch.from_pylist(
        [{"d": "infinity", "z": "-infinity", "b": "t", "n": "NaN"}, dict.fromkeys("dzbn")],
        pa.schema([(name, pa.string()) for name in "dzbn"]),
    )
    assert encode_csv(text, shape.data_columns) == b'"infinity","-infinity","t","NaN"\n,,,\n'


def test_key_columns_are_typed_only_as_integers() -> None:
    shape = table(
        column(1, "i", "integer"), column(2, "d", "date"), column(3, "b", "bytea"), column(4, "e", "date"), key=(1, 2, 3)
    )
    assert file_schema(shape).types == [pa.int32(), pa.string(), pa.string(), pa.date32()]


@pytest.mark.parametrize(
    ("typmod", "expected"),
    [
        ((12 << 16 | 2) + 4, pa.decimal128(12, 2)),
        ((38 << 16 | 38) + 4, pa.decimal128(38, 38)),
        ((39 << 16 | 0) + 4, pa.string()),
        ((3 << 16 | (-2 & 0x7FF)) + 4, pa.string()),
        ((2 << 16 | 4) + 4, pa.string()),
        (-1, pa.string()),
    ],
)
def test_numeric_is_decimal_where_its_scale_is_fixed(typmod: int, expected: pa.DataType) -> None:
    assert arrow_type(column(1, "n", "numeric", typmod), is_key=False) == expected


def test_rows_without_columns_count() -> None:
    batch = pa.record_batch([pa.nulls(3, pa.bool_())], schema=file_schema(table()))
    assert encode_csv(batch, ()) == b"\n\n\n"
