"""The levels schema_only and verify_backup_table_data: what a backup's schema says is made, in a server that is gone
afterwards; the latter reads its rows as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.engine.maintenance import collection_check, validate_backup
from spanvault.errors import BadInput, Damaged, NotFound, Permanent
from spanvault.model.target import ClusterTarget, TablePattern, TableTarget
from tests.kit.command_line import answer, refusal
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database

pytestmark = pytest.mark.slow

SHOP = (
    "create type mood as enum ('sad', 'happy'); create schema sales;"
    "create table item (id int primary key, m mood); insert into item values (1, 'sad');"
    "create table sales.sale (id int primary key, item int references item);"
    "create view happy as select * from item where m = 'happy'; create index on item (m)"
)


@pytest.fixture
def context(servers_folder: Path, request: pytest.FixtureRequest) -> Context:
    """A context whose scratch folder is the test's own."""
    scratch = servers_folder / f"scratch-{request.node.name}"
    scratch.mkdir()
    scratch.chmod(0o755)
    return Context(settings=Settings(scratch_dir=scratch))


def left_in(context: Context) -> list[Path]:
    """What the check left on scratch."""
    assert context.settings.scratch_dir is not None
    return list(context.settings.scratch_dir.iterdir())


def test_a_schema_that_restores_passes(database: TestDatabase, tmp_path: Path, context: Context) -> None:
    database.execute(SHOP)
    backup = Backup(database, tmp_path / "c")
    first, second = backup.take(), backup.take()
    assert validate_backup(context, backup.uri, first.subdir, level="schema_only") == first.subdir
    whole, newest = collection_check(context, backup.uri, "schema_only").rows
    assert whole[:3] == ("collection", "collection", "pass")
    assert newest == (second.subdir, "schema_only", "pass", 1, second.databases[0].schema_dump.bytes, 0, "")
    (one,) = collection_check(context, backup.uri, "checksums", first.subdir).rows
    assert one[:3] == (first.subdir, "checksums", "pass")
    assert left_in(context) == []


def test_tables_and_clusters_are_checked_too(database: TestDatabase, tmp_path: Path, context: Context) -> None:
    database.execute(SHOP)
    tables = TableTarget(patterns=(TablePattern(database=database.name, name="item"),))
    with fresh_database(database.server) as empty:
        empty.execute("create role keeper; create table kept (id int primary key); alter table kept owner to keeper")
        try:
            for name, target in (("tables", tables), ("cluster", ClusterTarget())):
                backup = Backup(database, tmp_path / name, target=target)
                taken = backup.take()
                assert validate_backup(context, backup.uri, "LATEST", level="schema_only") == taken.subdir
        finally:
            empty.execute("drop table kept; drop role keeper")


def test_a_changed_schema_is_damage(database: TestDatabase, tmp_path: Path, context: Context) -> None:
    database.execute(SHOP)
    backup = Backup(database, tmp_path / "c")
    taken = backup.take()
    dump = tmp_path / "c" / taken.subdir / taken.databases[0].schema_dump.path
    data = bytearray(dump.read_bytes())
    data[len(data) // 2] ^= 1
    dump.write_bytes(data)
    with pytest.raises(Damaged, match=dump.name):
        validate_backup(context, backup.uri, "LATEST", level="schema_only")
    assert left_in(context) == []


def test_rows_are_read_as_a_restore_reads_them(database: TestDatabase, tmp_path: Path, context: Context) -> None:
    """Of the newest layer: base rows that later layers changed or removed are no part of it."""
    level = "verify_backup_table_data"
    database.execute(f"{SHOP}; insert into item select i, 'happy' from generate_series(2, 1000) i")
    backup = Backup(database, tmp_path / "c")
    taken = backup.take()
    database.execute("delete from item where id > 900; update item set m = 'sad' where id < 10")
    backup.increment(incremental_location=f"file://{tmp_path / 'layers'}")
    assert validate_backup(context, backup.uri, "LATEST", level=level) == taken.subdir
    (_, newest) = collection_check(context, backup.uri, level).rows
    assert (newest[0], newest[1], newest[2], newest[5]) == (taken.subdir, level, "pass", 900)
    (change, *_) = (tmp_path / "layers").rglob("000001/data/*.parquet")
    data = bytearray(change.read_bytes())
    data[len(data) // 2] ^= 1
    change.write_bytes(data)
    assert validate_backup(context, backup.uri, "LATEST", level="schema_only") == taken.subdir, "rows are none of its business"
    with pytest.raises(Damaged, match=change.name):
        validate_backup(context, backup.uri, "LATEST", level=level)
    assert left_in(context) == []


def test_what_the_scratch_server_lacks_is_told_and_not_tried_again(
    database: TestDatabase, tmp_path: Path, context: Context, servers_folder: Path
) -> None:
    extensions = servers_folder / "share" / "extension"
    extensions.mkdir(parents=True)
    (extensions / "onlyhere.control").write_text("default_version = '1'\n")
    (extensions / "onlyhere--1.sql").write_text("select 1;\n")
    database.execute(f"set extension_control_path = '{extensions.parent}:$system'; create extension onlyhere")
    backup = Backup(database, tmp_path / "c")
    backup.take()
    with pytest.raises(Permanent, match=r"could not be verified: .* does not have the extension onlyhere") as raised:
        validate_backup(context, backup.uri, "LATEST", level="schema_only")
    assert not isinstance(raised.value, Damaged)


def test_the_command_line_has_it(database: TestDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database.execute(SHOP)
    backup = Backup(database, tmp_path / "c")
    taken = backup.take()
    check = ("collection", "check", backup.uri, "--level", "schema_only", "--backup")
    (row,) = answer(capsys, *check, "LATEST")
    assert (row["checked"], row["level"], row["outcome"]) == (taken.subdir, "schema_only", "pass")
    assert "There is no backup 2020/01/01-000000.00" in refusal(capsys, 2, *check, "2020/01/01-000000.00")


def test_a_level_or_backup_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose check_files, checksums, schema_only or verify_backup_table_data"):
        validate_backup(Context(), f"file://{tmp_path}", "LATEST", level="deep")
    with pytest.raises(NotFound):
        collection_check(Context(), f"file://{tmp_path}", "schema_only")
