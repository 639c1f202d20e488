"""SHOW BACKUPS and SHOW BACKUP in all their forms, over one collection of a real database; what they say is compared with
PostgreSQL's own catalogs, and by restoring."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from spanvault.cli.main import run
from spanvault.collection.markers import mark_invalid
from spanvault.config.settings import Settings
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.execute import execute
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import restorable
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput, BrokenChain, Damaged, KeyMismatch, NotFound
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.result import Cell, Incomplete
from spanvault.model.target import DatabaseTarget
from spanvault.statement.parse import parse
from tests.kit.command_line import refusal
from tests.kit.servers import TestDatabase, drop_database, fresh_database

SHOP = """
    CREATE SCHEMA sales;
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE FUNCTION half(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 2';
    CREATE TABLE customers (id int PRIMARY KEY, name text DEFAULT 'nobody');
    CREATE TABLE sales."Orders" (id int PRIMARY KEY, customer int REFERENCES customers, m mood);
    CREATE INDEX by_half ON sales."Orders" (half(id));
    COMMENT ON TABLE customers IS 'who buys';
    CREATE TABLE ev (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE ev_2026 PARTITION OF ev FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE VIEW good AS SELECT * FROM sales."Orders" WHERE m = 'good';
    CREATE SEQUENCE numbers;
    GRANT SELECT ON customers TO show_reader;
    INSERT INTO customers SELECT i FROM generate_series(1, 20) i;
    INSERT INTO sales."Orders" SELECT i, i, 'good' FROM generate_series(1, 10) i;
    INSERT INTO ev SELECT i, date '2026-03-01' + i FROM generate_series(1, 5) i
"""
DEFAULTS = (
    "database_name", "parent_schema_name", "object_name", "object_type", "backup_type", "start_time", "end_time", "size_bytes",
    "rows", "is_full_cluster", "regions",
)  # fmt: skip
LAST = ("restorable_from", "restorable_to")
KEYS = EncryptionOptions(passphrase=SecretStr("one two three of no use"))


@dataclass(frozen=True)
class Shelf:
    """A collection of three chains: a full and two incrementals, the second with history; a full; an encrypted full."""

    folder: Path
    database: TestDatabase
    layers: tuple[Manifest, ...]
    oids: dict[tuple[str, str], int]

    @property
    def uri(self) -> str:
        return f"file://{self.folder}"

    @property
    def context(self) -> Context:
        return Context(settings=Settings(wait_for_writers=20))

    def show(self, what: str, *, context: Context | None = None) -> list[dict[str, Cell]]:
        """The rows of SHOW BACKUP or SHOW BACKUPS; `{uri}` in the statement is the collection."""
        return execute(context or self.context, parse(what.format(uri=self.uri)), cluster=None).dicts()

    def copy(self, folder: Path) -> Shelf:
        return Shelf(shutil.copytree(self.folder, folder), self.database, self.layers, self.oids)

    def id(self, place: int) -> str:
        layer = self.layers[place]
        return f"{layer.subdir.replace('/', '')}-{layer.number:06d}"


@pytest.fixture(scope="module")
def shelf(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """The collection; nobody may change it."""
    folder = tmp_path_factory.mktemp("show") / "c"
    with fresh_database(postgres) as database:
        database.execute("CREATE ROLE show_reader")
        database.execute(SHOP)
        made = Shelf(folder, database, (), {})

        def backup(append: str | None = None, keys: EncryptionOptions | None = None, *, history: bool = False) -> Manifest:
            request = BackupRequest(
                target=DatabaseTarget(names=(database.name,)),
                into=made.uri,
                append=append,
                options=BackupOptions(workers=1, revision_history=history),
                encryption=keys or EncryptionOptions(),
            )
            return run_backup(made.context, database.cluster, request, processes=False)

        layers = [backup()]
        database.execute("INSERT INTO customers VALUES (21)")
        layers.append(backup("LATEST"))
        database.execute("INSERT INTO customers VALUES (22); CREATE TABLE late (id int PRIMARY KEY)")
        layers.append(backup("LATEST", history=True))
        database.execute("INSERT INTO customers VALUES (23)")
        layers += [backup(), backup(None, KEYS)]
        rows = database.execute(
            "SELECT n.nspname, c.relname, c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " UNION ALL SELECT '', nspname, oid::int8 FROM pg_namespace"
            " UNION ALL SELECT '', datname, oid::int8 FROM pg_database WHERE datname = current_database()"
        )
        yield Shelf(folder, database, tuple(layers), {(schema, name): oid for schema, name, oid in rows})
        database.execute("DROP OWNED BY show_reader; DROP ROLE show_reader")


def test_show_backups_lists_paths_or_ids_oldest_first_as_windows_does(shelf: Shelf) -> None:
    assert [layer.number for layer in shelf.layers][:3] == [0, 1, 2]
    paths = [row["path"] for row in shelf.show("SHOW BACKUPS IN '{uri}'")]
    assert paths == sorted({layer.subdir for layer in shelf.layers})
    plain = EncryptionOptions()
    with pytest.raises(Incomplete) as stopped:  # the encrypted chain needs its passphrase here
        restorable(shelf.context.unlocking(plain), shelf.uri)
    assert list(dict.fromkeys(row["path"] for row in stopped.value.result.dicts())) == paths[:2]
    shown = shelf.show("SHOW BACKUPS IN '{uri}' WITH ids")
    # The chain's last layer, which the second full added to close it, is listed too.
    own = [row for row in shown if row["id"] in {shelf.id(place) for place in range(5)}]
    assert own == [
        {"id": shelf.id(place), "backup_time": format_time(layer.end.time)} for place, layer in enumerate(shelf.layers)
    ]
    assert [row["id"] for row in shown] == sorted(str(row["id"]) for row in shown)


def test_show_backups_says_from_when_on_any_time_of_a_backup_can_be_restored(shelf: Shelf) -> None:
    shown = {row["id"]: row["revision_start_time"] for row in shelf.show("SHOW BACKUPS IN '{uri}' WITH REVISION START TIME")}
    assert shown[shelf.id(2)] == format_time(shelf.layers[1].end.time)
    assert [shown[shelf.id(place)] for place in (0, 1, 3, 4)] == [None] * 4


def test_ages_leave_out_what_ended_at_or_beyond_them(shelf: Shelf) -> None:
    first, last = (format_time(shelf.layers[place].end.time) for place in (0, 2))
    between = shelf.show(f"SHOW BACKUPS IN '{{uri}}' OLDER THAN '{last}' NEWER THAN '{first}'")
    assert [row["id"] for row in between] == [shelf.id(1)]
    assert shelf.show("SHOW BACKUPS IN '{uri}' OLDER THAN '1d'") == []
    newer = shelf.show("SHOW BACKUPS IN '{uri}' NEWER THAN '1d'")
    assert newer == shelf.show("SHOW BACKUPS IN '{uri}' WITH ids")


def test_a_lost_index_hides_nothing_but_what_needs_a_key(shelf: Shelf, tmp_path: Path) -> None:
    lost = shelf.copy(tmp_path / "lost")
    before = shelf.show("SHOW BACKUPS IN '{uri}' WITH ids, revision_start_time")
    for entry in (lost.folder / "metadata" / "index").iterdir():
        entry.unlink()
    with pytest.raises(Incomplete, match=shelf.layers[4].subdir) as stopped:
        lost.show("SHOW BACKUPS IN '{uri}' WITH ids, revision_start_time")
    assert stopped.value.result.dicts() == before[:-1]


def test_a_broken_and_a_marked_chain_are_told_and_the_rest_is_shown(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shelf.copy(tmp_path / "broken")
    (broken.folder / shelf.layers[1].subdir / "chain" / "000001.json").unlink()
    assert run(["sql", f"SHOW BACKUPS IN '{broken.uri}' WITH ids", "--format", "json"]) == 1
    captured = capsys.readouterr()
    assert f"{shelf.layers[0].subdir} is not continuous" in captured.err
    assert [row[0] for row in json.loads(captured.out)["rows"]] == [shelf.id(3), shelf.id(4)]
    with pytest.raises(BrokenChain):
        broken.show(f"SHOW BACKUP '{shelf.id(0)}' IN '{{uri}}'")
    marked = shelf.copy(tmp_path / "marked")
    storage = marked.context.storage(marked.uri)
    mark_invalid(storage, shelf.layers[1].subdir, 1, "harmed.", marked.context.clock())
    ids = [row["id"] for row in marked.show("SHOW BACKUPS IN '{uri}' WITH ids")]
    assert ids == [shelf.id(0), shelf.id(3), shelf.id(4)]
    with pytest.raises(NotFound, match="valid layers 0 to 0"):
        marked.show(f"SHOW BACKUP FROM '{shelf.id(2)}' IN '{{uri}}'")


def test_an_id_shows_its_layer_alone(shelf: Shelf) -> None:
    whole = shelf.show(f"SHOW BACKUP '{shelf.layers[0].subdir}' IN '{{uri}}'")
    one = shelf.show(f"SHOW BACKUP FROM '{shelf.id(1)}' IN '{{uri}}'")
    end = format_time(shelf.layers[1].end.time)
    assert one == [row for row in whole if row["end_time"] == end]
    assert {row["object_name"]: row["rows"] for row in one if row["object_type"] == "table"}["customers"] == 21
    (manifest,) = shelf.show(f"SHOW BACKUP FROM '{shelf.id(1)}' IN '{{uri}}' WITH as_json")
    assert json.loads(str(manifest["manifest"]))["number"] == 1
    with pytest.raises(NotFound, match="SHOW BACKUPS IN"):
        shelf.show("SHOW BACKUP FROM '20200101-000000.00-000000' IN '{uri}'")


def test_an_id_is_restored_at_its_end_although_the_chain_goes_on(shelf: Shelf) -> None:
    for place, rows in ((0, 20), (1, 21), (2, 22)):
        name = f"{shelf.database.name}_{place}"
        request = RestoreRequest(
            target=DatabaseTarget(names=(shelf.database.name,)),
            subdir=shelf.id(place),
            collection=shelf.uri,
            options=RestoreOptions(new_db_name=name, workers=1),
        )
        try:
            run_restore(shelf.context, shelf.database.cluster, request, processes=False)
            assert TestDatabase(shelf.database.server, name).execute("SELECT count(*) FROM customers") == [(rows,)]
        finally:
            drop_database(shelf.database.server, name)
    late = request.model_copy(update={"subdir": shelf.id(0), "as_of": shelf.layers[1].end.time})
    with pytest.raises(BadInput):
        run_restore(shelf.context, shelf.database.cluster, late, processes=False)


def test_the_statements_that_schemas_shows_make_the_same_database(shelf: Shelf, postgres: PostgresServer) -> None:
    shown = shelf.show(f"SHOW BACKUP SCHEMAS FROM '{shelf.id(0)}' IN '{{uri}}'")
    statements = {(row["parent_schema_name"], row["object_name"]): str(row["create_statement"] or "") for row in shown}
    assert "CREATE DATABASE" in statements[None, shelf.database.name]
    order = ("sales", "mood", "half(integer)", "customers", "Orders", "ev", "ev_2026", "good", "numbers")
    by_name = {str(name): text for (_, name), text in statements.items()}
    assert set(by_name) == {*order, "public", shelf.database.name}
    with fresh_database(postgres) as again:
        for name in order:
            again.execute(by_name[name])
        assert catalog(again) == catalog(shelf.database) - {("public", "late"), ("public", "late_pkey")}
        assert again.execute("SELECT obj_description('customers'::regclass)") == [("who buys",)]
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            again.execute("INSERT INTO sales.\"Orders\" VALUES (1, 7, 'bad')")


def catalog(database: TestDatabase) -> set[tuple[object, ...]]:
    return set(
        database.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('public', 'sales')"
        )
    )


def test_privileges_and_owners_are_those_of_the_source(shelf: Shelf) -> None:
    rows = shelf.show(f"SHOW BACKUP FROM '{shelf.id(0)}' IN '{{uri}}' WITH privileges")
    shown = {row["object_name"]: row for row in rows}
    user = shelf.database.execute("SELECT current_user")[0][0]
    assert shown["customers"]["owner"] == shown["Orders"]["owner"] == user
    assert 'TO "show_reader"' in str(shown["customers"]["privileges"])
    assert shown["Orders"]["privileges"] is None


def test_debug_ids_are_the_source_s_oids(shelf: Shelf) -> None:
    shown = shelf.show(f"SHOW BACKUP FROM '{shelf.id(2)}' IN '{{uri}}' WITH debug_ids")
    found = {(row["parent_schema_name"] or "", row["object_name"]): row["object_id"] for row in shown}
    wanted = [("", "sales"), ("", shelf.database.name), ("public", "customers"), ("sales", "Orders"), ("public", "ev"),
              ("public", "ev_2026"), ("public", "good"), ("public", "numbers"), ("public", "late")]  # fmt: skip
    assert {name: found[name] for name in wanted} == {name: shelf.oids[name] for name in wanted}
    orders = next(row for row in shown if row["object_name"] == "Orders")
    assert orders["database_id"] == shelf.oids["", shelf.database.name]
    assert orders["parent_schema_id"] == shelf.oids["", "sales"]


def test_columns_and_rows_are_the_same_in_every_format(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    statement = f"SHOW BACKUP SCHEMAS FROM '{shelf.id(0)}' IN '{shelf.uri}' WITH privileges, debug_ids, check_files"
    assert run(["sql", statement, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shown = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    columns = (
        "database_name", "database_id", "parent_schema_name", "parent_schema_id", "object_name", "object_id", *DEFAULTS[3:],
        "create_statement", "privileges", "owner", "file_bytes", *LAST,
    )  # fmt: skip
    assert tuple(shown[0]) == columns
    assert run(["sql", statement, "--format", "csv"]) == 0
    read = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert tuple(read[0]) == columns
    texts = [
        ["" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell) for cell in row]
        for row in found["rows"]
    ]
    assert read[1:] == texts
    assert run(["sql", statement]) == 0
    table = capsys.readouterr().out
    assert tuple(name.strip() for name in table.splitlines()[0].split("|")) == columns
    files = {row["object_name"]: row["file_bytes"] for row in shown}
    assert files["customers"] > 0
    assert (files["good"], files["half(integer)"]) == (0, None)


def test_of_an_encrypted_backup_everything_needs_the_passphrase(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    statement = "SHOW BACKUP SCHEMAS FROM LATEST IN '{uri}' WITH check_files, privileges, encryption_passphrase = '{key}'"
    shown = shelf.show(statement.format(uri="{uri}", key="one two three of no use"))
    assert "CREATE TABLE" in str(next(row for row in shown if row["object_name"] == "customers")["create_statement"])
    with pytest.raises(KeyMismatch):
        shelf.show(statement.format(uri="{uri}", key="other"))
    assert "encrypted" in refusal(capsys, 1, "sql", f"SHOW BACKUP SCHEMAS FROM LATEST IN '{shelf.uri}'")


def test_a_damaged_archive_is_told_by_what_reads_it(shelf: Shelf, tmp_path: Path) -> None:
    harmed = shelf.copy(tmp_path / "harmed")
    key = harmed.folder / shelf.layers[3].subdir / shelf.layers[3].databases[0].schema_dump.path
    key.write_bytes(b"x" * key.stat().st_size)
    assert harmed.show(f"SHOW BACKUP FROM '{shelf.id(3)}' IN '{{uri}}'")
    for variant in ("SCHEMAS FROM '{}' IN '{{uri}}'", "FROM '{}' IN '{{uri}}' WITH debug_ids"):
        with pytest.raises(Damaged):
            harmed.show(f"SHOW BACKUP {variant.format(shelf.id(3))}")
