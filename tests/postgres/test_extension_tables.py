"""The configuration tables of an extension: which of their rows a backup has, and what a restore makes of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.files import read_files
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.maintenance import compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import load_batch, plan_restore, restore_schema
from spanvault.errors import Refused
from spanvault.model.manifest import Manifest
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, SchemaTarget, TablePattern, TableTarget
from tests.kit.harness import Backup, Notes
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, drop_database, fresh_database

# Names are such that neither their order nor the sizes of the tables is the order in which foreign keys allow a load.
SCRIPT = """
    CREATE TABLE z_kind (id int PRIMARY KEY, name text NOT NULL, own boolean NOT NULL DEFAULT false,
                         twice int GENERATED ALWAYS AS (id * 2) STORED);
    INSERT INTO z_kind VALUES (1, 'built in', true), (2, 'also built in', true);
    CREATE TABLE a_rule (id serial PRIMARY KEY, kind int NOT NULL REFERENCES z_kind, up int REFERENCES a_rule, text text);
    CREATE TABLE "All, of it" (note text);
    INSERT INTO "All, of it" VALUES ('from the script'), ('from the script');
    CREATE TABLE unmarked (x int); INSERT INTO unmarked VALUES (1);
    CREATE UNLOGGED TABLE fleeting (x int);
    SELECT pg_catalog.pg_extension_config_dump('z_kind', 'WHERE NOT own OR id = 2');
    SELECT pg_catalog.pg_extension_config_dump('a_rule', '');
    SELECT pg_catalog.pg_extension_config_dump('a_rule_id_seq', '');
    SELECT pg_catalog.pg_extension_config_dump('"All, of it"', '');
    SELECT pg_catalog.pg_extension_config_dump('fleeting', '');
"""
TABLES = ("z_kind", "a_rule", '"All, of it"', "unmarked", "plain")
FILLED = """
    CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1);
    INSERT INTO cfg.z_kind SELECT i, 'mine ' || i FROM generate_series(10, 12) i;
    INSERT INTO cfg.a_rule (kind, up, text)
        SELECT 10 + i % 3, nullif(i - 1, 0), repeat(md5(i::text), 20) FROM generate_series(1, 2000) i;
    DELETE FROM cfg."All, of it" WHERE ctid = '(0,1)'; INSERT INTO cfg."All, of it" VALUES ('mine');
    INSERT INTO cfg.unmarked VALUES (2)
"""


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[PostgresServer]:
    """A server that finds the extension `settled`."""
    folder = servers_folder / "share" / "extension"
    folder.mkdir(parents=True)
    (folder / "settled.control").write_text("default_version = '1'\nrelocatable = false\nschema = cfg\n")
    (folder / "settled--1.sql").write_text(SCRIPT)
    settings = {**SOURCE_SETTINGS, "extension_control_path": f"{folder.parent}:$system"}
    with PostgresServer(servers_folder / "configured", settings=settings) as running:
        yield running


Rows = dict[str, list[str]]


def rows_of(database: TestDatabase) -> Rows:
    """Every row, as PostgreSQL prints it, and the sequence."""
    with database.connect() as session:
        session.execute("SET search_path = cfg, public")
        found = {table: [row[0] for row in session.execute(f"SELECT t::text FROM {table} t ORDER BY 1")] for table in TABLES}
        return {**found, "sequence": [str(session.execute("SELECT last_value, is_called FROM a_rule_id_seq").fetchone())]}


@dataclass
class Chain:
    """A full, a layer with changes of two tables and a moment between them, a layer without any; and the source then."""

    backup: Backup
    layers: list[Manifest] = field(default_factory=list)
    seen: list[Rows] = field(default_factory=list)
    inner: datetime | None = None

    def add(self, manifest: Manifest) -> None:
        """A layer has just been taken."""
        self.layers.append(manifest)
        self.seen.append(rows_of(self.backup.database))


@pytest.fixture(scope="module")
def chain(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The chain."""
    with fresh_database(server) as source:
        source.execute("CREATE EXTENSION settled CASCADE; " + FILLED)
        made = Chain(Backup(source, tmp_path_factory.mktemp("configured") / "c"))
        made.add(made.backup.take())
        source.execute("INSERT INTO plain VALUES (2); UPDATE cfg.a_rule SET text = 'changed' WHERE id % 7 = 0")
        time.sleep(0.01)
        made.inner = source.execute("SELECT clock_timestamp()")[0][0]
        time.sleep(0.01)
        source.execute(
            "INSERT INTO plain VALUES (3); DELETE FROM cfg.a_rule WHERE id = 2000; INSERT INTO cfg.z_kind VALUES (13, 'new')"
        )
        made.add(made.backup.increment(revision_history=True))
        made.add(made.backup.increment(revision_history=True))
        yield made


@pytest.fixture
def target(chain: Chain) -> Iterator[TestDatabase]:
    """The name of a database that does not exist yet."""
    made = TestDatabase(chain.backup.database.server, f"{chain.backup.database.name}_r")
    yield made
    drop_database(made.server, made.name)


