"""Rows go into PostgreSQL in COPY's binary format wherever their types allow it, and are what CSV would have made them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from spanvault.columnar.binary_codec import encode_binary
from spanvault.columnar.csv_codec import encode_csv
from spanvault.columnar.read import read_batches, verified_file
from spanvault.database.postgres import copy_in
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.errors import SpanvaultError
from spanvault.model.schema import Table
from tests.kit.copying import export, local_storage, round_trip, table_shape
from tests.kit.servers import TestDatabase

# Each column with what its n-th row holds; about every seventh value is NULL.
RANDOM = {
    "smallint": "(hashint4(n) % 32768)::smallint",
    "integer": "hashint4(n)",
    "bigint": "hashint8extended(n, 7)",
    "boolean": "hashint4(n) % 2 = 0",
    "real": "(hashint4(n) / 777.0)::real",
    "double precision": "hashint8extended(n, 3) / 1e7::float8",
    "date": "date '2000-01-01' + hashint4(n) % 700000",
    "timestamp": "timestamp '2000-01-01' + hashint4(n) * interval '12.345678 seconds'",
    "timestamptz": "timestamptz '1999-12-31 23:59:59.5+00' + hashint4(n) * interval '12.345678 seconds'",
    "numeric(1,0)": "hashint4(n) % 10",
    "numeric(4,4)": "(hashint4(n) % 10000) / 10000.0",
    "numeric(5,1)": "(hashint4(n) % 100000) / 10.0",
    "numeric(12,2)": "hashint4(n) / 100.0",
    "numeric(16,16)": "(hashint8extended(n, 1) % 10000000000000000) / 1e16::numeric",
    "numeric(18,0)": "hashint8extended(n, 2) % 1000000000000000000",
    "numeric(18,9)": "(hashint8extended(n, 2) % 1000000000000000000) / 1e9::numeric",
    "numeric": "round(hashint8extended(n, 4) % 100000000000 / 1e9::numeric, abs(hashint4(n)) % 6)",
    "text": "repeat(md5(n::text) || E' \\u00e4\\U0001F418\\n\\\\.,\"''', n % 5)",
    "varchar(40)": "left(md5(n::text) || E'\\u00e4\\t', n % 40)",
    "char(7)": "left(md5(n::text), n % 8)",
    "bytea": "decode(repeat(md5(n::text), n % 4), 'hex')",
    "uuid": "md5(n::text)::uuid",
    "json": "json_build_object('n', n, E'\\u00e4', repeat('x', n % 50))",
    "jsonb": "jsonb_build_object('n', n, 'a', jsonb_build_array(null, 1.50, n::text))",
    "mood": "(array['sad', 'it''s, \"ok\"', ''])[1 + abs(hashint4(n)) % 3]::mood",
}
# What only CSV brings: no binary form here, or not of this value.
CSV_ONLY = {
    "interval": "1 day",
    "integer[]": "{1,NULL}",
    "amount": "1.50",
    "timestamp": "infinity",
    "date": "0044-03-15 BC",
    "numeric": "NaN",
    "numeric(12,2)": "NaN",
    "numeric(20,0)": "1",
    "numeric(18,17)": "0.1",
}
TYPES = """
    create type mood as enum ('sad', 'it''s, "ok"', '');
    create domain amount as numeric(12, 2);
"""


@pytest.fixture
def no_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded is loaded in binary."""

    def refuse(*_: object) -> bytes:
        raise AssertionError("a batch was encoded as CSV")

    monkeypatch.setattr(copy_in, "encode_csv", refuse)


@pytest.mark.usefixtures("no_csv")
def test_random_rows_of_all_binary_types(database: TestDatabase, tmp_path: Path) -> None:
    """Nullable and not: with and without NULLs a column takes different ways."""
    columns = [f'"{type_name}" {type_name}, "{type_name}!" {type_name} not null' for type_name in RANDOM]
    values = [
        f"case when hashint4(n + {index}) % 7 <> 0 then {value} end, {value}" for index, value in enumerate(RANDOM.values())
    ]
    database.execute(TYPES)
    database.execute(f"create table source (n integer, {', '.join(columns)})")
    database.execute(f"insert into source select n, {', '.join(values)} from generate_series(1, 3000) n")
    assert round_trip(database, tmp_path).text_columns == ()


