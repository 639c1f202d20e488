"""A database with values of every type in tables of every kind, two rounds of changes to them, and what it holds as text."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from tests.kit.servers import TestDatabase
from tests.kit.value_samples import EXTENSIONS, KEYS, NAMING, OWN_TYPES, TYPED, UNREADABLE, UNSUPPORTED, all_types, samples

LONG_NAME = "ä" * 31 + "x"  # 63 bytes
ODD_NAMES = (
    "select",
    "Mixed Case",
    'q"u"ote',
    "dot.ted.name",
    "line\nbreak\r",
    "%s {} $1",
    LONG_NAME,
    "\\.",
    "🐘",
    "_row",
    "_op",
)
WIDE = 1600

# Tables whose rows are told by a key, by whole rows, or not at all.
IDENTITIES = {"key": "ADD PRIMARY KEY (id)", "whole": "REPLICA IDENTITY FULL", "none": "REPLICA IDENTITY NOTHING"}

# Tables of columns that are all typed in a file, of all types but those of the third, and of those whose text names objects.
TABLES = ("typed", "every", "naming")

ONLY_COLUMN = ["", None, r"\.", r"\N", "\n", '"', '""', ",", "NULL", " "]

SHAPES = f"""
CREATE FUNCTION of_windows(text DEFAULT E'a\\r\\nb') RETURNS text LANGUAGE sql AS E'\\r\\n  SELECT ''x\\r\\n'' || $1;\\r\\n';
COMMENT ON FUNCTION of_windows IS E'line\\r\\nline\\rline';
CREATE TABLE of_windows (v text DEFAULT E'\\r\\n' CHECK (v <> E'\\r'), t text GENERATED ALWAYS AS (v || E'\\r\\n') STORED);
INSERT INTO of_windows VALUES (DEFAULT), (E'\\r\\n\\r');
CREATE TABLE nothing ();
INSERT INTO nothing SELECT FROM generate_series(1, 3);
CREATE TABLE counted_nothing ();
ALTER TABLE counted_nothing REPLICA IDENTITY FULL;
INSERT INTO counted_nothing SELECT FROM generate_series(1, 5);
CREATE TABLE dropped (front text, id integer PRIMARY KEY, middle date, v text, again integer, last numeric);
INSERT INTO dropped SELECT 'front', i, '2020-01-01', 'v' || i, i, i FROM generate_series(1, 9) i;
ALTER TABLE dropped DROP front, DROP middle, DROP last, DROP again, ADD again text, ADD middle integer DEFAULT 7;
INSERT INTO dropped (id, v, again) SELECT i, 'w', 'again' FROM generate_series(10, 19) i;
CREATE TABLE all_dropped (a integer, b text);
INSERT INTO all_dropped VALUES (1, 'x'), (2, 'y');
ALTER TABLE all_dropped DROP a, DROP b;
CREATE TABLE wide (id integer PRIMARY KEY, {", ".join(f"c{n} smallint" for n in range(2, WIDE + 1))});
INSERT INTO wide (id, c2, c800, c{WIDE}) SELECT i, i, -i, i FROM generate_series(1, 5) i;
CREATE TABLE filled_in (id integer PRIMARY KEY, v filled);
INSERT INTO filled_in VALUES (1, ''), (2, '\\.'), (3, 'y');
CREATE TABLE toasted (id integer PRIMARY KEY, n integer, small text, big text, bytes bytea, list text[], doc jsonb);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL, ALTER list SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT i, i, 's', repeat(i || E'"\\n\\\\ä🐘', 900), decode(repeat('005c22ff0a', 900 + i), 'hex'),
    array_fill(repeat('e"', 400), ARRAY[2, 2], ARRAY[0, -3]), jsonb_build_object('k', repeat(md5(i::text), 200))
    FROM generate_series(1, 20) i;