def request_of(chain: Chain, target: TestDatabase, as_of: Any = None, **options: Any) -> RestoreRequest:
    """The whole database under another name."""
    chosen = RestoreOptions(**{"new_db_name": target.name, "verify_fingerprint": True, "workers": 4, **options})
    what = DatabaseTarget(names=(chain.backup.database.name,))
    return RestoreRequest(target=what, collection=chain.backup.uri, as_of=as_of, options=chosen)


def restored(chain: Chain, target: TestDatabase, as_of: Any = None, **options: Any) -> list[str]:
    """Restore; the notes."""
    notes = Notes()
    run_restore(Context(progress=notes), target.cluster, request_of(chain, target, as_of, **options), processes=False)
    return notes.notes


def expected(seen: Rows) -> Rows:
    """What a restore makes of the source: what is not marked is as CREATE EXTENSION makes it."""
    return {**seen, "unmarked": ["(1)"]}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_users_rows_come_back_beside_the_extensions_own(chain: Chain, target: TestDatabase, number: int) -> None:
    assert len(chain.seen[0]["z_kind"]) == 5, "as FILLED says"
    assert set(chain.seen[0]['"All, of it"']) == {"(mine)", '("from the script")'}, "as FILLED says"
    restored(chain, target, chain.layers[number].end.lsn)
    assert rows_of(target) == expected(chain.seen[number])
    assert target.execute("INSERT INTO cfg.a_rule (kind) VALUES (10) RETURNING id")[0][0] == 2001
    assert target.execute("SELECT extname FROM pg_extension WHERE extname = 'settled'") == [("settled",)]


def test_only_tables_that_changed_are_stored_again(chain: Chain) -> None:
    names = {table.oid: table.name for table in chain.layers[0].databases[0].database.tables}
    stored = [
        {names[file.table_oid] for file in read_files(chain.backup.storage, one.subdir, one.files) if file.role == "exact"}
        for one in chain.layers
    ]
    assert stored == [{"z_kind", "a_rule", "All, of it"}, {"z_kind", "a_rule"}, set()]


def test_inside_a_layer_they_are_as_of_the_reading_before(chain: Chain, target: TestDatabase) -> None:
    notes = " ".join(restored(chain, target, chain.inner))
    assert rows_of(target) == expected({**chain.seen[0], "plain": ["(1)", "(2)"]})
    assert "cfg.a_rule" in notes and "cfg.z_kind" in notes
    with pytest.raises(Refused, match=r"strict takes nothing from elsewhere: .*cfg\.a_rule"):
        restored(chain, target, chain.inner, strict=True)


def test_a_load_goes_on_in_any_process_and_keeps_their_order(chain: Chain, target: TestDatabase) -> None:
    request = plan_restore(Context(), target.cluster, request_of(chain, target)).request
    plan = plan_restore(Context(), target.cluster, request)
    first = [chain.layers[2].databases[0].database.table(unit.table_oid) for unit in plan.batches[0].units]
    names = [table.name for table in first if table is not None]
    assert sorted(names) == ["All, of it", "a_rule", "z_kind"] and names.index("z_kind") < names.index("a_rule")
    restore_schema(Context(), target.cluster, request)
    for _ in range(2):
        for batch in plan.batches:
            load_batch(Context(), target.cluster, request, batch.index)
    run_restore(Context(), target.cluster, request, processes=False)
    assert rows_of(target) == expected(chain.seen[2])


def test_schema_only_leaves_the_extensions_own_rows(chain: Chain, target: TestDatabase) -> None:
    restored(chain, target, schema_only=True, verify_fingerprint=False)
    made = rows_of(target)
    assert (made["z_kind"], made["a_rule"], made["plain"]) == (['(1,"built in",t,2)', '(2,"also built in",t,4)'], [], [])
    assert made["sequence"] == ["(1, False)"]


def test_parts_have_none_and_say_so(chain: Chain, tmp_path: Path) -> None:
    source = chain.backup.database
    what = TableTarget(patterns=(TablePattern(database=source.name, name="plain"),))
    with fresh_database(source.server) as into:
        notes = Notes()
        request = RestoreRequest(target=what, collection=chain.backup.uri, options=RestoreOptions(into_db=into.name))
        run_restore(Context(progress=notes), source.cluster, request, processes=False)
        assert into.execute("SELECT count(*) FROM plain") == [(3,)]
        said = f"Of {source.name} no rows of configuration tables (settled) are restored: these come with whole databases only."
        assert said in notes.notes
    schema = Backup(source, tmp_path / "c", target=SchemaTarget(names=((source.name, "cfg"),)))
    (entry,) = schema.take().databases
    assert entry.tables == ()
    assert entry.omitted == (
        "the rows of 1 unlogged table (definitions are kept)",
        "the configuration tables of 1 extension (only a backup of the whole database has them)",
    )


def test_a_compacted_layer_has_those_of_its_end(chain: Chain, target: TestDatabase) -> None:
    """Last, as it adds to the chain."""
    compact_backups(Context(), chain.backup.uri, "LATEST", first=0, number=2)
    assert plan_restore(Context(), target.cluster, request_of(chain, target)).layers == ("0-2",)
    restored(chain, target)
    assert rows_of(target) == expected(chain.seen[2])
