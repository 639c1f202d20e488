"""What a backup covers: cluster, databases, schemas, tables, views; one cut over all databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from spanvault.config.clusters import Cluster
from spanvault.config.settings import Settings
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import NotFound
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, SchemaTarget, TablePattern, TableTarget, Target
from tests.kit.faults import Faults
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database

BIG = "(select string_agg(md5(random()::text), '') from generate_series(1, 400))"


@pytest.fixture
def second_database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    with fresh_database(postgres) as fresh:
        yield fresh


def tables_of(manifest: Manifest) -> set[str]:
    return {table.qualified for entry in manifest.databases for table in entry.database.tables}


TARGETS: dict[str, tuple[Target, set[str]]] = {
    "schema": (SchemaTarget(names=((None, "s"),)), {"s.a", "s.b"}),
    "table": (TableTarget(patterns=(TablePattern(name="t"), TablePattern(schema_name="s", name="b"))), {"public.t", "s.b"}),
    "wildcard": (TableTarget(patterns=(TablePattern(schema_name="s"),)), {"s.a", "s.b"}),
    "view": (TableTarget(patterns=(TablePattern(name="v"), TablePattern(name="t"))), {"public.t"}),
    "partitioned": (TableTarget(patterns=(TablePattern(name="p"),)), {"public.p1", "s.p2_1", "s.p2_2"}),
    "partition": (TableTarget(patterns=(TablePattern(schema_name="s", name="p2"),)), {"s.p2_1", "s.p2_2"}),
    "inherited": (TableTarget(patterns=(TablePattern(name="parent"),)), {"public.parent", "s.child", "s.grandchild"}),
}
FAMILIES = """
    create table p (id int primary key) partition by range (id);
    create table p1 partition of p for values from (0) to (10);
    create table s.p2 partition of p for values from (10) to (30) partition by range (id);
    create table s.p2_1 partition of s.p2 for values from (10) to (20);
    create table s.p2_2 partition of s.p2 for values from (20) to (30);
    insert into p select generate_series(1, 29);
    create table parent (id int primary key); insert into parent values (1);
    create table s.child (primary key (id)) inherits (parent); insert into s.child values (2);
    create table s.grandchild (primary key (id)) inherits (s.child); insert into s.grandchild values (3);
