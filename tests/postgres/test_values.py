"""Every value survives exactly: source table -> COPY -> Parquet -> COPY -> a table equal as text, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from spanvault.columnar.read import read_batches, verified_file
from spanvault.columnar.types import arrow_type
from spanvault.columnar.write import text_batch_to_typed
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.quoting import quote
from spanvault.embedded.postgres import PostgresServer
from tests.kit.copying import export, local_storage, round_trip, table_shape
from tests.kit.servers import TestDatabase, fresh_database

# type, then values as PostgreSQL literals; all of them must be typed in the file.
TYPED = {
    "smallint": ["-32768", "0", "32767"],
    "integer": ["-2147483648", "-1", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "boolean": ["true", "false"],
    "real": ["0", "-0", "0.1", "1e-45", "3.4028235e38", "16777217", "NaN", "Infinity", "-Infinity", "1e10", "1.17549435e-38"],
    "double precision": ["-0", "0.1", "5e-324", "1.7976931348623157e308", "0.30000000000000004", "1e22", "1e23", "NaN",
                         "Infinity", "-Infinity", "2.2250738585072014e-308", "9007199254740993", "123456789012345680"],
    "date": ["0001-01-01", "1582-10-10", "1970-01-01", "2000-02-29", "9999-12-31"],
    "timestamp": ["0001-01-01 00:00:00", "1969-12-31 23:59:59.999999", "2024-02-29 12:00:00.1", "9999-12-31 23:59:59.999999",
                  "2016-12-31 23:59:60", "2020-01-01 24:00:00", "2020-01-01 00:00:00.000001"],
    "timestamptz": ["0001-01-01 00:00:00+00", "2024-03-31 02:30:00 Europe/Berlin", "1883-11-18 12:03:57 America/New_York",
                    "9999-12-31 23:59:59.999999+00", "2020-06-01 12:00:00.5-11:30"],
    "numeric(12,2)": ["0", "-0.00", "0.01", "-9999999999.99", "9999999999.99", "1.005"],
    "numeric(38,0)": ["99999999999999999999999999999999999999", "-99999999999999999999999999999999999999", "0"],
    "numeric(38,38)": ["0.00000000000000000000000000000000000001", "-0.99999999999999999999999999999999999999", "0"],
    "numeric(20,10)": ["0.0000000001", "-1234567890.0987654321"],
    "numeric(18,18)": ["0.000000000000000001"],
    "bytea": [r"\x", r"\x00", r"\xdeadbeef", r"\x5c78", r"\x22270a0d2c"],
}  # fmt: skip

# One value in each makes the whole column text.
FORCES_TEXT = {
    "date": ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31", "4713-01-01 BC"],
    "timestamp": ["infinity", "-infinity", "0044-03-15 01:02:03 BC", "294276-12-31 23:59:59.999999", "10000-01-01 00:00:00"],
    "timestamptz": ["infinity", "-infinity", "0001-12-31 23:59:59+00 BC", "10000-01-01 00:00:00.5+00"],
    "numeric(12,2)": ["NaN"],
}

# Types whose only form in a file is text.
TEXT = {
    "text": ["", " ", "NULL", r"\N", r"\.", '"', '""', ",", "a\nb", "\r\n", "\r", "\t", "'", "\\", "ünïcødé 🐘", "\u2028", "\x01",
             "x" * 5000],
    "varchar(10)": ["", "ab ", "äöü"],
    "char(5)": ["", "ab", "  x"],
    '"char"': ["a", "", "ÿ"],
    "name": ["x", "Ünder score"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1.10", "1.1", "1e-200", "1e200", "0.000", "12345678901234567890.123456789"],
    "numeric(50,3)": ["99999999999999999999999999999999999999999999999.999", "NaN"],
    "numeric(3,-2)": ["12300"],
    "numeric(2,4)": ["0.0012"],
    "time": ["24:00:00", "00:00:00", "23:59:59.999999"],
    "timetz": ["24:00:00+00", "12:00:00.5-11:30", "12:00+15:59"],
    "interval": ["1 year -1 day 00:00:00.000001", "-178000000 years", "infinity", "0", "-1 mon +1 day"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a": 1,  "a": 2}', "null", '"x"', "[1,\n2]"],
    "jsonb": ['{"a": "\\"q\\"", "b": [1, 2.50, null]}', "null"],
    "money": ["$1,234.56", "-$0.01"],
    "bit(3)": ["101"],
    "bit varying": ["", "10101"],
    "inet": ["10.0.0.1/8", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "point": ["(1.5,-0)", "(NaN,Infinity)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "tstzrange": ["[2020-01-01,infinity)"],
    "int4multirange": ["{[1,3),[5,9)}", "{}"],
    "integer[]": ["{}", "{1,NULL,3}", "[0:1]={1,2}", "{{1,2},{3,4}}"],
    "text[]": ['{"a,b","c\\"d",NULL,"NULL",""}', "{}"],
    "bytea[]": [r'{"\\x00ff",NULL}'],
    "date[]": ["{infinity,2020-01-01}"],
    "tsvector": ["'a':1A 'b''c':2"],
    "tsquery": ["'a' & !'b'"],
    "pg_lsn": ["16/B374D848"],
    "oid": ["4294967295"],
    "jsonpath": ['$."a"[*]?(@ > 1)'],
    "mood": ["sad", "it's, \"ok\"", ""],
    "amount": ["1.50", "NaN"],
    "pair": ['(1,"a b")', "(,)", '(1,"x""y,z")'],
    "regclass": ["pg_class"],
    "xid8": ["18446744073709551615"],
}  # fmt: skip

TYPES = """
    create type mood as enum ('sad', 'it''s, "ok"', '');
    create domain amount as numeric(12, 2);
    create type pair as (i integer, t text);
