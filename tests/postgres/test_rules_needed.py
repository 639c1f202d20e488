"""Rules of a full backup, each with its rule switched off (`without`): then the backup is wrong. With it, it is right, here or
in test_rules.py. Where a rule is a whole step, the step is left out; where it is a choice, the other choice is taken."""

# ruff: noqa: E501  # statements of SQL read better on one line

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from spanvault.backup import captured, changes, export, sealing, small_tables
from spanvault.database.postgres import catalog
from spanvault.database.postgres.archive import read_archive
from spanvault.database.postgres.rows import select_slice
from spanvault.embedded.postgres import PostgresServer
from spanvault.errors import Busy
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions
from spanvault.model.schema import Column, Table
from spanvault.model.target import DatabaseTarget
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database

pytestmark = pytest.mark.slow

BIG = "string_agg(md5(random()::text), '') from generate_series(1, 400)"  # 12,800 incompressible bytes: TOASTed


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    yield Backup(database, tmp_path / "collection")


def fill(database: TestDatabase, name: str = "t", rows: int = 1000) -> None:
    """A table of some slices."""
    database.execute(
        f"create table {name} (id int primary key, v text, n int);"
        f"insert into {name} select i, repeat('x', 250), i from generate_series(1, {rows}) i"
    )


def wrong(backup: Backup, *tables: str) -> list[str]:
    """The tables of a backup that are not as the source has them."""
    manifest = backup.take()
    return [table for table in tables or ("t",) if backup.rows(manifest, table) != backup.source_rows(table)]


def again(backup: Backup) -> Backup:
    return Backup(backup.database, backup.folder.with_name("second"), at=backup.at, target=backup.target, options=backup.options)


# --- healing ---

HISTORIES = {
    "keys": "update t_keys set id = id + 100000 where id < 50",
    "again": "delete from t_again where id < 20; insert into t_again values (1, 'again', 0)",
    "savepoint": "begin; update t_savepoint set n = 0 where id = 1; savepoint s; update t_savepoint set n = 1 where id = 2;"
    " rollback to s; update t_savepoint set n = 2 where id = 3; savepoint r; delete from t_savepoint where id = 4; release r; commit",
    "upsert": "insert into t_upsert values (1, 'u', 1), (9000, 'u', 1) on conflict (id) do update set v = excluded.v",
    "merge": "merge into t_merge t using (values (2), (9001)) s(i) on t.id = s.i when matched then delete when not matched then insert values (i, 'm', 0)",
    "nulls": "update t_nulls set v = null, n = null where id = 2",
}


