"""The command line from a first backup to leaving no trace, on real PostgreSQL and a real folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from tests.kit.command_line import PROGRAM, answer, environment, hear_ctrl_c, spanvault
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, drop_database, fresh_database

Captured = pytest.CaptureFixture[str]


def fill(database: TestDatabase) -> None:
    """Two tables of several slices each."""
    database.execute(
        "create table item as select id, 'item ' || id as name from generate_series(1, 3000) id;"
        "alter table item add primary key (id);"
        "create table sale as select id, id % 3000 + 1 as item, now() as at from generate_series(1, 3000) id;"
        "alter table sale add primary key (id)"
    )


@pytest.fixture
def shop(database: TestDatabase) -> TestDatabase:
    """A database with the two tables."""
    fill(database)
    return database


def test_from_backup_to_restore_and_away(shop: TestDatabase, tmp_path: Path, capsys: Captured) -> None:
    uri, at = f"file://{tmp_path}/collection", ("--url", shop.url)
    restored = f"{shop.name}_restored"
    checks = answer(capsys, "cluster", "preflight", *at)
    assert {row["status"] for row in checks} <= {"ok", "warning"}

    backup = f"BACKUP DATABASE {shop.name} INTO '{uri}' WITH span_bytes = '32KiB', fingerprint"
    (estimate,) = answer(capsys, "sql", *at, backup, "--dry-run")
    assert estimate["tables"] == "2"
    assert int(estimate["spans"]) > 2
    assert not (tmp_path / "collection").exists()
    assert answer(capsys, "protection", "list", *at) == []

    (taken,) = answer(capsys, "sql", *at, backup)
    assert (taken["status"], taken["tables"], taken["rows"]) == ("succeeded", "2", "6000")
    assert answer(capsys, "sql", f"SHOW BACKUPS IN '{uri}'") == [{"path": taken["path"]}]
    shown = answer(capsys, "sql", f"SHOW BACKUP LATEST IN '{uri}' WITH check_files")
    assert {row["object_name"]: row["rows"] for row in shown if row["object_type"] == "table"} == {"item": "3000", "sale": "3000"}
    assert all(int(row["file_bytes"]) > 0 for row in shown if row["object_type"] == "table")
    (manifest,) = answer(capsys, "sql", f"SHOW BACKUP '{taken['path']}' IN '{uri}' WITH as_json")
    assert json.loads(manifest["manifest"])["subdir"] == taken["path"]
    checked = answer(capsys, "collection", "check", uri, "--level", "checksums")
    assert {row["outcome"] for row in checked} == {"pass"}
    assert len(answer(capsys, "collection", "rebuild-index", uri)) == 1
    lost = tmp_path / "collection" / taken["path"] / "000000/data/00000000-0000-4000-8000-000000000000.parquet"
    lost.write_bytes(b"of a killed run")
    swept = ("collection", "sweep", uri, "--older-than", "0s")
    (counted,) = answer(capsys, *swept)
    assert (int(counted["objects"]) > 0, counted["dry_run"], lost.exists()) == (True, "true", True)
    (removed,) = answer(capsys, *swept, "--delete")
    assert (removed["objects"], removed["dry_run"], lost.exists()) == (counted["objects"], "false", False)

    try:
        answer(
            capsys,
            "sql",
            *at,
            f"RESTORE DATABASE {shop.name} FROM LATEST IN '{uri}' WITH new_db_name = '{restored}', verify_fingerprint",
        )
        copy = TestDatabase(shop.server, restored)
        for table in ("item", "sale"):
            rows = f"select count(*), sum(hashtextextended({table}::text, 0)) from {table}"
            assert copy.execute(rows) == shop.execute(rows)
    finally:
        drop_database(shop.server, restored)

    (held,) = [row for row in answer(capsys, "protection", "list", *at) if row["database"] == shop.name]
    assert [row["slot"] for row in answer(capsys, "protection", "release", *at, held["slot"])] == [held["slot"]]
    assert held["slot"] not in {row["slot"] for row in answer(capsys, "protection", "list", *at)}
    assert shop.execute("select count(*) from pg_publication") == [(0,)]


@contextmanager
def slow_backup(shop: TestDatabase, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A backup that has written its first receipt and lasts for many seconds more, and its arguments."""
    statement = f"BACKUP DATABASE {shop.name} INTO 'file://{folder}/collection' WITH span_bytes = '32KiB', rate_limit = '10kB'"
    arguments = ["sql", "--url", shop.url, statement]
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509 - no threads are begun in between
    )
    try:
        while not list(folder.rglob("progress/*.json")):
            assert process.poll() is None, process.communicate()
        yield process, arguments
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_same_statement_goes_on(shop: TestDatabase, tmp_path: Path) -> None:
    with slow_backup(shop, tmp_path) as (process, arguments):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and to its workers
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == (
        "Interrupted. What is on storage stays; run the same statement again and it continues from there."
    )
    assert "Traceback" not in err
    again = spanvault(*arguments, "--format", "csv")
    assert again.returncode == 0, again.stderr
    assert "Continuing the unfinished backup" in again.stderr
    assert ",succeeded,2,6000," in again.stdout


@pytest.mark.slow
def test_a_server_that_dies_is_a_failed_operation(servers_folder: Path, tmp_path: Path) -> None:
    with PostgresServer(servers_folder / "mortal", settings=SOURCE_SETTINGS) as server, fresh_database(server) as mortal:
        fill(mortal)
        with slow_backup(mortal, tmp_path) as (process, _):
            server.kill()
            out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "unexpected" not in last.split("server closed the connection unexpectedly")[0]
    assert f"127.0.0.1:{server.port}" in last or "server closed the connection" in last
