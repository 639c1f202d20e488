"""Every kind of object comes back: PostgreSQL's own dumps of the source and of what was restored are the same text.

What may differ stands in tests/kit/dumps.py. The rows that the zoo's event triggers write are compared apart: the backup's own
commands on the source fire them too, the last of them behind the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget
from tests.kit.dumps import database_text, globals_text
from tests.kit.harness import Notes
from tests.kit.object_zoo import pieces
from tests.kit.object_zoo_outside import CHANGES, CLUSTER, DATABASE
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase

pytestmark = pytest.mark.slow

TABLESPACES = ("fast", "odd; space", "nowhere")
IN_TABLESPACES = """
CREATE TABLE zoo.spaced (id int PRIMARY KEY USING INDEX TABLESPACE fast, v text) TABLESPACE "odd; space";
INSERT INTO zoo.spaced VALUES (1, 'x');
CREATE INDEX spaced_v ON zoo.spaced (v) TABLESPACE fast;
CREATE MATERIALIZED VIEW zoo.spaced_view TABLESPACE fast AS SELECT * FROM zoo.spaced;
CREATE TABLE zoo.spaced_parts (id int) PARTITION BY LIST (id) TABLESPACE fast;
CREATE TABLE zoo.spaced_part PARTITION OF zoo.spaced_parts FOR VALUES IN (1);
"""
# Rows hashed by an enum lie in other partitions in every database.
COMPARED = ("--exclude-table-data=zoo.ddl*", "--exclude-table-data=zoo.by_hash*")


def run_pieces(database: TestDatabase, *texts: str) -> None:
    for text in texts:
        with psycopg.connect(database.url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(text.encode())


def make_tablespaces(server: PostgresServer, *names: str) -> None:
    with TestDatabase(server, "postgres").connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        for name in names:
            connection.execute(f"CREATE TABLESPACE \"{name}\" LOCATION ''".encode())
            connection.execute(f'GRANT CREATE ON TABLESPACE "{name}" TO PUBLIC'.encode())


class Zoo:
    """The source, its two backups, and what its dumps said at the end of each."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.main, self.database = TestDatabase(server, "postgres"), TestDatabase(server, "zoo")
        self.uri, self.notes = f"file://{folder}", Notes()
        make_tablespaces(server, *TABLESPACES)
        run_pieces(self.main, CLUSTER)
        self.main.execute("CREATE DATABASE zoo TEMPLATE template0 TABLESPACE nowhere")
        run_pieces(self.database, *pieces(18, icu=False).values())
        run_pieces(self.main, DATABASE.format(name="zoo"))
        self.full, self.at_full = self._take(append=None)
        run_pieces(self.database, IN_TABLESPACES, CHANGES)
        self._take(append="LATEST")
        # Nothing but a setting of the database, which no catalog of its own knows.
        self.main.execute("ALTER DATABASE zoo SET work_mem = '8MB'")
        self.last, self.at_end = self._take(append="LATEST")

    def _take(self, append: str | None) -> tuple[Manifest, str]:
        options = BackupOptions(protection="1h")
        request = BackupRequest(target=ClusterTarget(), into=self.uri, append=append, options=options)
        manifest = run_backup(Context(progress=self.notes), self.main.cluster, request, processes=False)
        return manifest, database_text(self.database, *COMPARED)

    def restore(self, name: str, **options: object) -> tuple[TestDatabase, list[str]]:
        """The zoo as it was at the chain's end, in a new database of the same server, and the restore's notes."""
        manifest = options.pop("at", self.last)
        assert isinstance(manifest, Manifest)
        request = RestoreRequest(
            target=DatabaseTarget(names=("zoo",)),
            collection=self.uri,
            as_of=manifest.end.lsn,
            options=RestoreOptions.model_validate({"new_db_name": name, **options}),
        )
        notes = Notes()
        run_restore(Context(progress=notes), self.main.cluster, request, processes=False)
        return TestDatabase(self.database.server, name), notes.notes