def test_slices_without_the_log_are_not_what_the_source_is(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [f"t_{name}" for name in HISTORIES]
    for table in tables:
        fill(backup.database, table, 100)
    backup.at = {"export.all": lambda: [backup.database.execute(text) for text in HISTORIES.values()]}
    with monkeypatch.context() as without:
        without.setattr(sealing, "files_of", lambda *_: [])
        assert wrong(backup, *tables) == tables


def test_rows_that_move_between_slices_are_lost_without_the_log(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(backup.database)
    backup.database.execute("delete from t where id between 1 and 300")
    backup.database.execute("vacuum t")

    def move() -> None:  # out of full pages behind to the free ones in front, which have been read
        backup.database.execute("update t set n = -n where id in (900, 905, 910)")

    backup.at = {"export.before_span": [lambda: None, move]}
    with monkeypatch.context() as without:
        without.setattr(sealing, "files_of", lambda *_: [])
        manifest = backup.take()
    ids = {int(row[1:].split(",")[0]) for row in backup.rows(manifest, "t")}
    assert set(range(301, 1001)) - ids == {900, 905, 910}


def test_a_two_phase_transaction_counts_when_it_is_committed(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared before the slices are read and committed after: none of them has it."""
    fill(backup.database)

    def prepare() -> None:
        with psycopg.connect(backup.database.url) as session:
            session.execute("update t set n = -n - 1 where id < 10")
            session.execute("prepare transaction 'a'")

    backup.at = {"plan.after_plan": prepare, "export.all": lambda: backup.database.execute("commit prepared 'a'")}
    with monkeypatch.context() as without:
        without.setattr(sealing, "files_of", lambda *_: [])
        assert wrong(backup) == ["t"]
    assert wrong(again(backup)) == []


def test_a_value_that_the_log_leaves_out_follows_the_row_and_not_its_key(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1.3: row 2 takes the key that another row, whose value the log has, had before."""
    backup.database.execute(
        f"create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t select i, (select {BIG} where i > 0), i from generate_series(1, 20) i"
    )

    def take_the_key() -> None:
        for statement in ("set v = 'of another row' where id = 1", "set id = -id where id = 1", "set id = 1 where id = 2"):
            backup.database.execute(f"update t {statement}")

    backup.at = {"export.all": take_the_key}
    had: dict[changes.Key, changes.Entry] = {}
    put, filled = changes.TableChanges._put, changes.TableChanges._filled

    def remember(self: changes.TableChanges, key: changes.Key, entry: changes.Entry, size: int) -> None:
        if entry.payload is not None:
            had.setdefault(key, entry)
        put(self, key, entry, size)

    def by_key(self: changes.TableChanges, values: Any, old: Any, prior: Any, old_key: Any, change: Any) -> changes.Entry:
        return filled(self, values, old, had.get(self.key_of(values), prior), old_key, change)

    with monkeypatch.context() as without:
        without.setattr(changes.TableChanges, "_put", remember)
        without.setattr(changes.TableChanges, "_filled", by_key)
        manifest = backup.take()
    assert '(1,"of another row",2)' in backup.rows(manifest, "t")
    backup.database.execute("delete from t where id < 0; update t set id = 2 where id = 1; insert into t values (1, 'new', 1)")
    assert wrong(again(backup)) == []


# --- which rows belong to a table ---


def test_a_truncate_of_a_partitioned_table_is_one_of_each_leaf(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1.9: published by the root, the log would not have the TRUNCATE of a leaf at all."""
    database = backup.database
    database.execute(
        "create table p (id int, k int, primary key (id, k)) partition by list (k);"
        "create table p1 partition of p for values in (1); create table p2 partition of p for values in (2);"
        "insert into p select i, 1 + i % 2 from generate_series(1, 300) i"
    )
    backup.at = {"export.all": lambda: database.execute("truncate p; insert into p values (7000, 1)")}
    with monkeypatch.context() as without:
        without.setattr(changes.TableChanges, "truncate", lambda *_: None)
        without.setattr(sealing.DatabaseSeal, "unhealed_tables", lambda _: [])  # it would notice the leaves' other files
        assert wrong(backup, "p1", "p2") == ["p1", "p2"]
    database.execute("insert into p select i, 1 + i % 2 from generate_series(1, 300) i")
    second = again(backup)
    second.at = {"export.all": lambda: database.execute("truncate p2; update p set k = 2 where id = 1")}
    assert wrong(second, "p1", "p2") == []


def test_a_slice_of_a_parent_has_no_rows_of_its_children(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1.11."""
    backup.database.execute(
        "create table parent (id int primary key); create table child (x int, primary key (id)) inherits (parent);"
        "insert into parent values (1), (2); insert into child values (10, 1), (11, 1)"
    )

    def with_children(table: Table, first_page: int = 0, end_page: int | None = None) -> str:
        return select_slice(table, first_page, end_page).replace("FROM ONLY", "FROM")

    with monkeypatch.context() as without:
        for reader in (export, small_tables):
            without.setattr(reader, "select_slice", with_children)
        manifest = backup.take()
    assert backup.rows(manifest, "parent") == ["(1)", "(10)", "(11)", "(2)"]
    assert wrong(again(backup), "parent", "child") == []


def test_rows_are_known_by_the_columns_of_the_replica_identity(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1.10: under another identity than the primary key the log has no old primary key."""
    fill(backup.database)
    backup.database.execute(
        "alter table t alter n set not null; create unique index other on t (n); alter table t replica identity using index other"
    )
    backup.at = {"export.all": lambda: backup.database.execute("update t set id = id + 100000 where id < 50")}
    with monkeypatch.context() as without:
        by_primary_key = catalog.TABLE_SOURCE.replace("WHEN 'i' THEN i.indisreplident", "WHEN 'i' THEN i.indisprimary")
        assert by_primary_key != catalog.TABLE_SOURCE
        without.setattr(catalog, "TABLE_SOURCE", by_primary_key)
        without.setattr(changes.TableChanges, "relation", lambda *_: None)
        assert wrong(backup) == ["t"]
    assert wrong(again(backup)) == []


# --- what the log does not tell ---


def definitions(backup: Backup, manifest: Manifest, tmp_path: Path) -> str:
    """The stored schema of the backup's only database as SQL."""
    archive = tmp_path / "schema.dump"
    archive.write_bytes(backup.storage.get(f"{manifest.subdir}/{manifest.databases[0].schema_dump.path}"))
    return "\n".join(entry.sql for entry in read_archive(archive)).replace('"', "")


def test_a_schema_dump_that_races_ddl_mixes_old_and_new(backup: Backup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 7.1: pg_dump reads columns under the snapshot, and views as they are now."""
    fill(backup.database, rows=10)
    backup.database.execute("create view w as select id, n from t")
    backup.at = {"seal.before_schema": lambda: backup.database.execute("alter table t rename n to renamed")}
    with monkeypatch.context() as without:
        without.setattr(captured.CapturedDatabase, "check_catalogs", lambda *_: None)
        mixed = definitions(backup, backup.take(), tmp_path)
    assert "n integer" in mixed
    assert "renamed AS n" in mixed
    backup.database.execute("alter table t rename renamed to n")
    second = again(backup)
    whole = definitions(second, second.take(), tmp_path)
    assert "renamed integer" in whole
    assert "renamed AS n" in whole


def sequence_value(backup: Backup, manifest: Manifest) -> int:
    entry = manifest.database(backup.database.name)
    assert entry is not None
    return entry.sequences[0].last_value


def highest(backup: Backup, manifest: Manifest) -> int:
    return max(int(row.strip("()").split(",")[0]) for row in backup.rows(manifest, "s"))


def test_a_sequence_that_moves_during_the_seal_is_never_too_low(
    backup: Backup, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 6: rows of the first database that come between its snapshot and the cut, which is the other's snapshot."""
    database = backup.database
    database.execute("create table s (id int generated always as identity primary key, v int); insert into s (v) values (1)")
    insert = "insert into s (v) select i from generate_series(1, 50) i"
    with fresh_database(postgres, "z") as later:
        assert later.name > database.name
        backup.target = DatabaseTarget(names=(database.name, later.name))
        backup.options = BackupOptions(workers=1, protection="none")
        backup.at = {"seal.after_snapshot": lambda: database.execute(insert)}
        with monkeypatch.context() as without:
            read = captured.CapturedDatabase.read_sequences
            without.setattr(
                captured.CapturedDatabase, "read_sequences", lambda self, at: None if self.sequences else read(self, at)
            )
            manifest = backup.take()
        assert sequence_value(backup, manifest) < highest(backup, manifest)
        second = again(backup)
        manifest = second.take()
        assert sequence_value(second, manifest) == highest(second, manifest) == 101


@pytest.mark.parametrize("moment", ["export.all", "seal.before_schema", "seal.after_schema"])
def test_a_sequence_of_one_database_is_never_too_low(backup: Backup, moment: str) -> None:
    """What came behind the cut may count: a number that is never given is no harm, one that is given twice is."""
    backup.database.execute("create table s (id int generated always as identity primary key)")
    insert = "insert into s select from generate_series(1, 50)"
    backup.database.execute(insert)
    backup.at = {moment: lambda: backup.database.execute(insert)}
    manifest = backup.take()
    assert highest(backup, manifest) == (100 if moment == "export.all" else 50)
    assert sequence_value(backup, manifest) == 100


def test_a_fast_added_column_has_what_was_the_default_when_it_was_added(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1.7: old rows have the value of then (attmissingval), whatever the default is now."""
    fill(backup.database, rows=20)
    first = backup.take()
    backup.database.execute("alter table t add c int default 7")
    backup.database.execute(
        "alter table t alter c set default 8; update t set n = 0 where id = 3; insert into t (id) values (21)"
    )
    with monkeypatch.context() as without:
        column = catalog._column

        def by_default(fields: Any) -> Column:
            found = column(fields)
            return found if found.missing_value is None else found.model_copy(update={"missing_value": "{8}"})

        without.setattr(catalog, "_column", by_default)
        manifest = backup.increment()
    assert backup.rows(manifest, "t") != backup.source_rows("t")
    second = again(backup)
    assert wrong(second) == [], "a full"
    backup.database.execute("alter table t add d text default 'then'")
    backup.database.execute(
        "alter table t alter d set default 'now'; update t set n = 1 where id = 4; insert into t (id) values (22)"
    )
    manifest = second.increment()
    assert second.rows(manifest, "t") == backup.source_rows("t")
    assert {row.rsplit(",", 1)[1] for row in second.rows(manifest, "t")} == {"then)", "now)"}
    assert second.capture(manifest, "t") == "log"
    assert first.number == 0


def test_a_writer_in_another_database_is_waited_for_and_named(backup: Backup, postgres: PostgresServer) -> None:
    """Rule 2: one that stays open there holds the start back as well."""
    fill(backup.database, rows=10)
    backup.wait = 0.5
    with fresh_database(postgres, "elsewhere") as other:
        with other.connect(autocommit=False) as writer:
            writer.execute("create table x (a int)")
            with pytest.raises(Busy, match=f"database {other.name}, open for"):
                backup.take()
        backup.wait = 20
        assert wrong(backup) == []
