"""The CSV codec without a server: cut streams, failing columns, both forms of each type."""

from __future__ import annotations

import csv
import io
import itertools
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar.csv_codec import ConversionNeeded, CsvReader, encode_csv
from spanvault.columnar.types import arrow_type, file_schema
from spanvault.model.schema import Column, Table

OIDS = {"boolean": 16, "bytea": 17, "bigint": 20, "integer": 23, "text": 25, "date": 1082, "timestamptz": 1184, "uuid": 2950}


def column(attnum: int, name: str, type_name: str, typmod: int = -1) -> Column:
    oid = 1700 if type_name.startswith("numeric") else OIDS[type_name]
    return Column(attnum=attnum, name=name, type_oid=oid, type_name=type_name, typmod=typmod, base_type=type_name, type_kind="b")


def table(*columns: Column, key: tuple[int, ...] = ()) -> Table:
    return Table(oid=1, schema_name="s", name="t", columns=columns, key=key, capture="log")


def postgres_csv(rows: list[list[str | None]]) -> bytes:
    """CSV as COPY writes it, by its documented rules: NULL is nothing, quotes where needed and around empty strings."""

    def cell(value: str | None) -> str:
        if value is None:
            return ""
        special = not value or any(character in value for character in '",\n\r') or value == r"\."
        return '"' + value.replace('"', '""') + '"' if special else value

    return "".join(",".join(map(cell, row)) + "\n" for row in rows).encode()


awkward = (
    st.none()
    | st.text(st.sampled_from(list('"",\n\r\\.xé 🐘\t')), max_size=12)
    | st.text(max_size=5).filter(lambda t: "\0" not in t)
)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(awkward, awkward).map(list), max_size=30),
    cuts=st.lists(st.integers(0, 600), max_size=20),
    block_bytes=st.integers(1, 200),
)
def test_a_stream_cut_anywhere_gives_the_same_rows(rows: list[list[str | None]], cuts: list[int], block_bytes: int) -> None:
    data = postgres_csv(rows)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[start:end] for start, end in itertools.pairwise(places)]
    reader = CsvReader(table(column(1, "a", "text"), column(2, "b", "text")))
    batches = list(reader.batches(chunks, block_bytes))
    assert [list(row.values()) for batch in batches for row in batch.to_pylist()] == rows


@settings(deadline=None)
@given(st.lists(awkward, max_size=30))
def test_one_column_tells_null_from_empty(values: list[str | None]) -> None:
    reader = CsvReader(table(column(1, "a", "text")))
    (batch,) = [*reader.batches([postgres_csv([[value] for value in values])])] or [pa.record_batch([[]], names=["a"])]
    assert batch.column("a").to_pylist() == values


@settings(deadline=None)
@given(st.lists(st.tuples(awkward, st.none() | st.binary(max_size=9), st.none() | st.integers(-(2**63), 2**63 - 1))))
def test_encoded_rows_read_back(rows: list[tuple[str | None, bytes | None, int | None]]) -> None:
    shape = table(column(1, "a", "text"), column(2, "b", "bytea"), column(3, "c", "bigint"))
    columns = [pa.array([row[n] for row in rows], type_) for n, type_ in enumerate(file_schema(shape).types)]
    batch = pa.RecordBatch.from_arrays(columns, schema=file_schema(shape))
    data = encode_csv(batch, shape.data_columns)
    read = [list(row.values()) for one in CsvReader(shape).batches([data]) for row in one.to_pylist()]
    assert read == [list(row) for row in rows]
    # An independent reader sees the same fields.
    fields = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert [field[0] for field in fields] == [row[0] or "" for row in rows]
    assert [field[1] for field in fields] == ["" if row[1] is None else "\\x" + row[1].hex() for row in rows]


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


def test_all_failing_columns_of_a_block_are_named() -> None:
    shape = table(column(1, "d", "date"), column(2, "_op", "integer"), column(3, "n", "numeric", (5 << 16) + 1 + 4))
    block = b"2020-01-01,1,NaN\ninfinity,2,1.0\n"
    with pytest.raises(ConversionNeeded) as caught:
        CsvReader(shape).read_block(block)
    assert caught.value.columns == {"d", "n"}
    batch = CsvReader(shape, caught.value.columns).read_block(block)
    assert batch.to_pylist() == [{"d": "2020-01-01", "__op": 1, "n": "NaN"}, {"d": "infinity", "__op": 2, "n": "1.0"}]


def test_rows_that_are_not_the_tables_are_no_conversion() -> None:
    with pytest.raises(RuntimeError, match=r"s\.t"):
        CsvReader(table(column(1, "a", "integer"), column(2, "b", "text"))).read_block(b"1\n")


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
    (batch,) = CsvReader(table()).batches([b"\n\n", b"\n"])
    assert batch.num_rows == 3
    assert encode_csv(batch, ()) == b"\n\n\n"
