"""What breaks a fuzzy backup of PostgreSQL, each case at its worst moment.

Each test first shows that the case is real where that is possible: with its rule switched off (`without`), the backup
differs from the source. Then the rule is on, and it does not.
"""

# ruff: noqa: E501  # statements of SQL read better on one line

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psycopg
import pytest

from spanvault.backup import changes, live_table, seal, sealing, span_session
from spanvault.collection.receipts import read_receipts
from spanvault.database.postgres import protect
from spanvault.database.postgres.protect import Owner
from spanvault.database.postgres.server import flush_lsn
from spanvault.errors import BrokenChain, Busy, SpanvaultError
from spanvault.model.request import BackupOptions
from spanvault.storage.base import Storage
from tests.kit.harness import Backup, Hook
from tests.kit.servers import TestDatabase

BIG = "string_agg(md5(random()::text), '') from generate_series(1, 400)"  # 12,800 incompressible bytes: TOASTed


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    yield Backup(database, tmp_path / "collection")


def fill(database: TestDatabase, rows: int = 2000, extra: str = "", name: str = "t") -> None:
    """A table of several slices: 2,000 rows of some 300 bytes on some 80 pages."""
    database.execute(
        f"create table {name} (id int primary key, v text, n int{extra});"
        f"insert into {name} (id, v, n) select i, repeat('x', 250), i from generate_series(1, {rows}) i"
    )


def one_table_each(cases: dict[str, str]) -> dict[str, list[str]]:
    """The statements of each case, about a table of its own (`t` becomes `t0`, `t1` ...), so that one backup tests all."""
    return {
        f"t{number}": [re.sub(r"\bt(?=\b|_pkey\b)", f"t{number}", statement) for statement in case.split("; ")]
        for number, case in enumerate(cases.values())
    }


def assert_all_equal(backup: Backup, tables: Iterable[str], names: Iterable[str]) -> None:
    """Each table of one backup equals the source; `names` say which case a table stands for."""
    manifest = backup.take()
    different = [
        name for table, name in zip(tables, names, strict=True) if backup.rows(manifest, table) != backup.source_rows(table)
    ]
    assert different == []


def assert_equal_to_source(backup: Backup, *tables: str) -> None:
    manifest = backup.take()
    for table in tables or ("t",):
        assert backup.rows(manifest, table) == backup.source_rows(table)


def differs(backup: Backup, table: str = "t") -> bool:
    """Whether a backup differs from the source; a refusal would hide the fault, so it does not count."""
    manifest = backup.take()
    return backup.rows(manifest, table) != backup.source_rows(table)


# --- the start: what is open when a table joins the publication ---


def open_across_publication(backup: Backup) -> tuple[psycopg.Connection[tuple[object, ...]], Callable[[], None]]:
    """A first backup leaves its slot; then a table is made whose first row is written by a transaction left open."""
    fill(backup.database, 10)
    backup.take()
    backup.database.execute("create table late (id int primary key)")
    writer = psycopg.connect(backup.database.url)
    writer.execute("insert into late values (1)")

    def finish() -> None:
        writer.execute("insert into late values (2)")
        writer.commit()

    return writer, finish