"""

CHANGE_SHAPES = (
    f"""
    DELETE FROM nothing WHERE ctid = '(0,1)';
    DELETE FROM counted_nothing WHERE ctid IN ('(0,1)', '(0,4)');
    UPDATE dropped SET v = NULL, middle = id WHERE id % 3 = 0;
    INSERT INTO all_dropped DEFAULT VALUES;
    UPDATE wide SET c{WIDE} = NULL, c3 = 1 WHERE id > 2;
    UPDATE filled_in SET v = '' WHERE id = 3;
    UPDATE toasted SET n = -n WHERE id % 2 = 0;
    UPDATE toasted SET id = id + 100 WHERE id < 4;
    UPDATE toasted SET bytes = '', small = NULL WHERE id % 5 = 0;
    """,
    f"""
    INSERT INTO counted_nothing SELECT FROM generate_series(1, 4);
    UPDATE dropped SET v = '' WHERE id = 5;
    DELETE FROM wide WHERE id = 1;
    INSERT INTO wide (id, c{WIDE}) VALUES (1, 11);
    UPDATE toasted SET id = id - 100, n = 0 WHERE id > 100;
    UPDATE toasted SET small = 'again' WHERE id % 3 = 0;
    DELETE FROM toasted WHERE id = 10;
    """,
    """
    ALTER TABLE dropped DROP v;
    ALTER TABLE dropped ADD v text DEFAULT E'new "v",\\n';
    UPDATE dropped SET v = '' WHERE id = 5;
    INSERT INTO dropped (id) VALUES (99);
    ALTER TYPE mood RENAME VALUE 'sad' TO 'sad, "renamed"';
    ALTER TYPE mood ADD VALUE 'last';
    UPDATE toasted SET n = 5;
    DELETE FROM every_key WHERE id = 0;
    UPDATE every_whole SET id = -id, mood = 'last' WHERE id < 4;
    INSERT INTO only_whole VALUES (E'\\\\.');
    """,
)


def build(database: TestDatabase) -> None:
    """Fill an empty database with the zoo."""
    for extension in EXTENSIONS:
        database.execute(f"CREATE EXTENSION IF NOT EXISTS {extension} CASCADE")
    database.execute(OWN_TYPES)
    database.execute(SHAPES)
    for table in TABLES:
        _build_types(database, table)
    _build_keys(database)
    _build_names(database)
    _build_single(database)
    never = ", ".join(f'"{name}" {name}' for name in (*sorted(UNREADABLE), *sorted(UNSUPPORTED), "xml[]"))
    database.execute(f"CREATE TABLE never (id integer PRIMARY KEY, {never}); INSERT INTO never (id) VALUES (1), (2)")


def change(database: TestDatabase, round_number: int) -> None:
    """A round of changes: two of inserts, updates and deletes in every table, and one of definitions and few rows."""
    for statement in filter(str.strip, CHANGE_SHAPES[round_number].split(";\n")):
        database.execute(statement)
    if round_number == 2:
        return
    for table in TABLES:
        for identity in IDENTITIES:
            for statement in _type_changes(database, f"{table}_{identity}", round_number):
                database.execute(statement)
    for number, spellings in enumerate(KEYS.values()):
        for statement in _key_changes(f"key_{number}", spellings, round_number):
            database.execute(statement)
    for name in ODD_NAMES:
        _run(
            database,
            "UPDATE {t} SET {c} = {c} || 'x', {k} = {k} + 10 WHERE {k} < 10 AND {k} % 2 = 1",
            t=name,
            c=name,
            k=_key(name),
        )
    for identity in ("whole", "none"):
        table = f"only_{identity}"
        database.execute(f"DELETE FROM {table} WHERE v = ''; UPDATE {table} SET v = '' WHERE v IS NULL OR v = 'NULL'")
        database.execute(f"INSERT INTO {table} VALUES (NULL), (NULL), ('')")


def rows(database: TestDatabase) -> dict[str, list[str]]:
    """Every table's rows as PostgreSQL prints them, sorted."""
    with database.connect() as session:
        tables = session.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
        ).fetchall()
        found = {name: [row[0] for row in session.execute(f"SELECT t::text FROM ONLY {name} t".encode())] for (name,) in tables}
    return {name: sorted(values) for name, values in found.items()}


def columns_of(types: list[str]) -> Iterator[tuple[str, str]]:
    """The columns of a zoo's table: each type, and its array."""
    for name in types:
        yield name, name
        yield f"{name}[]", f"{name}[]"


def _values(table: str) -> dict[str, list[str]]:
    if table == "typed":
        return TYPED
    return {name: samples(name) for name in all_types() if (name in NAMING) == (table == "naming")}


def _build_types(database: TestDatabase, table: str) -> None:
    values = _values(table)
    arrays = table != "typed"
    names = [name for name, _ in columns_of(list(values)) if arrays or not name.endswith("[]")]
    declared = dict(columns_of(list(values)))
    listed = ", ".join(f"{_quoted(name)} {declared[name]}" for name in names)
    count = max(map(len, values.values())) + 2
    with database.connect() as session:
        session.execute(f"CREATE TABLE {table}_source (id integer, {listed})".encode())
        for row in range(count):
            cells = [_cell(name, values, row) for name in names]
            session.execute(sql.SQL("INSERT INTO {} VALUES ({}, {})").format(
                sql.Identifier(f"{table}_source"), sql.Literal(row), sql.SQL(", ").join(cells)))  # fmt: skip
        for identity, clause in IDENTITIES.items():
            session.execute(f"CREATE TABLE {table}_{identity} AS TABLE {table}_source".encode())
            session.execute(f"ALTER TABLE {table}_{identity} {clause}".encode())


