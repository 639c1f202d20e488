"""Incremental layers on real PostgreSQL: every layer end is the source as it was, whatever happened in between."""

# ruff: noqa: E501  # statements of SQL read better on one line

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

BIG = "string_agg(md5(random()::text), '') from generate_series(1, 400)"  # 12,800 incompressible bytes: TOASTed


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    yield Backup(database, tmp_path / "collection")


def fill(database: TestDatabase, rows: int = 300, name: str = "t") -> None:
    database.execute(
        f"create table {name} (id int primary key, v text, n int); alter table {name} alter v set storage external;"
        f"insert into {name} (id, v, n) select i, (select {BIG} where i > 0), i from generate_series(1, {rows}) i"
    )


class Ends:
    """The layers of a chain, and what the source held at the end of each."""

    def __init__(self, backup: Backup, *tables: str) -> None:
        self.backup = backup
        self.tables = tables or ("t",)
        self.held: list[tuple[Manifest, dict[str, list[str]]]] = []

    def note(self, manifest: Manifest) -> Manifest:
        """Remember the source as it is now, which must be as it was at the layer's end."""
        self.held.append((manifest, {table: self.backup.source_rows(table) for table in self.tables}))
        return manifest

    def assert_equal(self) -> None:
        """Each layer's end holds what the source held."""
        for manifest, tables in self.held:
            for table, rows in tables.items():
                assert self.backup.rows(manifest, table) == rows, f"{table} at the end of layer {manifest.number}"


CASES = {
    "insert, update, delete": [
        "insert into t values (1000, 'new', 1)",
        "update t set n = 0 where id = 5",
        "delete from t where id = 6",
    ],
    "nothing": [],
    "large value left alone": [
        "update t set n = -1 where id < 20",
        "update t set n = -2 where id < 10",
        "update t set n = -3 where id < 5",
    ],
    "key changed, large value left alone": [
        "update t set id = 2000 where id = 7",
        "update t set id = 2001 where id = 2000",
        "update t set n = 5 where id = 2001",
    ],
    "key changed and taken by another row": [
        "update t set id = 2000 where id = 7",
        f"insert into t select 7, {BIG.replace('from', ', 7 from')}",
        "update t set n = 9 where id in (7, 2000)",
    ],
    "keys swapped": [
        "begin; update t set id = -1 where id = 1; update t set id = 1 where id = 2; update t set id = 2 where id = -1; commit",
        "update t set n = n + 1 where id in (1, 2)",
    ],
    "deleted and inserted again": [
        "delete from t where id = 8",
        "insert into t values (8, 'again', 8)",
        "update t set n = 3 where id = 8",
    ],
    "truncate": ["truncate t", "insert into t values (1, 'after', 1)", "update t set n = 2 where id = 1"],
}


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
@pytest.mark.parametrize("case", CASES)
def test_ends(backup: Backup, case: str, history: bool) -> None:
    """Each statement is a layer of its own, then all of them again in one."""
    fill(backup.database)
    ends = Ends(backup)
    ends.note(backup.take())
    for statement in CASES[case]:
        backup.database.execute(statement)
        ends.note(backup.increment(revision_history=history))
    backup.database.execute("delete from t where id < 3 or id > 900")
    backup.database.execute(f"insert into t select 1, {BIG.replace('from', ', 1 from')}")
    for statement in CASES[case]:
        backup.database.execute(statement)
    ends.note(backup.increment(revision_history=history))
    ends.assert_equal()
    assert [manifest.number for manifest, _ in ends.held] == list(range(len(ends.held)))