"""


@pytest.mark.parametrize(("target", "expected"), TARGETS.values(), ids=TARGETS)
def test_targets(database: TestDatabase, tmp_path: Path, target: Target, expected: set[str]) -> None:
    database.execute(
        "create table t (id int primary key); insert into t values (1), (2); create view v as select * from t;"
        "create schema s; create table s.a (id int primary key); create table s.b (x int); insert into s.b values (3)"
    )
    if expected & {"s.p2_1", "s.child"}:
        database.execute(FAMILIES)
    backup = Backup(database, tmp_path, target=target)
    backup.at = {"export.all": lambda: database.execute("insert into t values (7); insert into s.a values (8)")}
    manifest = backup.take()
    assert tables_of(manifest) == expected
    for name in expected:
        schema, _, table = name.partition(".")
        assert backup.rows(manifest, table, schema) == backup.source_rows(table, schema)


def test_a_partitioned_tables_name_means_its_partitions_all_along(database: TestDatabase, tmp_path: Path) -> None:
    """Also one that is attached between two backups, and from the statement to the restored rows."""
    database.execute("create schema s;" + FAMILIES)
    (node,) = database.cluster.endpoints
    cluster, context = Cluster(name="c", endpoints=(node,)), Context(settings=Settings())
    target = TableTarget(patterns=(TablePattern(name="p"), TablePattern(name="parent")))
    into = f"file://{tmp_path}"
    run_backup(context, cluster, BackupRequest(target=target, into=into), processes=False)
    database.execute(
        "create table p3 (id int primary key); insert into p3 values (35);"
        "alter table p attach partition p3 for values from (30) to (40);"
        "insert into p values (36); insert into s.grandchild values (4); delete from p where id = 15"
    )
    run_backup(context, cluster, BackupRequest(target=target, into=into, append="LATEST"), processes=False)
    with fresh_database(database.server) as other:
        options = RestoreOptions(into_db=other.name)
        run_restore(context, cluster, RestoreRequest(target=target, collection=into, options=options), processes=False)
        for query in ("select id from p order by id", "select id, tableoid::regclass::text from parent order by id"):
            assert other.execute(query) == database.execute(query)


@pytest.mark.parametrize(
    "target",
    [
        TableTarget(patterns=(TablePattern(name="tt"),)),
        SchemaTarget(names=((None, "nowhere"),)),
        TableTarget(patterns=(TablePattern(database="no_such_db", name="t"),)),
    ],
    ids=["table", "schema", "database"],
)
def test_a_name_that_does_not_exist_is_refused(database: TestDatabase, tmp_path: Path, target: Target) -> None:
    database.execute("create table t (id int primary key)")
    with pytest.raises(NotFound, match=r"tt|nowhere|no_such_db"):
        Backup(database, tmp_path, target=target).take()
    assert not list(tmp_path.glob("*/*/*/PLAN.json"))


def test_a_cluster_backup_is_one_cut_over_all_databases(
    database: TestDatabase, second_database: TestDatabase, tmp_path: Path
) -> None:
    """The application writes a number to the first database, waits for the commit, then writes it to the second: at any
    one moment of history the second holds no number that the first does not hold."""
    for each in (database, second_database):
        each.execute("create table n (id int primary key, v text); create table keyless (id int)")
    stop = threading.Event()

    def write() -> None:
        with database.connect() as one, second_database.connect() as two:
            number = 0
            while not stop.is_set():
                number += 1
                for session in (one, two):
                    session.execute("insert into n values (%s, 'x')", (number,))
                    session.execute("update n set v = v || 'y' where id = %s", (number // 2,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        manifest = Backup(database, tmp_path, target=ClusterTarget(), options=BackupOptions(protection="none", workers=1)).take()
    finally:
        stop.set()
        writer.join()
    assert {entry.database.name for entry in manifest.databases} >= {database.name, second_database.name, "postgres"}
    assert manifest.globals_dump is not None
    first, second = (rows_of(each, tmp_path, manifest) for each in (database, second_database))
    assert len(first) > 10
    assert len(first) - len(second) in {0, 1}
    for rows in (first, second):
        assert len(rows) == max(int(row.strip("()").split(",")[0]) for row in rows), "numbers are missing"


def rows_of(database: TestDatabase, folder: Path, manifest: Manifest) -> list[str]:
    return Backup(database, folder).rows(manifest, "n")


@pytest.mark.parametrize("fingerprint", [True, False])
def test_large_values_changed_between_the_snapshots_of_two_databases(
    database: TestDatabase, second_database: TestDatabase, tmp_path: Path, *, fingerprint: bool
) -> None:
    """The first database's snapshot is older than the cut. What happens in between is in its log; the large values that
    the log leaves out come from the snapshot, by the key that each row had there."""
    database.execute(
        f"create table n (id int primary key, v text, k int); alter table n alter v set storage external;"
        f"insert into n select i, {BIG}, i from generate_series(1, 10) i; create table gone (id int primary key);"
        "insert into gone values (1), (2)"
    )
    second_database.execute("create table n (id int primary key)")
    faults = Faults()
    backup = Backup(
        database, tmp_path, target=ClusterTarget(), options=BackupOptions(protection="none", workers=1, fingerprint=fingerprint)
    )
    names = sorted([database.name, second_database.name, "postgres"])
    # The seal takes the databases in order of name; changes come right after the first one's snapshot was used.
    after = names.index(database.name) + 1

    def change() -> None:
        database.execute("update n set k = k + 1 where id < 5; update n set id = id + 100 where id < 3")
        database.execute("update n set id = id + 100 where id = 101; update n set v = 'short' where id = 102")
        database.execute("delete from n where id = 9; insert into n values (9, 'again', 0); insert into gone values (5)")
        if not fingerprint:  # with it, a TRUNCATE at this moment makes the seal start over
            database.execute("truncate gone; insert into gone values (6)")

    faults.add_fault("seal.after_snapshot", nth=after, action=change)
    context = backup.context
    context = type(context)(settings=context.settings, progress=context.progress, reached=faults.reach)
    manifest = run_backup(context, database.cluster, backup.request, processes=False)
    entry = manifest.database(database.name)
    assert entry is not None
    assert backup.rows(manifest, "n") == backup.source_rows("n")
    assert backup.rows(manifest, "gone") == backup.source_rows("gone")
    assert [table.fingerprint for table in entry.tables] == [None, None], "a fingerprint of before the cut proves nothing"


def test_without_following_the_log_to_the_cut_changes_between_snapshots_are_lost(
    database: TestDatabase, second_database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spanvault.backup import seal

    database.execute("create table n (id int primary key)")
    monkeypatch.setattr(seal, "_follow", lambda *_: None)
    faults = Faults()
    nth = sorted([database.name, second_database.name, "postgres"]).index(database.name) + 1
    faults.add_fault("seal.after_snapshot", nth=nth, action=lambda: database.execute("insert into n values (1)"))
    backup = Backup(database, tmp_path, target=ClusterTarget(), options=BackupOptions(protection="none", workers=1))
    context = backup.context
    context = type(context)(settings=context.settings, progress=context.progress, reached=faults.reach)
    manifest = run_backup(context, database.cluster, backup.request, processes=False)
    assert backup.rows(manifest, "n") != backup.source_rows("n")


def test_protections_are_listed_released_and_expire(database: TestDatabase, tmp_path: Path) -> None:
    from datetime import timedelta

    from spanvault.engine.maintenance import protection_list, protection_release, uninstall
    from spanvault.model.clock import now

    database.execute("create table t (id int primary key)")
    backup = Backup(database, tmp_path / "a")
    slot = backup.take().databases[0].protection.slot
    cluster = database.cluster

    def listed() -> list[object]:
        return [row[0] for row in protection_list(backup.context, cluster).rows if row[1] == database.name]

    assert listed() == [slot]
    protection_release(backup.context, cluster, slot)
    assert listed() == []
    with pytest.raises(NotFound, match=slot):
        protection_release(backup.context, cluster, slot)
    other = Backup(database, tmp_path / "b")
    other.take()
    later = type(other.context)(settings=other.context.settings, clock=lambda: now() + timedelta(hours=5))
    assert [row[0] for row in protection_list(later, cluster).rows if row[1] == database.name] == []
    assert database.execute("select count(*) from pg_publication where pubname like 'spanvault%'") == [(0,)]
    Backup(database, tmp_path / "c").take()
    uninstall(backup.context, cluster)
    assert database.execute("select count(*) from pg_publication where pubname like 'spanvault%'") == [(0,)]
    with psycopg.connect(database.url) as session:
        assert session.execute("select count(*) from pg_replication_slots where slot_name like 'spanvault%'").fetchone() == (0,)
