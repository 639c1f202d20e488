"""A whole cluster, with its roles, into a fresh server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.database.postgres.target import PROGRESS_SCHEMA
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import finish_restore, load_batch, plan_restore, restore_schema
from spanvault.errors import AlreadyExists, BadInput
from spanvault.model.progress import Silent
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase

ROLES = """
    CREATE ROLE "strange; owner" LOGIN PASSWORD 'it''s secret';
    CREATE ROLE reader NOLOGIN;
    GRANT reader TO "strange; owner";
    ALTER ROLE reader SET work_mem = '5MB';
    COMMENT ON ROLE reader IS 'reads; only';
"""
SHOP = """
    CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 1000) i;
    ALTER TABLE t OWNER TO "strange; owner";
    GRANT SELECT ON t TO reader;
    COMMENT ON DATABASE shop IS 'the shop';
    ALTER DATABASE shop SET work_mem = '6MB';
    GRANT CONNECT ON DATABASE shop TO reader;
"""


class Told(Silent):
    """Keeps what a restore tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def source(servers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, str]]:
    """A server with two databases, and the URI of its backup."""
    with PostgresServer(servers_folder / "whole", settings=SOURCE_SETTINGS) as server:
        main = TestDatabase(server, "postgres")
        main.execute(ROLES)
        main.execute('CREATE DATABASE shop OWNER "strange; owner"')
        main.execute('CREATE DATABASE "Second db"')
        TestDatabase(server, "shop").execute(SHOP)
        TestDatabase(server, "Second db").execute("CREATE TABLE s (x int); INSERT INTO s VALUES (1), (1)")
        uri = f"file://{tmp_path_factory.mktemp('collection')}"
        request = BackupRequest(target=ClusterTarget(), into=uri, options=BackupOptions(protection="none"))
        run_backup(Context(), main.cluster, request, processes=False)
        yield server, uri


@pytest.fixture
def empty(servers_folder: Path) -> Iterator[TestDatabase]:
    """The maintenance database of a server on which nothing is."""
    server = PostgresServer(servers_folder / "fresh", settings=SOURCE_SETTINGS)
    with server:
        yield TestDatabase(server, "postgres")
    server.remove()


def test_a_cluster_comes_back_with_roles_owners_and_grants(source: tuple[PostgresServer, str], empty: TestDatabase) -> None:
    server, uri = source
    request = RestoreRequest(target=ClusterTarget(), collection=uri)
    run_restore(Context(), empty.cluster, request, processes=False)
    for name, query in [
        ("shop", "SELECT t::text FROM t ORDER BY id"),
        ("Second db", "SELECT * FROM s"),
        ("shop", "SELECT relowner::regrole::text, relacl::text FROM pg_class WHERE relname = 't'"),
        ("shop", "SELECT shobj_description(oid, 'pg_database'), datdba::regrole::text, datacl::text FROM pg_database"
                 " WHERE datname = 'shop'"),
        ("shop", "SHOW work_mem"),
        ("postgres", "SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1"),
        ("postgres", "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'reader'"),
        ("postgres", "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members"
                     " WHERE roleid = 'reader'::regrole"),
        ("postgres", "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'reader'::regrole"),
    ]:  # fmt: skip
        restored = TestDatabase(empty.server, name).execute(query)
        assert restored == TestDatabase(server, name).execute(query)
        assert restored
    with pytest.raises(AlreadyExists, match="is not empty"):
        run_restore(Context(), empty.cluster, request, processes=False)


def test_a_cluster_with_databases_is_refused(source: tuple[PostgresServer, str], empty: TestDatabase) -> None:
    empty.execute("CREATE DATABASE theirs")
    with pytest.raises(AlreadyExists, match="only into a cluster without user databases, and this one has theirs"):
        run_restore(Context(), empty.cluster, RestoreRequest(target=ClusterTarget(), collection=source[1]), processes=False)
    assert empty.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader'") == [], "nothing was done"
    assert empty.execute("SELECT 1 FROM pg_database WHERE datname = 'shop'") == []