SHAPES = {
    "added": ["alter table t add c int default 7", "insert into t (id, c) values (1001, 1)", "update t set c = 2 where id = 3"],
    "added between changes": [
        "update t set n = 0 where id = 3; alter table t add c text default 'a b'; update t set n = 1 where id = 4"
    ],
    "dropped": ["update t set n = 2 where id = 3; alter table t drop n; update t set v = 'x' where id = 4"],
    "renamed": ["alter table t rename n to m", "update t set m = 2 where id = 3"],
    "renamed table": [
        "alter table t rename to u; update u set n = 2 where id = 3; alter table u rename to t",
        "update t set n = 2 where id = 3",
    ],
    "dropped and added again": [
        "update t set n = 5 where id = 3; alter table t drop n, add n int default 1; update t set n = 2 where id = 4"
    ],
    "retyped": ["alter table t alter n type bigint", "update t set n = 1 where id = 3"],
    "retyped and back": ["alter table t alter n type numeric(3, 0) using n % 10; alter table t alter n type int"],
    "vacuum full": ["vacuum full t", "update t set n = 2 where id = 3"],
    "volatile default": ["alter table t add r float8 default random()"],
    "key dropped and another made": [
        "alter table t drop constraint t_pkey; alter table t add primary key (id, n)",
        "update t set n = 2 where id = 3",
    ],
    "schema moved": [
        "create schema s; alter table t set schema s; update s.t set n = 1 where id = 1; alter table s.t set schema public"
    ],
    "truncated and rewritten": [
        "truncate t; insert into t values (1, 'a', 5); alter table t alter n type int using n + 1; insert into t values (2, 'b', 6)"
    ],
    "full identity": [
        "alter table t replica identity full; update t set n = 1 where id = 3",
        "update t set id = 4000 where id = 5",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHAPES)
def test_changed_shapes(backup: Backup, case: str) -> None:
    fill(backup.database)
    ends = Ends(backup)
    ends.note(backup.take())
    for statement in SHAPES[case]:
        for part in statement.split("; "):
            backup.database.execute(part)
        ends.note(backup.increment())
    backup.database.execute("update t set v = 'last' where id = 9")
    ends.note(backup.increment())
    for number, (manifest, rows) in enumerate(ends.held):
        shape = manifest.databases[0].database.tables[0]
        assert backup.rows(manifest, "t") == rows["t"], f"layer {number} with {[column.name for column in shape.columns]}"


def test_new_and_dropped_tables_and_partitions(backup: Backup) -> None:
    database = backup.database
    fill(database)
    database.execute(
        "create table p (id int, k int, primary key (id, k)) partition by list (k); create table p1 partition of p for values in (1)"
    )
    database.execute("insert into p select i, 1 from generate_series(1, 50) i")
    ends = Ends(backup, "t", "p1")
    ends.note(backup.take())
    fill(database, 40, "second")
    database.execute("create table p2 partition of p for values in (2); insert into p select i, 2 from generate_series(1, 30) i")
    first = backup.increment()
    assert backup.rows(first, "second") == backup.source_rows("second")
    assert backup.rows(first, "p2") == backup.source_rows("p2")
    database.execute("alter table p detach partition p1; update p1 set id = id + 1000; update second set n = 0")
    second = backup.increment()
    assert backup.rows(second, "p1") == backup.source_rows("p1")
    assert backup.rows(second, "second") == backup.source_rows("second")
    database.execute(
        "alter table p attach partition p1 for values in (1); drop table second; update p set id = id + 500 where k = 2"
    )
    third = backup.increment()
    assert backup.rows(third, "p1") == backup.source_rows("p1")
    assert backup.rows(third, "p2") == backup.source_rows("p2")
    assert "second" not in {table.name for table in third.databases[0].database.tables}
    ends.assert_equal()


def test_counted_rows(backup: Backup) -> None:
    """REPLICA IDENTITY FULL without a key: equal rows are told by how many there are."""
    database = backup.database
    database.execute("create table t (a int, b text); alter table t replica identity full")
    database.execute("insert into t select i % 3, case when i % 2 = 0 then 'x' end from generate_series(1, 60) i")
    ends = Ends(backup)
    ends.note(backup.take())
    for statement in (
        "delete from t where ctid in (select ctid from t where a = 1 and b is null limit 4)",
        "insert into t select 1, null from generate_series(1, 3)",
        "update t set b = 'y' where ctid in (select ctid from t where a = 2 and b = 'x' limit 3)",
        "truncate t",
        "insert into t select 5, 'z' from generate_series(1, 4)",
    ):
        database.execute(statement)
        ends.note(backup.increment())
    ends.assert_equal()
    assert [backup.capture(manifest, "t") for manifest, _ in ends.held] == ["exact"] + ["log"] * 5


def test_tables_without_identity_are_read_again_only_when_they_changed(backup: Backup) -> None:
    database = backup.database
    database.execute("create table t (a int, b text); insert into t select i, 'b' from generate_series(1, 60) i")
    ends = Ends(backup)
    ends.note(backup.take())
    ends.note(backup.increment())
    ends.note(backup.increment())
    database.execute("update t set b = 'c' where a = 4")
    ends.note(backup.increment())
    ends.assert_equal()
    assert [backup.capture(manifest, "t") for manifest, _ in ends.held] == ["exact", "exact", "log", "exact"]


def test_fingerprints_hold_at_a_manual_layers_end(backup: Backup) -> None:
    fill(backup.database)
    backup.options = BackupOptions(workers=1, fingerprint=True)
    backup.take()
    backup.database.execute("update t set n = 0 where id < 30")
    table = backup.increment().databases[0].tables[0]
    hashed = backup.database.execute("select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text from t")
    assert table.fingerprint is not None
    assert (table.fingerprint.rows, table.fingerprint.hash) == hashed[0]


def test_a_schema_that_did_not_change_is_stored_once(backup: Backup) -> None:
    """Also not when only data did; what changes nothing but an owner of a sequence is a change."""
    database = backup.database
    fill(database)
    database.execute("create sequence s")
    full = backup.take()
    database.execute("update t set n = 0; select nextval('s')")
    same = backup.increment()
    database.execute("alter sequence s owned by t.n")
    other = backup.increment()
    dumps = [manifest.databases[0].schema_dump for manifest in (full, same, other)]
    assert dumps[0] == dumps[1]
    assert dumps[1] != dumps[2]


def test_a_publication_of_the_applications_is_a_change_of_the_schema(backup: Backup) -> None:
    fill(backup.database)
    full = backup.take()
    backup.database.execute("create publication app for table t")
    made = backup.increment()
    backup.database.execute("comment on publication app is 'ours'")
    told = backup.increment()
    same = backup.increment()
    dumps = [manifest.databases[0].schema_dump for manifest in (full, made, told, same)]
    assert len({dump.path for dump in dumps}) == 3
    assert dumps[2] == dumps[3]