@pytest.fixture(scope="module")
def zoo(servers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    with PostgresServer(servers_folder / "zoo", settings=SOURCE_SETTINGS) as server:
        yield Zoo(server, tmp_path_factory.mktemp("zoo"))


def check_other_rows(source: TestDatabase, restored: TestDatabase, renamed: str = "green") -> None:
    """No command of the restore fired a restored event trigger, and rows hashed by an enum are there, in whatever partition."""
    hashed = "SELECT replace(c::text, 'grass', '{}'), n FROM zoo.by_hash ORDER BY 1, 2"
    assert restored.execute(hashed.format(renamed)) == source.execute(hashed.format(renamed))
    assert len(restored.execute(hashed)) == 12
    query = "SELECT n, tag, event FROM zoo.ddl ORDER BY n"
    rows = restored.execute(query)
    assert rows
    assert rows == source.execute(query)[: len(rows)]


def test_all_comes_back_from_a_full_backup_under_another_name(zoo: Zoo) -> None:
    restored, notes = zoo.restore("zoo of the full", at=zoo.full, grants=True, verify_fingerprint=True)
    assert database_text(restored, *COMPARED) == zoo.at_full
    check_other_rows(zoo.database, restored)
    assert any("Restored empty" in note and "zoo.scratch" in note for note in notes)
    assert any("Subscriptions come back disabled" in note and "theirs_too" in note for note in notes)
    assert any("may have moved to another partition: zoo.by_hash_0" in note for note in notes)
    assert any("1 unlogged table " in note for note in zoo.notes.notes), "said at the backup, too"


def test_all_comes_back_from_incrementals_in_which_objects_changed(zoo: Zoo) -> None:
    restored, notes = zoo.restore("zoo_later", grants=True)
    assert database_text(restored, *COMPARED) == zoo.at_end
    check_other_rows(zoo.database, restored)
    settings = "SELECT setting FROM pg_db_role_setting, unnest(setconfig) setting WHERE setdatabase = {} ORDER BY setrole, 1"
    own = "(SELECT oid FROM pg_database WHERE datname = current_database())"
    assert restored.execute(settings.format(own)) == zoo.database.execute(settings.format(own))
    assert ("work_mem=8MB",) in restored.execute(settings.format(own)), "changed in a layer that had no other change"
    assert restored.execute("SELECT subname, subenabled FROM pg_subscription WHERE subdbid = " + own + " ORDER BY 1") == [
        ("theirs_too", False),
        ("without_slot", False),
    ]
    assert [note for note in notes if "a_second" in note], "reads a view that was unfilled: it says so and goes on"


def test_a_whole_cluster_comes_back_with_what_belongs_to_no_database(zoo: Zoo, servers_folder: Path) -> None:
    with PostgresServer(servers_folder / "fresh", settings=SOURCE_SETTINGS) as server:
        make_tablespaces(server, "fast", "odd; space")
        main, notes = TestDatabase(server, "postgres"), Notes()
        request = RestoreRequest(target=ClusterTarget(), collection=zoo.uri)
        run_restore(Context(progress=notes), main.cluster, request, processes=False)
        missing = "CREATE TABLESPACE nowhere", "TABLESPACE nowhere"
        here = globals_text(main)
        there = [
            line for line in globals_text(zoo.main).splitlines() if not any(text in line.replace('"', "") for text in missing)
        ]
        assert [line for line in here.splitlines() if line] == [line for line in there if line]
        restored = TestDatabase(server, "zoo")
        source = database_text(zoo.database, "--create", *COMPARED)
        assert database_text(restored, "--create", *COMPARED) == source.replace(' TABLESPACE = "nowhere"', "")
        assert 'SET default_tablespace = "odd; space"' in source, "and so tablespaces of tables and indexes were compared"
        check_other_rows(zoo.database, restored)
        assert [note for note in notes.notes if "no tablespace nowhere" in note]
