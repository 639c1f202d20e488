"""Databases of other encodings and locales come back in these, with their rows; bytes that are no text of any encoding are
refused before anything is stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.dumps import database_text
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database

pytestmark = pytest.mark.slow

# How the database is made, and a text that its encoding has.
DATABASES = {
    "latin1": ("ENCODING 'LATIN1' LOCALE 'C'", "ÿçé £¥"),
    "euc_jp": ("ENCODING 'EUC_JP' LOCALE 'C'", "日本語 ｱｲｳ 表"),
    "win1251": ("ENCODING 'WIN1251' LOCALE 'C'", "Ёжик №"),
    "sql_ascii": ("ENCODING 'SQL_ASCII' LOCALE 'C'", "ünïcødé 🐘"),
    "libc": ("ENCODING 'UTF8' LOCALE_PROVIDER libc LC_COLLATE 'C.utf8' LC_CTYPE 'C'", "Ünï 🐘"),
    "builtin": ("ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'", "ǅ ß Σς 🐘"),
}
FACTS = """SELECT pg_encoding_to_char(encoding), datlocprovider::text, datcollate, datctype, datlocale FROM pg_database
    WHERE datname = current_database()"""


class Encoded:
    """A database for each of DATABASES, in one chain of a full and an incremental backup."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server, self.uri = server, f"file://{folder}"
        self.main = TestDatabase(server, "postgres")
        self.sources = {name: TestDatabase(server, f"encoded_{name}") for name in DATABASES}
        for name, (made_by, text) in DATABASES.items():
            self.main.execute(f"CREATE DATABASE {self.sources[name].name} TEMPLATE template0 {made_by}")
            self.execute(name, "CREATE TYPE {name} AS ENUM ({value}, 'plain')", text)
            self.execute(
                name, "CREATE TABLE {table} ({name} text PRIMARY KEY, e {name} DEFAULT {value}, j jsonb, c char(20))", text
            )
            self.execute(name, "CREATE TABLE whole (v text, a text[]); ALTER TABLE whole REPLICA IDENTITY FULL", text)
            self.execute(name, "INSERT INTO whole VALUES ({value}, ARRAY[{value}]), ({value}, NULL)", text)
            self.execute(name, "INSERT INTO {table} VALUES ({value}, DEFAULT, jsonb_build_object('k', {value}), {value})", text)
            self.execute(name, "COMMENT ON TABLE {table} IS {value}", text)
        self.back_up(None)
        for name, (_, text) in DATABASES.items():
            self.execute(name, "INSERT INTO {table} SELECT {name} || '2', 'plain', j, NULL FROM {table}", text)
            self.execute(name, "UPDATE {table} SET {name} = {name} || {value}, c = {value} WHERE e = {value}", text)
            self.execute(name, "DELETE FROM whole WHERE a IS NULL; INSERT INTO whole VALUES ({value} || '3', '{{}}')", text)
        self.back_up("LATEST")

    def execute(self, name: str, statement: str, text: str) -> None:
        """Run a statement with the text as a name and as a value, from an application that speaks UTF-8."""
        given = {"name": sql.Identifier(text), "table": sql.Identifier(f"t {text}"), "value": sql.Literal(text)}
        with self.sources[name].connect() as session:
            session.execute("SET client_encoding = 'UTF8'")
            session.execute(sql.SQL(statement).format(**given).as_string().encode())

    def back_up(self, append: str | None) -> None:
        """A layer of all databases."""
        target = DatabaseTarget(names=tuple(source.name for source in self.sources.values()))
        options = BackupOptions(protection="1h", workers=1)
        request = BackupRequest(target=target, into=self.uri, append=append, options=options)
        run_backup(Context(progress=Notes()), self.main.cluster, request, processes=False)


@pytest.fixture(scope="module")
def encoded(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoded]:
    try:
        yield Encoded(postgres, tmp_path_factory.mktemp("encoded") / "collection")
    finally:
        for name in DATABASES:
            drop_database(postgres, f"encoded_{name}")


@pytest.mark.parametrize("name", DATABASES)
def test_the_database_comes_back_as_it_was(encoded: Encoded, name: str) -> None:
    source = encoded.sources[name]
    target = TestDatabase(source.server, f"{source.name}_r")
    request = RestoreRequest(
        target=DatabaseTarget(names=(source.name,)), collection=encoded.uri, options=RestoreOptions(new_db_name=target.name)
    )
    try:
        run_restore(Context(progress=Notes()), encoded.main.cluster, request, processes=False)
        assert target.execute(FACTS) == source.execute(FACTS)
        told = database_text(source, "--encoding=UTF8")
        assert database_text(target, "--encoding=UTF8") == told
        assert told.count(DATABASES[name][1]) > 10
    finally:
        drop_database(target.server, target.name)


@pytest.mark.parametrize("place", ["in a row", "in a change", "in a definition"])
def test_bytes_that_are_no_text_are_refused(postgres: PostgresServer, tmp_path: Path, place: str) -> None:
    """A database of SQL_ASCII keeps any bytes. What is not UTF-8 has no text form that a file could hold."""
    source = TestDatabase(postgres, "encoded_bytes")
    source_main = TestDatabase(postgres, "postgres")
    source_main.execute("CREATE DATABASE encoded_bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        source.execute("CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'fine')")
        bad = "INSERT INTO t VALUES (2, E'caf\\xe9')"
        if place == "in a row":
            source.execute(bad)
        elif place == "in a definition":
            source.execute("COMMENT ON TABLE t IS E'caf\\xe9'")
        request = BackupRequest(target=DatabaseTarget(names=(source.name,)), into=f"file://{tmp_path}/c")
        if place == "in a change":
            run_backup(Context(progress=Notes()), source.cluster, request, processes=False)
            source.execute(bad)
            request = request.model_copy(update={"append": "LATEST"})
        with pytest.raises(BadInput, match="UTF8"):
            run_backup(Context(progress=Notes()), source.cluster, request, processes=False)
    finally:
        drop_database(postgres, source.name)