def test_transaction_open_across_a_publication_change(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, finish = open_across_publication(backup)
    with writer:
        ended = threading.Event()

        def end_when_published() -> None:
            while not backup.database.execute("select 1 from pg_publication_tables where tablename = 'late'"):
                time.sleep(0.01)
            finish()
            ended.set()

        thread = threading.Thread(target=end_when_published)
        thread.start()
        manifest = backup.take()
        thread.join()
    assert ended.is_set()
    assert backup.rows(manifest, "late") == ["(1)", "(2)"]


def test_without_the_wait_a_transaction_open_across_a_publication_change_is_lost(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, finish = open_across_publication(backup)
    monkeypatch.setattr(protect, "wait_for_writers", lambda *_: None)
    # The writer ends after the table's (empty) slice was read, and before the cut.
    backup.visits.clear()
    backup.at = {"export.all": finish}
    with writer:
        assert backup.rows(backup.take(), "late") == ["(2)"]


def test_a_prepared_transaction_that_never_ends_is_named(backup: Backup) -> None:
    fill(backup.database, 10)
    with psycopg.connect(backup.database.url) as session:
        session.execute("insert into t values (0)")
        session.execute("prepare transaction 'left over'")
    backup.wait = 0.5
    with pytest.raises(Busy, match="prepared transaction 'left over'"):
        backup.take()
    backup.database.execute("commit prepared 'left over'")
    backup.wait = 20
    assert_equal_to_source(backup)


# --- reading a slice ---


def test_asynchronous_commit_is_durable_before_its_receipt(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(backup.database)
    unflushed: list[int] = []

    def commit_asynchronously() -> None:
        with backup.database.connect() as session:
            session.execute("set synchronous_commit = off")
            session.execute("update t set n = n + 1 where id = 1")

    def look() -> None:
        with backup.database.connect() as session:
            durable = flush_lsn(session)
        plans = list(backup.folder.glob("*/*/*/PLAN.json"))
        subdir = str(plans[0].parent.relative_to(backup.folder))
        unflushed.append(sum(r.seen_lsn > durable for r in read_receipts(backup.storage, subdir, 0).values()))

    backup.at = {"export.before_span": [commit_asynchronously] * 50, "export.after_receipt": [look] * 50}
    with monkeypatch.context() as without:
        without.setattr(span_session, "_wait_until_flushed", lambda *_: None)
        backup.take()
    assert sum(unflushed) > 0, "no commit was visible before it was durable, so the test shows nothing"
    unflushed.clear()
    second = Backup(backup.database, backup.folder.with_name("second"), at=dict(backup.at))
    backup = second
    assert_equal_to_source(second)
    assert unflushed
    assert sum(unflushed) == 0


REWRITES = {
    "truncate": "truncate t; insert into t values (7, 'after')",
    "type": "alter table t alter n type bigint",
    "volatile default": "alter table t add r float8 default random()",
    "vacuum full": "vacuum full t",
}


@pytest.mark.parametrize("statement", REWRITES.values(), ids=REWRITES)
def test_rewrite_between_snapshot_and_lock(backup: Backup, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    fill(backup.database)
    backup.at = {"read.after_snapshot": lambda: backup.database.execute(statement)}
    assert_equal_to_source(backup)


def test_a_table_truncated_before_its_fingerprint_is_taken_is_sealed_again(backup: Backup) -> None:
    """A fingerprint of no rows would be the proof of a backup that is wrong."""
    fill(backup.database)
    backup.options = BackupOptions(workers=1, span_bytes=1 << 20, fingerprint=True)
    backup.at = {"read.after_snapshot": [lambda: None, lambda: backup.database.execute("truncate t; insert into t values (1)")]}
    manifest = backup.take()
    fingerprint = manifest.databases[0].tables[0].fingerprint
    assert fingerprint is not None
    assert fingerprint.rows == 1
    assert backup.rows(manifest, "t") == backup.source_rows("t")


def test_a_table_truncated_again_before_its_fingerprint_is_taken_has_none(backup: Backup) -> None:
    """Hashing a large database takes long: a table that is truncated now and then must not keep it from being sealed."""
    fill(backup.database)
    truncate = "truncate t; insert into t values (1)"
    seen: list[list[str]] = []

    def disturb() -> None:
        seen.append(backup.source_rows("t"))
        backup.database.execute(truncate)

    backup.options = BackupOptions(workers=1, span_bytes=1 << 20, fingerprint=True)
    # The slice; the fingerprint; in the second try the table, which is now read first; the fingerprint.
    backup.at = {"read.after_snapshot": [lambda: None, disturb, lambda: None, disturb, disturb, disturb]}
    manifest = backup.take()
    assert len(seen) == 2
    before = seen[-1]
    assert manifest.databases[0].tables[0].fingerprint is None
    assert any("no fingerprint" in note for note in backup.progress.notes)
    assert backup.rows(manifest, "t") == before


def test_a_truncate_is_no_change_of_the_schema(backup: Backup) -> None:
    """Some applications truncate a table every second; each would undo the seal."""
    fill(backup.database)
    before = backup.source_rows("t")
    backup.at = {"seal.after_schema": lambda: backup.database.execute("truncate t; insert into t values (1)")}
    manifest = backup.take()
    assert backup.visits["seal.after_snapshot"] == 1
    assert backup.rows(manifest, "t") == before


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_table_that_the_log_does_not_heal_is_read_although_it_is_rewritten_while_the_log_is_read(
    backup: Backup, kind: str
) -> None:
    """Reading it after the log would meet a rewritten table in every try: the second try reads it before."""
    fill(backup.database)
    backup.database.execute("create table other (id int primary key); insert into other values (1)")
    rewrite = "alter table t alter n type bigint using n + 1; alter table t alter n type int using n + 1"
    if kind == "incremental":
        backup.take()
        backup.database.execute("vacuum full t")
        backup.database.execute("update t set n = n + 1 where n % 3 = 0")
    else:
        backup.at = {"export.all": lambda: backup.database.execute("vacuum full t")}
    seen: list[list[str]] = []

    def disturb() -> None:
        seen.append(backup.source_rows("t"))
        backup.database.execute(rewrite)

    backup.at = {**backup.at, "seal.after_window": [disturb] * 5}
    backup.visits.clear()
    manifest = backup.take() if kind == "full" else backup.increment()
    assert len(seen) == 2, "one try that cannot read the table any more, and one that has read it"
    assert backup.rows(manifest, "t") == seen[-1]


def test_without_the_file_test_a_table_rewritten_under_the_snapshot_reads_as_empty(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.database.execute("create table t (id int, n int); insert into t select i, i from generate_series(1, 100) i")
    monkeypatch.setattr(live_table, "read_live", lambda _, names: set(names))
    backup.at = {"read.after_snapshot": lambda: backup.database.execute("alter table t alter n type bigint")}
    manifest = backup.take()
    assert manifest.databases[0].tables[0].rows == 0


@pytest.mark.parametrize("statement", REWRITES.values(), ids=REWRITES)
def test_rewrite_between_the_seals_snapshot_and_a_keyless_tables_lock(backup: Backup, statement: str) -> None:
    backup.database.execute(
        "create table t (id int, v text, n int); insert into t select i, 'v', i from generate_series(1, 100) i"
    )
    backup.at = {"read.after_snapshot": lambda: backup.database.execute(statement)}
    assert_equal_to_source(backup)
    assert any("Sealing again" in note for note in backup.progress.notes)


RESHAPES = {
    "dropped and added again": "alter table t drop v, add v text default 'w'",
    "renamed, and another of its name": "alter table t rename v to w; alter table t add v text default 'w'",
}


@pytest.mark.parametrize("statement", RESHAPES.values(), ids=RESHAPES)
def test_a_column_reshaped_between_the_seals_snapshot_and_a_keyless_tables_lock(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """A query under an old snapshot finds its columns in the catalogs of now: it would read the new column's values."""
    database = backup.database
    database.execute("create table t (id int, v text); insert into t select i, 'v' from generate_series(1, 100) i")
    before = backup.source_rows("t")
    backup.at = {"read.after_snapshot": lambda: database.execute(statement)}
    with monkeypatch.context() as without:
        without.setattr(live_table, "read_live", lambda _, names: set(names))
        manifest = backup.take()
    assert len(manifest.databases[0].database.tables[0].columns) == 2, "the cut is before the DDL"
    assert len(before) == manifest.databases[0].tables[0].rows
    database.execute("drop table t; create table t (id int, v text); insert into t select i, 'v' from generate_series(1, 100) i")
    assert backup.rows(manifest, "t") != before, "and yet the rows are not those of the cut"

    second = Backup(database, backup.folder.with_name("second"), at=dict(backup.at))
    assert_equal_to_source(second)
    assert any("Sealing again" in note for note in second.progress.notes)


def test_a_column_added_before_a_fingerprint_is_taken_is_sealed_again(backup: Backup) -> None:
    """The fingerprint is of whole rows, which have the columns of now."""
    database = backup.database
    fill(database)
    backup.options = BackupOptions(workers=1, span_bytes=1 << 20, fingerprint=True)
    backup.at = {"read.after_snapshot": [lambda: None, lambda: database.execute("alter table t add w int default 7")]}
    manifest = backup.take()
    fingerprint = manifest.databases[0].tables[0].fingerprint
    assert fingerprint is not None
    hashed = database.execute("select coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text from t")
    assert fingerprint.hash == hashed[0][0]
    assert any("Sealing again" in note for note in backup.progress.notes)


MOVES = {
    "vacuum full": "delete from t where id % 2 = 0; vacuum full t",
    "cluster": "cluster t using t_pkey",
}


@pytest.mark.parametrize("move", list(MOVES))
def test_rows_moved_by_a_rewrite_between_two_slices(backup: Backup, monkeypatch: pytest.MonkeyPatch, move: str) -> None:
    fill(backup.database)
    # Dead rows at the front and live ones behind them, so that a rewrite moves rows into the slice already read.
    backup.database.execute("update t set n = n + 1; delete from t where id < 500")

    def rewrite() -> None:
        for statement in MOVES[move].split(";"):
            backup.database.execute(statement)

    backup.at = {"export.before_span": [lambda: None, rewrite]}
    with monkeypatch.context() as without:
        without.setattr(sealing.DatabaseSeal, "unhealed_tables", lambda _: [])
        assert differs(backup)
    second = Backup(backup.database, backup.folder.with_name("second"), at={"export.before_span": [lambda: None, rewrite]})
    backup.database.execute("update t set n = n + 1; delete from t where id < 1000")
    assert_equal_to_source(second)


def test_rows_that_move_between_slices_are_neither_lost_nor_doubled(backup: Backup) -> None:
    fill(backup.database)
    backup.database.execute("delete from t where id between 1 and 300")
    backup.database.execute("vacuum t")

    def move() -> None:  # a row of the last page goes to the free front, one of the front grows to the end
        backup.database.execute("update t set n = -n where id in (1990, 1995, 2000)")
        backup.database.execute("update t set v = repeat('y', 2000) where id between 301 and 330")

    backup.at = {"export.before_span": [lambda: None, move, move, move]}
    assert_equal_to_source(backup)
    assert backup.visits["export.before_span"] > 3


# --- healing ---

HISTORIES = {
    "key changes": "update t set id = id + 100000 where id < 50; update t set id = id - 200000 where id > 100020",
    "key swap": "update t set id = -1 where id = 1; update t set id = 1 where id = 2; update t set id = 2 where id = -1",
    "delete and insert again": "delete from t where id < 20; insert into t select i, 'again', 0 from generate_series(1, 10) i",
    "truncate and refill": "truncate t; insert into t select i, 'new', 0 from generate_series(1, 10) i; delete from t where id = 3",
    "savepoints": "begin; update t set n = 0 where id = 1; savepoint s; update t set n = 1 where id = 2; rollback to s; "
    "update t set n = 2 where id = 3; savepoint r; delete from t where id = 4; release r; commit",
    "rolled back": "begin; update t set n = 0; delete from t where id < 100; rollback",
    "upsert and merge": "insert into t values (1, 'u', 1), (9000, 'u', 1) on conflict (id) do update set v = excluded.v; "
    "merge into t using (values (2), (9001)) s(i) on t.id = s.i when matched then delete when not matched then insert values (i, 'm', 0)",
    "empty strings and nulls": "update t set v = '' where id = 1; update t set v = null, n = null where id = 2",
}


@pytest.mark.parametrize("moment", ["before the first slice", "between slices", "after the last slice"])
def test_changes_during_the_export(backup: Backup, moment: str) -> None:
    cases = one_table_each(HISTORIES)
    for table in cases:
        fill(backup.database, name=table)

    def write() -> None:
        for statements in cases.values():
            with backup.database.connect() as session:
                for statement in statements:
                    session.execute(statement)

    moments: dict[str, dict[str, Hook]] = {
        "before the first slice": {"plan.after_plan": write},
        "between slices": {"export.before_span": [lambda: None] * 12 + [write]},
        "after the last slice": {"export.all": write},
    }
    backup.at = moments[moment]
    assert_all_equal(backup, cases, HISTORIES)
    assert backup.visits["export.before_span"] > 20


def test_two_phase_commits(backup: Backup) -> None:
    fill(backup.database)
    session = psycopg.connect(backup.database.url)
    steps = iter([
        lambda: (session.execute("update t set n = -1 where id < 10"), session.execute("prepare transaction 'a'")),
        lambda: backup.database.execute("commit prepared 'a'"),
    ])
    backup.at = {"export.before_span": [next(steps), next(steps)]}
    with session:
        assert_equal_to_source(backup)


TOAST = {
    "updated beside": "update t set n = n + 1 where id < 10",
    "key reused": "update t set id = 9001 where id = 1; insert into t values (1, 'small', 0)",
    "keys swapped": "update t set id = -1 where id = 1; update t set id = 1 where id = 2; update t set id = 2 where id = -1",
    "moved twice": "update t set id = 9001 where id = 1; update t set id = 9002, n = 5 where id = 9001; update t set n = 6 where id = 9002",
    "moved and deleted": "update t set id = 9001 where id = 1; delete from t where id = 9001",
    "replaced then moved": "update t set v = 'new' where id = 1; update t set id = 9001 where id = 1",
    "deleted, inserted, beside": "delete from t where id = 1; insert into t select 1, (select "
    + BIG
    + "), 0; update t set n = 1 where id = 1",
}


@pytest.mark.parametrize("identity", ["default", "full"])
@pytest.mark.parametrize("when", ["plan.after_plan", "export.all"])
def test_values_that_the_log_leaves_out(backup: Backup, identity: str, when: str) -> None:
    cases = one_table_each(TOAST)
    for table in cases:
        backup.database.execute(
            f"create table {table} (id int primary key, v text, n int); alter table {table} alter v set storage external;"
            f"insert into {table} select i, (select {BIG} where i > 0), i from generate_series(1, 20) i;"
            f"alter table {table} replica identity {identity}"
        )

    def write() -> None:
        for statements in cases.values():
            for statement in statements:
                backup.database.execute(statement)

    backup.at = {when: write}
    assert_all_equal(backup, cases, TOAST)
    assert backup.database.execute("select count(*) from t0 where length(v) > 5000") == [(20,)]


def test_without_reading_orphans_rows_with_large_values_are_missing(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.database.execute(
        f"create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t select i, (select {BIG} where i > 0), i from generate_series(1, 20) i"
    )
    backup.at = {"export.all": lambda: backup.database.execute("update t set n = 0 where id = 1")}
    monkeypatch.setattr(seal, "read_orphans", lambda *_: None)
    assert differs(backup)


def test_large_values_of_a_table_with_a_key_of_several_columns(backup: Backup) -> None:
    backup.database.execute(
        f"create table t (a int, v text, b char(3), n int, primary key (b, a)); alter table t alter v set storage external;"
        f"insert into t select i, (select {BIG} where i > 0), 'x' || i % 3, i from generate_series(1, 20) i"
    )
    backup.at = {"export.all": lambda: backup.database.execute("update t set n = 0, a = a + 100 where a % 2 = 0")}
    assert_equal_to_source(backup)


def test_key_column_that_is_itself_toasted(backup: Backup) -> None:
    backup.database.execute("create table t (id text, n int); alter table t alter id set storage external")
    backup.database.execute(
        "insert into t select repeat(chr(64 + i), 2100), i from generate_series(1, 5) i; alter table t add primary key (id)"
    )
    backup.at = {"export.all": lambda: backup.database.execute("update t set n = n + 1")}
    assert_equal_to_source(backup)


# --- tables that the log cannot carry: exact at the cut, and the application is not disturbed ---

IDENTITIES = {
    "no key": ("", "exact"),
    "identity nothing": ("alter table t add primary key (id); alter table t replica identity nothing", "exact"),
    "full with duplicates": ("alter table t replica identity full; insert into t select * from t", "exact"),
    "full with a key": ("alter table t add primary key (id); alter table t replica identity full", "log"),
    "deferrable key": ("alter table t add primary key (id) deferrable initially deferred", "exact"),
    "generated key": (
        "alter table t add g int generated always as (id * 2) stored not null; alter table t add primary key (g)",
        "exact",
    ),
    "chosen index": (
        "create unique index u on t (n); alter table t alter n set not null; alter table t replica identity using index u",
        "log",
    ),
    "two-column key": ("alter table t add primary key (v, id)", "log"),
    "names an object": ("alter table t add primary key (id); alter table t add r regclass default 'pg_class'", "exact"),
    # From version 18 on the server refuses UPDATE and DELETE of such a table while it is published.
    "full with a key and a stored column": (
        "alter table t add primary key (id), add g int generated always as (n) stored; alter table t replica identity full",
        "exact",
    ),
    "full with a key and a virtual column": (
        "alter table t add primary key (id), add g int generated always as (n) virtual; alter table t replica identity full",
        "exact",
    ),
    "full with a stored column": (
        "alter table t add g int generated always as (n) stored; alter table t replica identity full",
        "exact",
    ),
    "full with a virtual column": (
        "alter table t add g int generated always as (n) virtual; alter table t replica identity full",
        "exact",
    ),
    "full with a generated column that went": (
        "alter table t add g int generated always as (n) stored; alter table t replica identity full; alter table t drop g",
        "exact",
    ),
    "key beside generated columns": (
        "alter table t add primary key (id), add g int generated always as (n) stored, add h int generated always as (n) virtual",
        "log",
    ),
    "chosen index beside generated columns": (
        "create unique index u on t (n); alter table t alter n set not null, add g int generated always as (n) stored, add h int generated always as (n) virtual; alter table t replica identity using index u",
        "log",
    ),
}


@pytest.mark.parametrize(("ddl", "capture"), IDENTITIES.values(), ids=IDENTITIES)
def test_identities(backup: Backup, ddl: str, capture: str) -> None:
    backup.database.execute(
        "create table t (id int not null, v text, n int); insert into t select i, 'v' || i, i from generate_series(1, 500) i"
    )
    backup.database.execute(ddl)

    def application() -> None:
        backup.database.execute("update t set v = v || '!' where id % 3 = 0")
        backup.database.execute("delete from t where id % 7 = 0")
        backup.database.execute("insert into t (id, v, n) values (9001, 'new', 9001)")

    backup.at = {
        "plan.after_plan": application,
        "export.all": lambda: backup.database.execute("update t set n = n + 10000 where id < 50"),
    }
    manifest = backup.take()
    assert backup.rows(manifest, "t") == backup.source_rows("t")
    assert backup.capture(manifest, "t") == capture


def test_partitions_and_inheritance(backup: Backup) -> None:
    backup.database.execute(
        "create table p (id int, k int, v text, primary key (id, k)) partition by list (k);"
        "create table p1 partition of p for values in (1); create table p2 partition of p for values in (2);"
        "insert into p select i, 1 + i % 2, 'v' from generate_series(1, 300) i;"
        "create table parent (id int primary key); create table child (x int, primary key (id)) inherits (parent);"
        "insert into parent values (1), (2); insert into child values (10, 1), (11, 1)"
    )

    def write() -> None:
        backup.database.execute("update p set k = 3 - k where id < 50")
        backup.database.execute("truncate p2; insert into p values (7000, 2, 'again')")
        backup.database.execute("update parent set id = id + 100")

    backup.at = {"export.all": write}
    assert_equal_to_source(backup, "p1", "p2", "parent", "child")


# --- the log and the schema change behind our back ---


def test_a_table_that_left_the_publication_for_a_while(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(backup.database)

    def interfere() -> None:
        name = backup.database.execute("select pubname from pg_publication where pubname like 'spanvault%'")[0][0]
        backup.database.execute(f"alter publication {name} drop table only t")
        backup.database.execute("update t set n = -1 where id < 100")
        backup.database.execute(f"alter publication {name} add table only t")

    backup.at = {"export.all": interfere}
    with monkeypatch.context() as without:
        without.setattr(sealing.DatabaseSeal, "distrust", lambda *_: None)
        assert differs(backup)
    second = Backup(backup.database, backup.folder.with_name("second"), at={"export.all": interfere})
    assert_equal_to_source(second)


SHAPES = {
    "column added": "alter table t add c text default 'fast'; update t set c = 'x' where id = 1",
    "column dropped and added again": "update t set n = 999 where id = 1; alter table t drop n; alter table t add n int",
    "column renamed": "alter table t rename n to m; update t set m = 5 where id = 1",
    "table renamed": "update t set n = 1 where id = 1; alter table t rename to other; alter table other rename to t; update t set n = 2 where id = 2",
    "type changed and back": "alter table t alter n type text; alter table t alter n type int using n::int + 1; update t set v = 'z' where id = 3",
    "key dropped": "update t set n = 1 where id = 1; alter table t drop constraint t_pkey; alter table t replica identity full; delete from t where id = 2",
    "new key": "alter table t drop constraint t_pkey; alter table t add primary key (n); update t set v = 'k' where id = 1",
}


@pytest.mark.parametrize("when", ["plan.after_plan", "export.before_span", "export.all"])
def test_tables_whose_shape_changes_during_the_backup(backup: Backup, when: str) -> None:
    cases = one_table_each(SHAPES)
    for table in cases:
        fill(backup.database, name=table)

    def change() -> None:
        for statements in cases.values():
            for statement in statements:
                backup.database.execute(statement)

    backup.at = {when: [lambda: None] * 10 + [change] if when == "export.before_span" else change}
    assert_all_equal(backup, cases, SHAPES)


def switch_identity_for_a_while(database: TestDatabase) -> None:
    database.execute("alter table t replica identity using index other")
    database.execute("update t set id = id + 100000 where id < 50")  # under that identity the log has no old key of these
    database.execute("alter table t replica identity default")


def test_a_replica_identity_that_was_another_for_a_while(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(backup.database)
    backup.database.execute("alter table t alter n set not null; create unique index other on t (n)")
    backup.at = {"export.all": lambda: switch_identity_for_a_while(backup.database)}
    with monkeypatch.context() as without:
        without.setattr(changes.TableChanges, "relation", lambda *_: None)
        assert differs(backup)
    backup.database.execute("update t set id = id - 100000 where id > 100000")
    second = Backup(backup.database, backup.folder.with_name("second"), at=backup.at)
    assert_equal_to_source(second)


TYPES = {
    "enum label renamed": "alter type mood rename value 'sad' to 'blue'",
    "attribute added": "alter type pair add attribute c int",
}


@pytest.mark.parametrize("ddl", TYPES.values(), ids=TYPES)
def test_a_type_whose_text_changes_during_the_backup(backup: Backup, ddl: str) -> None:
    backup.database.execute(
        "create type mood as enum ('sad', 'ok'); create type pair as (a int, b int);"
        "create table t (id int primary key, m mood, p pair); insert into t select i, 'sad'::mood, row(i, 2)::pair from generate_series(1, 50) i"
    )
    backup.at = {"export.all": lambda: backup.database.execute(ddl)}
    assert_equal_to_source(backup)


def test_tables_made_and_dropped_during_the_backup(backup: Backup) -> None:
    fill(backup.database)
    backup.database.execute("create table going (id int primary key); insert into going values (1)")
    backup.at = {
        "export.before_span": [lambda: None, lambda: backup.database.execute("drop table going")],
        "export.all": lambda: backup.database.execute(
            "create table coming as select 1 as id; create table c2 (id int primary key); insert into c2 values (5)"
        ),
    }
    manifest = backup.take()
    names = {table.name for table in manifest.databases[0].database.tables}
    assert names == {"t", "coming", "c2"}
    for name in names:
        assert backup.rows(manifest, name) == backup.source_rows(name)


@pytest.mark.parametrize("when", ["seal.before_schema", "seal.after_schema"])
def test_a_schema_dump_that_races_ddl_is_made_again(backup: Backup, when: str) -> None:
    fill(backup.database)
    backup.database.execute("create view w as select id, n from t")
    backup.at = {when: lambda: backup.database.execute("alter table t rename n to renamed; alter view w rename n to renamed")}
    assert_equal_to_source(backup)
    assert any("Sealing again" in note for note in backup.progress.notes)


def test_ddl_without_a_quiet_moment_is_an_error_in_the_end(backup: Backup) -> None:
    fill(backup.database, 10)
    counter = iter(range(100))
    backup.at = {"seal.before_schema": [lambda: backup.database.execute(f"create table x{next(counter)} ()")] * 100}
    with pytest.raises(SpanvaultError, match=r"The schema of database .* changed while it was read"):
        backup.take()
    assert not list(backup.folder.glob("*/*/*/chain/*"))


def test_timeouts_that_the_source_sets_for_others_do_not_end_a_backup(backup: Backup) -> None:
    database = backup.database
    fill(database)
    for setting in ("transaction_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
        database.execute(f"alter database {database.name} set {setting} = '300ms'")
    backup.at = {"read.after_snapshot": lambda: time.sleep(0.5), "seal.after_snapshot": lambda: time.sleep(0.5)}
    assert_equal_to_source(backup)


def test_the_log_in_many_chunks(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows larger than memory are written in pieces; later pieces win."""
    from spanvault.backup import changelog

    original = changelog.ChangeLog.__init__

    def small(
        self: changelog.ChangeLog, storage: Storage, subdir: str, number: int, database: str, *, tier: str | None = None
    ) -> None:
        original(self, storage, subdir, number, database, tier=tier, chunk_bytes=20_000)

    monkeypatch.setattr(changelog.ChangeLog, "__init__", small)
    fill(backup.database, 300, ", big text")
    backup.database.execute(f"alter table t alter big set storage external; update t set big = (select {BIG}) where id < 40")

    def write() -> None:
        for step in range(6):
            backup.database.execute(f"update t set n = n + 1 where id % 5 = {step % 5}")
            backup.database.execute(f"update t set id = id + 1000 where id = {10 + step}")
            backup.database.execute(f"delete from t where id = {30 + step}")
            backup.database.execute(f"update t set big = 'short' where id = {20 + step}")

    backup.at = {"export.all": write}
    assert_equal_to_source(backup)


def test_the_protection_is_kept_and_moved_or_given_up(backup: Backup) -> None:
    fill(backup.database, 10)
    manifest = backup.take()
    slots = "select slot_name, confirmed_flush_lsn::text from pg_replication_slots where database = current_database()"
    confirmed = backup.database.execute(
        f"select confirmed_flush_lsn >= '{manifest.end.lsn}'::pg_lsn from ({slots.replace('::text', '')}) s"
    )
    assert confirmed == [(True,)]
    second = Backup(backup.database, backup.folder.with_name("second"), options=BackupOptions(protection="none", workers=1))
    second.take()
    assert [row[0] for row in backup.database.execute(slots)] == [manifest.databases[0].protection.slot]
    assert len(backup.database.execute("select 1 from pg_publication where pubname like 'spanvault%'")) == 1


def slot_of(backup: Backup) -> str:
    return str(backup.database.execute("select slot_name from pg_replication_slots where database = current_database()")[0][0])


def recreate(backup: Backup) -> None:
    slot = slot_of(backup)
    backup.database.execute("update t set n = 0 where id = 1")
    backup.database.execute(f"select pg_drop_replication_slot('{slot}')")
    backup.database.execute(f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')")


def drop(backup: Backup) -> None:
    backup.database.execute(f"select pg_drop_replication_slot('{slot_of(backup)}')")


def move(backup: Backup) -> None:
    backup.database.execute("update t set n = 0 where id = 1")
    backup.database.execute(f"select pg_replication_slot_advance('{slot_of(backup)}', pg_current_wal_flush_lsn())")


@pytest.mark.parametrize("interfere", [recreate, drop, move])
def test_a_slot_that_somebody_else_touched_ends_the_backup_loudly(backup: Backup, interfere: Callable[[Backup], None]) -> None:
    fill(backup.database)
    backup.at = {"export.all": lambda: interfere(backup)}
    with pytest.raises(BrokenChain, match=r"change log .* is gone|is ahead of this backup's start"):
        backup.take()
    assert not list(backup.folder.glob("*/*/*/chain/*"))
    # The next run does not continue on the broken log; it plans anew and is whole.
    assert_equal_to_source(backup)


def test_two_backups_into_one_collection_at_once_are_two_backups_or_one_and_a_sentence(backup: Backup) -> None:
    """The second begins and ends while the first exports; its commit moves the shared slot past the first's start."""
    fill(backup.database)
    second = Backup(backup.database, backup.folder, options=BackupOptions(workers=1, span_bytes=1 << 20))
    backup.at = {"export.all": second.take}
    with pytest.raises(BrokenChain, match="another backup of this collection was committed meanwhile"):
        backup.take()
    assert len(list(backup.folder.glob("*/*/*/chain/*.json"))) == 1
    assert_equal_to_source(backup)


def test_a_running_backup_renews_its_protection(backup: Backup) -> None:
    fill(backup.database, 10)
    comments: list[str] = []

    def look() -> None:
        query = "select obj_description(oid, 'pg_publication') from pg_publication where pubname like 'spanvault%'"
        comments.append(str(backup.database.execute(query)[0][0]))

    backup.at = {"plan.after_plan": look, "export.after_receipt": look, "seal.before_record": look}
    backup.take()
    ends = [Owner.model_validate_json(comment).expires_at for comment in comments]
    assert len(ends) == 3
    assert None not in ends
    assert ends == sorted(set(ends), key=str)