def _cell(name: str, values: dict[str, list[str]], row: int) -> sql.Composable:
    given = values[name.removesuffix("[]")]
    if not name.endswith("[]"):
        return _literal(given[row], name) if row < len(given) else sql.SQL("NULL")
    if row > len(given):
        return sql.SQL("NULL")
    if row == len(given):
        return sql.SQL("'{}'")
    if name == "small_list[]":  # a domain over arrays, of which no expression makes an array
        return sql.Literal(f'[7:8]={{"{given[row]}",NULL}}')
    value = _literal(given[row], name.removesuffix("[]"))
    if row % 2:
        return sql.SQL("ARRAY[NULL, {}, NULL]").format(value)
    return sql.SQL("array_fill({}, ARRAY[2, 1, 1], ARRAY[0, -1, 5])").format(value)


def _literal(value: str, type_name: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_name))


def _type_changes(database: TestDatabase, table: str, round_number: int) -> Iterator[str]:
    """Each row gets the values of another one, some by one column only; some go, some come again."""
    found = database.execute(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 1", [table],
    )  # fmt: skip
    columns = found[0][0]
    if round_number == 0:
        yield f"DELETE FROM {table} WHERE id % 7 = 3"
        yield f"UPDATE {table} t SET ({columns}) = (SELECT {columns} FROM {table} o WHERE o.id = t.id + 1) WHERE id % 3 = 0"
        yield f"INSERT INTO {table} SELECT id + 1000, {columns} FROM {table.split('_', maxsplit=1)[0]}_source WHERE id % 2 = 0"
    else:
        first = columns.split(", ")[0]
        yield f"UPDATE {table} SET {first} = NULL WHERE id % 4 = 0"
        yield f"UPDATE {table} SET id = id + 5000 WHERE id % 5 = 1"
        yield f"DELETE FROM {table} WHERE id BETWEEN 1002 AND 1006"


def _build_keys(database: TestDatabase) -> None:
    """A table for each type as its primary key; the first spelling of a key that has two is there."""
    for number, (type_name, spellings) in enumerate(KEYS.items()):
        with database.connect() as session:
            session.execute(f"CREATE TABLE key_{number} (k {type_name} PRIMARY KEY, n integer, big text)".encode())
            session.execute(f"ALTER TABLE key_{number} ALTER big SET STORAGE EXTERNAL".encode())
            for n, value in enumerate([*(spellings or ())[:1], *(one for one in samples(type_name) if len(one) < 2000)]):
                row = sql.SQL("{}, {}, repeat(md5({}::text), 100)").format(_literal(value, type_name), n, n)
                table = sql.Identifier(f"key_{number}")
                session.execute(sql.SQL("INSERT INTO {} VALUES ({}) ON CONFLICT DO NOTHING").format(table, row))
            session.execute(f"CREATE TABLE gone_key_{number} AS SELECT k FROM key_{number} WHERE n % 5 = 2".encode())


def _key_changes(table: str, spellings: tuple[str, str] | None, round_number: int) -> Iterator[str]:
    yield f"UPDATE {table} SET n = n + 100 WHERE n % 2 = {round_number}"
    if round_number == 0:
        yield f"DELETE FROM {table} WHERE n % 5 = 2"
    else:
        yield f"INSERT INTO {table} SELECT k, -1, 'back' FROM gone_{table} ON CONFLICT DO NOTHING"
    if spellings is not None:
        yield f"UPDATE {table} SET k = '{spellings[1 - round_number]}' WHERE k = '{spellings[0]}'"


def _build_names(database: TestDatabase) -> None:
    for name in ODD_NAMES:
        _run(database, "CREATE TABLE {t} ({k} integer PRIMARY KEY, {c} text)", t=name, c=name, k=_key(name))
        _run(database, "INSERT INTO {t} VALUES (1, 'a'), (2, NULL), (3, '')", t=name, c=name, k=_key(name))


def _key(name: str) -> str:
    """The name of the key column beside the column `name`."""
    return f"{name[:-1]}y" if name == LONG_NAME else f"{name}2"


def _build_single(database: TestDatabase) -> None:
    for identity in ("whole", "none"):
        database.execute(f"CREATE TABLE only_{identity} (v text); ALTER TABLE only_{identity} {IDENTITIES[identity]}")
        with database.connect() as session, session.cursor() as cursor:
            cursor.executemany(f"INSERT INTO only_{identity} VALUES (%s)".encode(), [(value,) for value in ONLY_COLUMN])


def _run(database: TestDatabase, statement: str, **names: str) -> None:
    with database.connect() as session:
        session.execute(sql.SQL(statement).format(**{key: sql.Identifier(name) for key, name in names.items()}))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
