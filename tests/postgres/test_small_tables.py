"""Small tables that share a transaction, and what makes each go its own way."""

from __future__ import annotations

from pathlib import Path
from time import sleep

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.backup import small_tables
from spanvault.backup.small_tables import together
from spanvault.database.postgres.copy_out import CopySession
from spanvault.model.manifest import Manifest
from spanvault.model.schema import Table
from spanvault.model.span import Span
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

TABLES = 12


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Backup:
    """A dozen tables of a few rows, one of them empty."""
    for number in range(TABLES):
        database.execute(
            f"create table t{number} (id int primary key, v text, d date);"
            f"insert into t{number} select i, 'row ' || i, date '2026-01-01' + i from generate_series(1, {number * 10}) i"
        )
    return Backup(database, tmp_path / "collection")


def assert_equal(backup: Backup, manifest: Manifest) -> None:
    for number in range(TABLES):
        assert backup.rows(manifest, f"t{number}") == backup.source_rows(f"t{number}"), number


def test_they_share_a_transaction(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    original = CopySession.execute

    def execute(session: CopySession, sql: str) -> None:
        statements.append(sql)
        original(session, sql)

    monkeypatch.setattr(CopySession, "execute", execute)
    assert_equal(backup, backup.take())
    assert sum(sql.startswith("BEGIN ISOLATION") for sql in statements) == 1
    assert backup.visits["export.after_receipt"] == TABLES


def test_values_without_a_typed_form(backup: Backup) -> None:
    backup.database.execute("update t3 set d = 'infinity' where id = 7; update t5 set d = '0044-03-15 BC' where id = 1")
    assert_equal(backup, backup.take())


@pytest.mark.parametrize(
    "statement",
    [
        "alter table t4 alter id type bigint",
        "truncate t4",
        "truncate t4; insert into t4 values (1, 'anew', null)",
        "alter table t4 rename to t4_then; alter table t5 rename to t4; alter table t4_then rename to t5",
        "alter table t4 drop v, add v text default 'new'",
    ],
)
def test_one_is_changed_behind_the_snapshot(backup: Backup, statement: str) -> None:
    """The rule of the lock and the file holds for each of them."""
    backup.at = {"read.after_snapshot": lambda: backup.database.execute(statement)}
    manifest = backup.take()
    assert backup.visits["read.after_snapshot"] > 1, "it was noticed, and read again"
    assert_equal(backup, manifest)


def test_one_is_gone(backup: Backup) -> None:
    backup.at = {"export.before_span": lambda: backup.database.execute("drop table t4")}
    manifest = backup.take()
    assert "t4" not in {table.name for table in manifest.databases[0].database.tables}
    for number in set(range(TABLES)) - {4}:
        assert backup.rows(manifest, f"t{number}") == backup.source_rows(f"t{number}")


def test_together_they_have_become_large(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """None has as much alone; what waits to be written is bounded for all."""
    monkeypatch.setattr(small_tables, "_MOST_ROW_BYTES", 6000)
    assert_equal(backup, backup.take())
    assert backup.visits["read.after_snapshot"] == 1 + TABLES, "once together, and then each alone"


def test_interrupted_they_are_not_all_written_first(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def slowly(chunks: object, table: Table, *_: object) -> None:
        begun.append(table.name)
        sleep(0.3)
        if table.name == "t0":
            raise KeyboardInterrupt

    monkeypatch.setattr(small_tables, "_SIDE_BY_SIDE", 1)
    monkeypatch.setattr(small_tables, "write_rows", slowly)
    with pytest.raises(KeyboardInterrupt):
        backup.take()
    assert len(begun) <= 2


def test_who_waits_for_one_lock_holds_no_other_for_long(backup: Backup) -> None:
    """Somebody locks two tables in the other order, and is never the victim of a deadlock that a backup made."""
    with backup.database.connect(autocommit=False) as other:

        def lock_the_last() -> None:
            other.execute("lock table t9 in access exclusive mode")

        def lock_the_first() -> None:
            other.execute("set local lock_timeout = '4s'; lock table t0 in access exclusive mode")
            other.commit()

        # The group waits in vain, for half a second; then each table is read alone.
        backup.at = {"export.before_span": lock_the_last, "read.after_snapshot": lock_the_first}
        manifest = backup.take()
    assert backup.visits["read.after_snapshot"] == TABLES
    assert_equal(backup, manifest)


def test_killed_between_them_the_next_run_goes_on(backup: Backup) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    backup.at = {"export.after_receipt": [lambda: None] * 5 + [die]}
    with pytest.raises(Killed):
        backup.take()
    left = len(list(backup.folder.rglob("progress/*.json")))
    assert 6 <= left <= TABLES
    backup.at, backup.visits = {}, {}
    assert_equal(backup, backup.take())
    assert backup.visits.get("export.after_receipt", 0) == TABLES - left


@given(st.lists(st.tuples(st.integers(0, 9 << 20), st.booleans()), max_size=200))
def test_groups_are_small_and_keep_the_order(tables: list[tuple[int, bool]]) -> None:
    spans = [
        Span(id=f"1-{i}-0", database="d", table_oid=i + 1, first_page=0, end_page=None if whole else 5, estimated_bytes=size)
        for i, (size, whole) in enumerate(tables)
    ]
    groups = list(together(spans))
    assert [span for group in groups for span in group] == spans
    for group in groups:
        assert len(group) == 1 or (len(group) <= 64 and sum(span.estimated_bytes for span in group) <= 8 << 20)
        assert len(group) == 1 or all(span.end_page is None for span in group)
