"""A server that dies under a step: the step can be tried again. A server that forbids it: it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from spanvault.config.clusters import cluster_from_url
from spanvault.database.postgres.target import one_at_a_time
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.maintenance import protection_list, protection_release
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import plan_restore
from spanvault.errors import BadInput, Retryable
from spanvault.model.request import BackupOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.fault_database import faulty_database
from tests.kit.faults import Faults
from tests.kit.harness import Backup
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database

pytestmark = pytest.mark.slow


@pytest.fixture
def server(servers_folder: Path, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server of one test, which may kill it."""
    with PostgresServer(servers_folder / f"lost-{request.node.name}", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture
def shop(server: PostgresServer) -> Iterator[TestDatabase]:
    """A database on `server` whose index takes a minute to make while the role `slowly` exists."""
    with fresh_database(server, "shop") as database:
        database.execute(
            "create table item (id int primary key, name text);"
            "insert into item select i, 'item ' || i from generate_series(1, 500) i;"
            "create function slow(int) returns int immutable language plpgsql as $$ begin"
            " if exists (select from pg_roles where rolname = 'slowly') then perform pg_sleep(60); end if; return $1; end $$;"
            "create index on item (slow(id))"
        )
        yield database


@contextmanager
def killed_when(server: PostgresServer, seen: str) -> Iterator[None]:
    """Kill the server as soon as `seen` holds for a session of pg_stat_activity; it runs again after the block."""

    over = threading.Event()

    def watch() -> None:
        with psycopg.connect(server.url(), autocommit=True) as session:
            while not over.is_set() and not session.execute(f"select from pg_stat_activity where {seen}".encode()).fetchall():
                session.execute("select pg_stat_clear_snapshot()")
        server.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        server.start()


@pytest.fixture
def restoring(shop: TestDatabase, tmp_path: Path) -> Iterator[tuple[TestDatabase, RestoreRequest]]:
    """An empty database, and a request that restores a backup of `shop` into it."""
    backup = Backup(shop, tmp_path / "c")
    backup.take()
    with fresh_database(shop.server, "copy") as copy:
        options = RestoreOptions(new_db_name=copy.name)
        yield copy, RestoreRequest(target=DatabaseTarget(names=(shop.name,)), collection=backup.uri, options=options)


def test_killed_while_the_backup_is_planned(shop: TestDatabase, tmp_path: Path) -> None:
    backup = Backup(shop, tmp_path / "c")
    waits = "application_name = 'spanvault plan' and wait_event_type = 'Lock'"
    with shop.connect(autocommit=False) as writer:
        writer.execute("insert into item values (0, 'a transaction that the protection waits for')")
        with pytest.raises(Retryable, match="Planning the backup failed"), killed_when(shop.server, waits):
            backup.take()
        writer.close()
    assert backup.take().totals.rows == 500


def clean_restart(server: PostgresServer) -> None:
    """As `pg_ctl restart -m fast` does it."""
    server.restart()


def crash(server: PostgresServer) -> None:
    """kill -9 of all processes, and a start that recovers."""
    server.kill()
    server.start()


def receipts(backup: Backup) -> dict[Path, int]:
    """The finished spans, and when each was."""
    return {path: path.stat().st_mtime_ns for path in backup.folder.rglob("progress/*.json")}


@pytest.mark.parametrize("stopped", [clean_restart, crash])
def test_a_restart_in_the_middle_of_an_export(
    shop: TestDatabase, tmp_path: Path, stopped: Callable[[PostgresServer], None]
) -> None:
    """What has a receipt is not read again, and what is written between the tries comes from the log."""
    shop.execute("insert into item select i, repeat(md5(i::text), 4) from generate_series(501, 30000) i")
    options = BackupOptions(span_bytes=1 << 20, workers=1)
    backup, again = (Backup(shop, tmp_path / "c", options=options) for _ in range(2))
    faults = Faults()
    with faulty_database(faults):
        faults.add_fault("database.copy.chunk", key="export:*", nth=9, action=lambda: stopped(shop.server))
        with pytest.raises(Retryable, match=r"failed: .*\.$"):
            backup.take()
    finished = receipts(backup)
    assert 0 < len(finished) == backup.visits["export.after_receipt"]
    shop.execute("update item set name = 'changed' where id % 7 = 0; delete from item where id % 1000 = 3")
    shop.execute("insert into item values (-1, 'new')")
    again.take()
    assert again.visits["export.before_span"] == len(receipts(again)) - len(finished) > 0
    assert finished.items() <= receipts(again).items()
    with fresh_database(shop.server, "copy") as copy:
        request = RestoreRequest(
            target=DatabaseTarget(names=(shop.name,)), collection=again.uri, options=RestoreOptions(new_db_name=copy.name)
        )
        run_restore(Context(), copy.cluster, request, processes=False)
        rows = "select * from item order by id"
        assert copy.execute(rows) == shop.execute(rows)
    shop.execute("update item set name = 'later' where id = 1")
    assert again.rows(again.increment(), "item") == again.source_rows("item")


def test_killed_while_the_backup_is_sealed(shop: TestDatabase, tmp_path: Path) -> None:
    with pytest.raises(Retryable):
        Backup(shop, tmp_path / "c", at={"seal.after_snapshot": shop.server.kill}).take()
    shop.server.start()
    assert Backup(shop, tmp_path / "c").take().totals.rows == 500


def test_killed_while_the_schema_is_restored(restoring: tuple[TestDatabase, RestoreRequest]) -> None:
    copy, request = restoring
    waits = "application_name like 'spanvault restore %' and wait_event = 'advisory'"
    restore_id = plan_restore(Context(), copy.cluster, request).id
    with copy.connect() as other, one_at_a_time(other, restore_id):  # as another process's step does
        with pytest.raises(Retryable, match="Restoring the schema failed"), killed_when(copy.server, waits):
            run_restore(Context(), copy.cluster, request, processes=False)
        other.close()
    run_restore(Context(), copy.cluster, request, processes=False)
    assert copy.execute("select count(*) from item") == [(500,)]


def test_killed_while_an_index_is_made(restoring: tuple[TestDatabase, RestoreRequest]) -> None:
    copy, request = restoring
    copy.execute("create role slowly")
    sleeps = "application_name like 'spanvault finish %' and wait_event = 'PgSleep'"
    with pytest.raises(Retryable), killed_when(copy.server, sleeps):
        run_restore(Context(), copy.cluster, request, processes=False)
    copy.execute("drop role slowly")
    run_restore(Context(), copy.cluster, request, processes=False)
    assert copy.execute("select count(*) from item") == [(500,)]
    assert copy.execute("select count(*) from pg_indexes where tablename = 'item'") == [(2,)]


@pytest.fixture
def stranger(postgres: PostgresServer) -> Iterator[str]:
    """A role that may log in and nothing else."""
    with psycopg.connect(postgres.url(), autocommit=True) as control:
        control.execute("create role stranger login")
        yield "stranger"
        control.execute("drop role stranger")


def test_what_the_server_forbids_is_bad_input(database: TestDatabase, stranger: str, tmp_path: Path) -> None:
    database.execute("create table item (id int primary key)")
    Backup(database, tmp_path / "c").take()
    cluster = cluster_from_url(f"postgresql://{stranger}@127.0.0.1:{database.server.port}/{database.name}")
    (slot,) = database.execute("select slot_name from pg_replication_slots where database = current_database()")[0]
    with pytest.raises(BadInput, match=f"{slot} failed: permission denied"):
        protection_release(Context(), cluster, slot)
    assert database.execute("select count(*) from pg_replication_slots where database = current_database()") == [(1,)]

    database.execute(f"revoke connect on database {database.name} from public")
    with pytest.raises(BadInput, match="permission denied for database"):
        protection_list(Context(), cluster)