def test_an_end_that_was_interrupted_between_databases_goes_on(source: tuple[PostgresServer, str], empty: TestDatabase) -> None:
    request = RestoreRequest(target=ClusterTarget(), collection=source[1])
    plan = plan_restore(Context(), empty.cluster, request)
    restore_schema(Context(), empty.cluster, plan.request)
    for batch in plan.batches:
        load_batch(Context(), empty.cluster, plan.request, batch.index)
    # As a kill leaves it that comes when all databases are finished and some have forgotten the restore.
    names = [database.target for database in plan.databases]
    kept = TestDatabase(empty.server, names[-1])
    records = kept.execute(f"SELECT id, source, made_database, entries FROM {PROGRESS_SCHEMA}.restores")
    finish_restore(Context(), empty.cluster, plan.request)
    kept.execute(f"""
        CREATE SCHEMA {PROGRESS_SCHEMA};
        CREATE TABLE {PROGRESS_SCHEMA}.restores (id text PRIMARY KEY, source text, made_database boolean, entries int8[],
                                                state text, started_at timestamptz DEFAULT now());
    """)
    kept.execute(f"INSERT INTO {PROGRESS_SCHEMA}.restores VALUES (%s, %s, %s, %s, 'finished')", records[0])
    run_restore(Context(), empty.cluster, request, processes=False)
    assert kept.execute("SELECT to_regnamespace(%s)", [PROGRESS_SCHEMA]) == [(None,)]
    assert TestDatabase(empty.server, "shop").execute("SELECT count(*) FROM t") == [(1000,)]


def test_one_database_out_of_a_cluster_belongs_to_who_restores_it(
    source: tuple[PostgresServer, str], empty: TestDatabase
) -> None:
    request = RestoreRequest(target=DatabaseTarget(names=("shop",)), collection=source[1])
    run_restore(Context(), empty.cluster, request, processes=False)
    shop = TestDatabase(empty.server, "shop")
    assert shop.execute("SELECT relowner::regrole::text, relacl FROM pg_class WHERE relname = 't'") == [("postgres", None)]
    assert shop.execute("SELECT count(*) FROM t") == [(1000,)]


def test_grants_come_back_for_roles_that_are_there(source: tuple[PostgresServer, str], empty: TestDatabase) -> None:
    told = Told()
    for name, roles in [("without", ""), ("copy", 'CREATE ROLE "strange; owner"; CREATE ROLE reader')]:
        empty.execute(roles)
        options = RestoreOptions(grants=True, new_db_name=name, on_failure="clean")
        request = RestoreRequest(target=DatabaseTarget(names=("shop",)), collection=source[1], options=options)
        run_restore(Context(progress=told), empty.cluster, request, processes=False)
    query = "SELECT relowner::regrole::text, relacl::text FROM pg_class WHERE relname = 't'"
    assert TestDatabase(empty.server, "copy").execute(query) == TestDatabase(source[0], "shop").execute(query)
    assert TestDatabase(empty.server, "without").execute(query) == [("postgres", None)]
    assert [note.partition(":")[0] for note in told.notes if "no role" in note] == [
        "The target has no role reader", "The target has no role strange; owner"
    ]  # fmt: skip


def test_a_smaller_backup_is_no_cluster(source: tuple[PostgresServer, str], empty: TestDatabase, tmp_path: Path) -> None:
    main = TestDatabase(source[0], "postgres")
    uri = f"file://{tmp_path}"
    backup = BackupRequest(target=DatabaseTarget(names=("shop",)), into=uri, options=BackupOptions(protection="none"))
    run_backup(Context(), main.cluster, backup, processes=False)
    with pytest.raises(BadInput, match="is not of a whole cluster"):
        run_restore(Context(), empty.cluster, RestoreRequest(target=ClusterTarget(), collection=uri), processes=False)
