"""Disks of our own that are full, met by whole commands: one sentence that says which, and the same statement ends well later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.database.postgres.archive import dump_now
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.restore_local import run_restore
from spanvault.errors import Retryable
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.command_line import PROGRAM, refusal, spanvault
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.small_disk import on_small_disk

pytestmark = pytest.mark.slow

FOR_NO_DOWNLOAD = 4 << 10
FOR_NO_MERGE = 300 << 10  # The downloads have room, DuckDB's file has not.


@pytest.fixture(scope="module")
def backup(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backup]:
    """A full and two layers that change most rows of a table, whose files are small."""
    with fresh_database(postgres, "shop") as database:
        database.execute(
            "create table item (id bigint primary key, name text);"
            "insert into item select i, 'as it was' from generate_series(1, 30000) i"
        )
        backup = Backup(database, tmp_path_factory.mktemp("full") / "collection")
        backup.take()
        for number in range(2):
            database.execute(f"update item set name = 'changed {number}' where id % 3 <> {number}")
            backup.increment()
        yield backup


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder that becomes a small disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    return folder


def told(error: str) -> str:
    """The one message of a command that failed."""
    assert "Traceback" not in error
    assert "nanobind" not in error  # DuckDB's, which complains at a process's end of what nobody collected
    (line,) = [line for line in error.splitlines() if line.startswith("Error: ")]
    return line


def full(folder: Path) -> str:
    return (
        f"Error: The folder for temporary files {folder} is full: No space left on device; make room there, or let"
        " SPANVAULT_SCRATCH_DIR name a folder with more."
    )


def test_a_restore(backup: Backup, small: Path) -> None:
    source = backup.database
    copy = TestDatabase(source.server, f"{source.name}_copy")
    statement = f"RESTORE DATABASE {source.name} FROM LATEST IN '{backup.uri}' WITH new_db_name = '{copy.name}'"
    command = ("sql", "--url", source.url, statement)
    scratch = {"SPANVAULT_SCRATCH_DIR": str(small)}
    try:
        failed = on_small_disk(FOR_NO_DOWNLOAD, small, [PROGRAM, *command], scratch)
        assert (failed.returncode, failed.stdout) == (1, ""), failed.stderr
        assert told(failed.stderr) == full(small)
        ended = spanvault(*command, more=scratch)
        assert ended.returncode == 0, ended.stderr
        rows = "select count(*), sum(hashtextextended(item::text, 0)) from item"
        assert copy.execute(rows) == source.execute(rows)
    finally:
        drop_database(source.server, copy.name)
    assert list(small.iterdir()) == []


def test_a_compaction(backup: Backup, small: Path) -> None:
    command = [PROGRAM, "collection", "compact", backup.uri]
    failed = on_small_disk(FOR_NO_MERGE, small, command, {"SPANVAULT_SCRATCH_DIR": str(small)})
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert told(failed.stderr) == full(small)


def test_a_backup_to_a_full_disk(backup: Backup, small: Path) -> None:
    source = backup.database
    statement = f"BACKUP DATABASE {source.name} INTO 'file://{small}' WITH protection = 'none'"
    failed = on_small_disk(32 << 10, small, [PROGRAM, "sql", "--url", source.url, statement])
    assert (failed.returncode, failed.stdout) == (1, ""), failed.stderr
    assert told(failed.stderr).endswith(f" cannot be written to file://{small}: No space left on device.")


def test_no_folder_for_temporary_files(
    backup: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, nowhere = backup.database, str(tmp_path / "nowhere")
    monkeypatch.setenv("SPANVAULT_SCRATCH_DIR", nowhere)
    statement = f"RESTORE DATABASE {source.name} FROM LATEST IN '{backup.uri}' WITH new_db_name = 'unmade'"
    assert refusal(capsys, 2, "sql", "--url", source.url, statement) == (
        f"Error: The folder for temporary files {nowhere} cannot be used: No such file or directory; let SPANVAULT_SCRATCH_DIR"
        " name a folder in which this process may write."
    )


def test_a_dump_of_what_the_target_has(backup: Backup, tmp_path: Path) -> None:
    with pytest.raises(Retryable, match=f"{tmp_path} is full: No space left on device; "):
        dump_now(backup.database.endpoint, backup.database.name, Path("/dev/full"), tmp_path)


def test_a_target_without_room_for_an_index_may_have_it_later(database: TestDatabase, tmp_path: Path) -> None:
    """pg_restore makes indexes; here a function of one says what a server says whose disk is full."""
    database.execute(
        "create table item (id int primary key); insert into item select generate_series(1, 10);"
        "create function f(int) returns int immutable language plpgsql as $$ begin"
        " if current_database() like '%_copy' and to_regrole('full_disk') is not null then"
        " raise exception using errcode = '53100',"
        " message = 'could not extend file \"base/1/2\": No space left on device'; end if; return $1; end $$;"
        "create index on item (f(id))"
    )
    backup = Backup(database, tmp_path / "c")
    backup.take()
    copy = TestDatabase(database.server, f"{database.name}_copy")
    options = RestoreOptions(new_db_name=copy.name)
    request = RestoreRequest(target=DatabaseTarget(names=(database.name,)), collection=backup.uri, options=options)
    database.execute("create role full_disk")
    try:
        with pytest.raises(Retryable, match=r"pg_restore failed: .*could not extend file .*: No space left on device"):
            run_restore(Context(), database.cluster, request, processes=False)
        database.execute("drop role full_disk")
        run_restore(Context(), database.cluster, request, processes=False)
        assert copy.execute("select count(*) from pg_indexes where tablename = 'item'") == [(2,)]
    finally:
        database.execute("drop role if exists full_disk")
        drop_database(database.server, copy.name)