@pytest.mark.usefixtures("no_csv")
@pytest.mark.parametrize("type_name", ["bytea", "date", "double precision", "numeric(12,2)", "timestamptz", "uuid"])
def test_a_key_which_files_have_as_text(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    database.execute(f"create table source (k {type_name}, n integer)")
    database.execute(f"insert into source select {RANDOM[type_name]}, n from generate_series(1, 300) n")
    round_trip(database, tmp_path, key=(1,))


@pytest.mark.usefixtures("no_csv")
@pytest.mark.parametrize(
    "literal", ["0", "-0.5", "0.0001", "-123456789012345678", "0.0000000000000001", "9999.9999", "10000.00010"]
)
def test_numbers_in_text(database: TestDatabase, tmp_path: Path, literal: str) -> None:
    """Each alone: how many groups of digits there are depends on the batch's largest."""
    database.execute(f"create table source (v numeric); insert into source values ({literal}), (null)")
    round_trip(database, tmp_path)


@pytest.mark.parametrize("type_name", CSV_ONLY)
def test_what_has_no_binary_form_goes_as_csv(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    database.execute(TYPES)
    database.execute(
        f"create table source (n integer, v {type_name}); insert into source values (1, '{CSV_ONLY[type_name]}'), (2, null)"
    )
    round_trip(database, tmp_path)
    table, (batch,) = exported(database, tmp_path / "again")
    assert encode_binary(batch, table.data_columns) is None


def exported(database: TestDatabase, folder: Path) -> tuple[Table, list[pa.RecordBatch]]:
    """The table `source` and its rows as a data file has them."""
    folder.mkdir()
    table, storage = table_shape(database, "source"), local_storage(folder)
    written = export(database, table, storage)
    with verified_file(storage, "data", sha256=written.sha256, size=written.bytes) as file:
        return table, list(read_batches(file))


def test_formats_change_from_batch_to_batch(database: TestDatabase, tmp_path: Path) -> None:
    """One file has a column typed, the next as text: all their rows go in, or with a bad one at the end none."""
    database.execute("create table source (n integer primary key, at timestamp)")
    batches = []
    for index, value in enumerate(["2026-11-22", "infinity", "2026-11-23", "-infinity"]):
        database.execute(f"truncate source; insert into source values ({index}, '{value}')")
        table, found = exported(database, tmp_path / str(index))
        batches += found
    assert [encode_binary(batch, table.data_columns) is None for batch in batches] == [False, True, False, True]
    database.execute("truncate source")
    with connect(database.endpoint, autocommit=False) as connection:
        assert copy_batches(connection, "public.source", table.data_columns, iter(batches)) == 4
    expected = [(0, "2026-11-22 00:00:00"), (1, "infinity"), (2, "2026-11-23 00:00:00"), (3, "-infinity")]
    assert database.execute("select n, at::text from source order by n") == expected
    database.execute("delete from source where n < 3")
    with pytest.raises(SpanvaultError, match="source_pkey"), connect(database.endpoint, autocommit=False) as connection:
        copy_batches(connection, "public.source", table.data_columns, iter(batches))
    assert database.execute("select n from source") == [(3,)]


def test_sliced_batches(database: TestDatabase, tmp_path: Path) -> None:
    """Arrow's arrays may begin in the middle of their buffers."""
    database.execute("create table source (n bigint, d numeric(9,3), t text, u uuid, b boolean, x bytea)")
    database.execute(
        "insert into source select n, n / 7.0, case when n % 3 > 0 then md5(n::text) end, md5(n::text)::uuid, n % 2 = 0,"
        " case when n % 5 > 0 then decode(md5(n::text), 'hex') end from generate_series(1, 100) n"
    )
    table, (batch,) = exported(database, tmp_path / "file")
    parts = [batch.slice(start, 33) for start in range(0, 100, 33)]
    assert all(encode_binary(part, table.data_columns) is not None for part in parts)
    whole = encode_binary(batch, table.data_columns)
    assert whole is not None
    assert b"".join(encode_binary(part, table.data_columns) or b"" for part in parts) == bytes(whole)
    assert b"".join(encode_csv(part, table.data_columns) for part in parts) == encode_csv(batch, table.data_columns)