"""


@pytest.fixture(scope="module")
def module_database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    with fresh_database(postgres) as fresh:
        fresh.execute(TYPES)
        yield fresh


@pytest.fixture
def database(module_database: TestDatabase) -> TestDatabase:
    """One database for all tests here, without tables: making a new one costs more than most of these tests."""
    module_database.execute("drop table if exists source, copy")
    return module_database


def fill(database: TestDatabase, type_name: str, values: list[str]) -> None:
    database.execute(f"create table source (id integer, v {type_name}, w {type_name}, t text)")
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.executemany(
            f"insert into source values (%s, %s::text::{type_name}, null, 'x')", [(n, value) for n, value in enumerate(values)]
        )
    database.execute("insert into source values (null, null, null, null)")


@pytest.mark.parametrize("type_name", TYPED)
def test_typed_columns_survive_exactly(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    fill(database, type_name, TYPED[type_name])
    column = table_shape(database, "source").columns[1]
    assert not pa.types.is_string(arrow_type(column, is_key=False))
    assert round_trip(database, tmp_path).text_columns == ()


@pytest.mark.parametrize(("type_name", "value"), [(name, value) for name, values in FORCES_TEXT.items() for value in values])
def test_a_value_that_does_not_convert_makes_its_column_text(
    database: TestDatabase, tmp_path: Path, type_name: str, value: str
) -> None:
    fill(database, type_name, [TYPED[type_name][0], value])
    assert round_trip(database, tmp_path).text_columns == ("v",)


@pytest.mark.parametrize("type_name", TEXT)
def test_other_types_survive_as_text(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    fill(database, type_name, TEXT[type_name])
    assert round_trip(database, tmp_path).text_columns == ()


def test_floats_of_any_bits_survive(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(
        """create table source (r real, d double precision);
        insert into source select exp(40 * sin(i))::real * sign(cos(i * 7.0)), exp(300 * sin(i * 1.7)) * sin(i)
        from generate_series(1, 20000) i"""
    )
    assert round_trip(database, tmp_path).text_columns == ()


def test_every_character_survives_in_text(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(
        """create table source (t text);
        insert into source select chr(i) || 'x' || chr(i) from generate_series(1, 70000) i where i not between 55296 and 57343"""
    )
    round_trip(database, tmp_path)


def test_all_failing_columns_are_found_in_one_more_reading(database: TestDatabase, tmp_path: Path) -> None:
    """The values lie in different blocks; the second reading must know both."""
    database.execute(
        """create table source (a date, b numeric(12, 2), t text);
        insert into source values ('infinity', 1, '');
        insert into source select date '2020-01-01', 1, repeat(md5(i::text), 300) from generate_series(1, 2000) i;
        insert into source values ('2020-01-01', 'NaN', '')"""
    )
    assert round_trip(database, tmp_path).text_columns == ("a", "b")


@pytest.mark.parametrize("rows", [0, 1, 70_000])
def test_rows_of_a_table_without_columns_count(database: TestDatabase, tmp_path: Path, rows: int) -> None:
    database.execute("create table source ()")
    database.execute(f"insert into source select from generate_series(1, {rows})")
    assert round_trip(database, tmp_path).rows == rows


def test_a_table_of_generated_columns_only(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table source (a integer generated always as (7) stored)")
    database.execute("insert into source select from generate_series(1, 5)")
    assert round_trip(database, tmp_path).rows == 5


def test_an_empty_table(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table source (a integer, b numeric(5, 1), c text, d bytea)")
    assert round_trip(database, tmp_path).rows == 0


@pytest.mark.parametrize("type_name", ["text", "integer", "bytea", "date"])
def test_null_alone_in_a_row(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    database.execute(f"create table source (v {type_name}); insert into source values (null), (null)")
    assert round_trip(database, tmp_path).rows == 2


def test_odd_column_names(database: TestDatabase, tmp_path: Path) -> None:
    names = ["a", "A", 'q"u"ote', "with, comma", "_op", "__op", "_seq", "a.b", "Ünï", "select", "line\nbreak", "%s", "{}", "_row"]
    columns = ", ".join(f"{quote(name)} integer" for name in names)
    database.execute(f"create table source ({columns})")
    database.execute(f"insert into source select {', '.join(str(n) for n in range(len(names)))}")
    assert round_trip(database, tmp_path).rows == 1


def test_wide_rows(database: TestDatabase, tmp_path: Path) -> None:
    """Values longer than a block, full of what CSV treats specially."""
    database.execute(
        r"""create table source (id integer, t text, b bytea);
        insert into source select i, repeat(E'"a",\n""\r', i * 900000), decode(repeat('5c0a22', i * 1500000), 'hex')
        from generate_series(0, 1) i"""
    )
    round_trip(database, tmp_path)


@pytest.mark.parametrize("type_name", TYPED)
def test_text_of_a_change_converts_as_copy_does(database: TestDatabase, tmp_path: Path, type_name: str) -> None:
    """What pgoutput sends as text gives the same values as COPY, and the same columns have to stay text."""
    for values in (TYPED[type_name], FORCES_TEXT.get(type_name, [])):
        database.execute("drop table if exists source")
        fill(database, type_name, values)
        table, storage = table_shape(database, "source"), local_storage(tmp_path)
        written = export(database, table, storage)
        with connect(database.endpoint) as connection:
            # A row's text, unlike a cast to text, has the types' output forms (booleans).
            rows = connection.execute("select row(v)::text, v is null from public.source order by id").fetchall()
        texts = [None if is_null else text[1:-1].strip('"').replace("\\\\", "\\") for text, is_null in rows]
        schema = pa.schema([pa.field("v", arrow_type(table.columns[1], is_key=False))])
        typed, failed = text_batch_to_typed(pa.record_batch({"v": pa.array(texts, pa.string())}), schema)
        assert failed == frozenset(written.text_columns)
        with verified_file(storage, "data", sha256=written.sha256, size=written.bytes) as file:
            copied = pa.Table.from_batches(read_batches(file, ["id", "v"])).sort_by("id").column("v")
        assert str(typed.column("v").to_pylist()) == str(copied.to_pylist())
