"""A person's mistakes at the command line, against real servers: one sentence, the right exit code, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from spanvault.cli.main import run
from spanvault.embedded.ports import free_ports
from spanvault.embedded.postgres import PostgresServer
from tests.kit.command_line import answer, refusal
from tests.kit.servers import TestDatabase, fresh_database

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shop(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A database with one small table."""
    with fresh_database(postgres) as database:
        database.execute("create table item (id int primary key, name text); insert into item values (1, 'tea'), (2, 'salt')")
        yield database


@pytest.fixture(scope="module")
def backup(shop: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The collection of a backup of `shop`."""
    uri = f"file://{tmp_path_factory.mktemp('collection')}"
    assert run(["sql", "--url", shop.url, f"BACKUP DATABASE {shop.name} INTO '{uri}' WITH protection = 'none'"]) == 0
    return uri


@pytest.fixture
def guarded(postgres: PostgresServer) -> Iterator[str]:
    """A role that must give the password `s3cret` to log in."""
    role = "guarded"
    hba = postgres.data / "pg_hba.conf"
    before = hba.read_text()
    with psycopg.connect(postgres.url(), autocommit=True) as control:
        control.execute(sql.SQL("create role {} superuser login password 's3cret'").format(sql.Identifier(role)))
        hba.write_text(f"host all {role} all scram-sha-256\n{before}")
        control.execute("select pg_reload_conf()")
        yield role
        hba.write_text(before)
        control.execute("select pg_reload_conf()")
        control.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_a_server_that_is_not_there(capsys: Captured, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"postgresql://me:hunter2@127.0.0.1:{port}/shop"
    message = refusal(capsys, 1, "sql", "--url", url, f"BACKUP INTO 'file://{tmp_path}/b'")
    assert f"127.0.0.1:{port}" in message
    assert "cannot be reached" in message
    assert "hunter2" not in message
    assert not (tmp_path / "b").exists()


def test_a_database_that_is_not_there(capsys: Captured, shop: TestDatabase, tmp_path: Path) -> None:
    message = refusal(capsys, 2, "sql", "--url", shop.server.url("shpo"), f"BACKUP DATABASE shpo INTO 'file://{tmp_path}/b'")
    assert 'database "shpo" does not exist' in message
    message = refusal(capsys, 2, "sql", "--url", shop.url, f"BACKUP DATABASE shpo INTO 'file://{tmp_path}/b'")
    assert "no database 'shpo'" in message


@pytest.mark.parametrize("target", ["TABLE itm", "SCHEMA nowhere", "TABLE nowhere.*"])
def test_a_target_that_is_not_there(target: str, capsys: Captured, shop: TestDatabase, tmp_path: Path) -> None:
    message = refusal(capsys, 2, "sql", "--url", shop.url, f"BACKUP {target} INTO 'file://{tmp_path}/b'")
    assert target.split()[1].split(".", maxsplit=1)[0] in message


def test_a_wrong_password_and_the_ways_to_give_the_right_one(
    guarded: str, shop: TestDatabase, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = shop.server.port
    passwords = tmp_path / "pgpass"
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    at = ("--url", f"postgresql://{guarded}@127.0.0.1:{port}/{shop.name}")
    assert "no password supplied" in refusal(capsys, 2, "cluster", "preflight", *at)

    monkeypatch.setenv("PGPASSWORD", "hunter2")
    message = refusal(capsys, 2, "cluster", "preflight", *at)
    assert "password authentication failed" in message
    assert "hunter2" not in message

    # A backup reads through more than one kind of connection.
    backup = f"BACKUP DATABASE {shop.name} INTO 'file://{tmp_path}/collection' WITH protection = 'none'"
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    assert len(answer(capsys, "sql", *at, backup)) == 1

    monkeypatch.delenv("PGPASSWORD")
    passwords.write_text(f"127.0.0.1:{port}:*:{guarded}:s3cret\n")
    passwords.chmod(0o600)
    assert len(answer(capsys, "sql", *at, backup)) == 1


def test_a_cluster_by_its_name_takes_its_password_from_its_connection(
    guarded: str, shop: TestDatabase, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.delenv("SPANVAULT_CLUSTERS_FILE", raising=False)
    preflight = ("cluster", "preflight", "--cluster", "shop")
    assert "set SPANVAULT_CLUSTERS_FILE" in refusal(capsys, 2, *preflight)

    clusters = tmp_path / "clusters.yaml"
    monkeypatch.setenv("SPANVAULT_CLUSTERS_FILE", str(clusters))
    assert str(clusters) in refusal(capsys, 2, *preflight)
    clusters.write_text("clusters:\n  shop:\n    nodes:\n      - name: one\n        conn_id: shop_db\n")
    assert "set AIRFLOW_CONN_SHOP_DB" in refusal(capsys, 2, *preflight)
    assert "it has shop" in refusal(capsys, 2, "cluster", "preflight", "--cluster", "shpo")

    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", f"postgresql://{guarded}:hunter2@127.0.0.1:{shop.server.port}/{shop.name}")
    message = refusal(capsys, 2, *preflight)
    assert "password authentication failed" in message
    assert "hunter2" not in message
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", f"postgresql://{guarded}:s3cret@127.0.0.1:{shop.server.port}/{shop.name}")
    assert answer(capsys, *preflight)


@pytest.mark.parametrize(
    "statement", ["SHOW BACKUPS IN '{uri}'", "SHOW BACKUP LATEST IN '{uri}'", "RESTORE DATABASE x FROM LATEST IN '{uri}'"]
)
def test_a_collection_that_is_not_there(statement: str, capsys: Captured, database: TestDatabase, tmp_path: Path) -> None:
    message = refusal(capsys, 2, "sql", "--url", database.url, statement.format(uri=f"file://{tmp_path}/none"))
    assert f"{tmp_path}/none" in message


def test_a_collection_command_on_an_empty_place(capsys: Captured, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/none"
    for command in (["check"], ["check", "--level", "checksums"], ["rebuild-index"], ["sweep"], ["windows"]):
        refusal(capsys, 2, "collection", *command, place)
    for chain in ([], ["2026/11/22-143000.00"], ["LATEST", "--full"]):
        refusal(capsys, 2, "collection", "compact", place, *chain)
    assert not (tmp_path / "none").exists()


def test_a_chain_to_compact_that_is_not_there(capsys: Captured, backup: str) -> None:
    assert "2020/01/01-000000.00" in refusal(capsys, 2, "collection", "compact", backup, "2020/01/01-000000.00")
    assert "'yesterday' is not a backup's path" in refusal(capsys, 2, "collection", "compact", backup, "yesterday")


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("s4://bucket/path", "unknown scheme 's4'"),
        ("bucket/path", "no scheme"),
        ("s3://bucket/p?aws_region=x", "upper case"),
        ("s3://bucket/p?AWS_SECRET_ACCESS_KEY=hunter2", "AWS_ACCESS_KEY_ID is not set"),
        ("file://relative/path", "three slashes"),
        ("s3://bucket/p?conn_id=nobody", "AIRFLOW_CONN_NOBODY"),
    ],
)
def test_a_uri_of_a_wrong_form(uri: str, part: str, capsys: Captured) -> None:
    message = refusal(capsys, 2, "sql", f"SHOW BACKUPS IN '{uri}'")
    assert part in message
    assert "hunter2" not in message


def test_a_backup_that_is_not_there(capsys: Captured, backup: str) -> None:
    assert "2020/01/01-000000.00" in refusal(capsys, 2, "sql", f"SHOW BACKUP '2020/01/01-000000.00' IN '{backup}'")
    assert "'yesterday' is not a backup's path" in refusal(capsys, 2, "sql", f"SHOW BACKUP 'yesterday' IN '{backup}'")


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("RESTORE DATABASE {name} FROM LATEST IN '{uri}'", "is not empty"),
        ("RESTORE DATABASE {name} FROM LATEST IN '{uri}' WITH new_db_name = '{name}'", "is not empty"),
        ("RESTORE DATABASE other FROM LATEST IN '{uri}'", "no database 'other'"),
        ("RESTORE FROM LATEST IN '{uri}'", "not of a whole cluster"),
        ("RESTORE TABLE itm FROM LATEST IN '{uri}' WITH into_db = 'postgres'", "no table or view public.itm"),
        ("RESTORE TABLE item FROM LATEST IN '{uri}'", "item"),
        ("RESTORE TABLE item FROM LATEST IN '{uri}' WITH into_db = 'nowhere'", "nowhere"),
        (
            "RESTORE DATABASE {name} FROM LATEST IN '{uri}' AS OF SYSTEM TIME '2001-01-01' WITH new_db_name = 'x'",
            "the nearest restorable time is",
        ),
        (
            "RESTORE DATABASE {name} FROM LATEST IN '{uri}' AS OF SYSTEM TIME '0/1' WITH new_db_name = 'x'",
            "the nearest restorable position is",
        ),
    ],
)
def test_a_restore_that_cannot_be(statement: str, part: str, capsys: Captured, shop: TestDatabase, backup: str) -> None:
    message = refusal(capsys, 2, "sql", "--url", shop.url, statement.format(name=shop.name, uri=backup))
    assert part in message
    assert shop.execute("select count(*) from item") == [(2,)]


@pytest.mark.parametrize(
    ("statement", "code", "part"),
    [
        ("BACKUP DATABASE {name} INTO LATEST IN '{uri}/none'", 2, "/none"),
        ("BACKUP DATABASE {name} INTO '2020/01/01-000000.00' IN '{uri}'", 2, "2020/01/01-000000.00"),
        ("BACKUP TABLE item INTO LATEST IN '{uri}'", 2, "names the same targets as its full backup"),
        # Its protection was given up, so the log that an incremental needs is gone.
        ("BACKUP DATABASE {name} INTO LATEST IN '{uri}' WITH on_broken_chain = 'fail'", 1, "the chain ends at"),
        ("BACKUP DATABASE {name} INTO LATEST IN '{uri}' WITH incremental_location = 'ftp://h/x'", 2, "unknown scheme 'ftp'"),
    ],
)
def test_an_incremental_backup_that_cannot_be(
    statement: str, code: int, part: str, capsys: Captured, shop: TestDatabase, backup: str
) -> None:
    slots = "select slot_name from pg_replication_slots where database = current_database() order by 1"
    before = answer(capsys, "sql", f"SHOW BACKUP LATEST IN '{backup}'"), shop.execute(slots)
    assert part in refusal(capsys, code, "sql", "--url", shop.url, statement.format(name=shop.name, uri=backup))
    assert (answer(capsys, "sql", f"SHOW BACKUP LATEST IN '{backup}'"), shop.execute(slots)) == before


def test_a_protection_that_is_not_there(capsys: Captured, shop: TestDatabase) -> None:
    message = refusal(capsys, 2, "protection", "release", "--url", shop.url, "spanvault_nothing")
    assert "no protection 'spanvault_nothing'" in message


def test_a_place_that_another_cluster_s_backups_are_in(capsys: Captured, backup: str, servers_folder: Path) -> None:
    with PostgresServer(servers_folder / "other", settings={"wal_level": "logical"}) as other:
        message = refusal(capsys, 1, "sql", "--url", other.url(), f"BACKUP DATABASE postgres INTO '{backup}'")
    assert "collection" in message.lower()


def test_a_cluster_that_is_not_ready_names_each_fix(capsys: Captured, servers_folder: Path, tmp_path: Path) -> None:
    with PostgresServer(servers_folder / "plain", settings={"wal_level": "replica"}) as plain:
        capsys.readouterr()
        assert run(["cluster", "preflight", "--url", plain.url(), "--format", "csv"]) == 1
        told = capsys.readouterr()
        assert "ALTER SYSTEM SET wal_level" in told.out
        assert "not ready for backups: wal_level" in told.err
        backup = f"BACKUP DATABASE postgres INTO 'file://{tmp_path}/b'"
        assert "wal_level" in refusal(capsys, 2, "sql", "--url", plain.url(), backup)
