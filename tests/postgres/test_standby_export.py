"""Backups whose tables are read on standbys: what comes out is the primary's state at the cut, whatever happens to the nodes."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from spanvault.backup.span_session import SpanSession, open_node
from spanvault.backup.throttle import TURN_LOCK, overload
from spanvault.collection.files import read_files
from spanvault.collection.receipts import read_receipts
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.quoting import quote
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.steps import advance_protection, export_batch, plan_backup, seal_backup, write_manifest
from spanvault.errors import Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.request import BackupOptions
from spanvault.storage.limit import LimitedStorage
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database
from tests.kit.standbys import Nodes, running_nodes, someone_at_work, wait_for
from tests.kit.writers import Writers, fill

pytestmark = pytest.mark.slow

QUIET = "quiet"


@pytest.fixture(scope="module")
def nodes(servers_folder: Path) -> Iterator[Nodes]:
    with running_nodes(servers_folder / "standby_export") as found:
        yield found


@pytest.fixture
def source(nodes: Nodes) -> Iterator[TestDatabase]:
    """A database with a table of several spans that nobody writes."""
    with fresh_database(nodes.primary) as database:
        database.execute(
            f"create table {QUIET} (id int primary key, note text);"
            f"insert into {QUIET} select i, repeat('x', i % 700) from generate_series(1, 3000) i"
        )
        nodes.caught_up()  # one cannot connect to a database that a standby does not know yet
        yield database


@dataclass
class NodeBackup(Backup):
    """A backup that reads on the named nodes, in this order."""

    cluster: Cluster | None = None
    readers: tuple[str, ...] = ()
    receipts: Counter[str] = field(default_factory=Counter)

    def plan(self) -> Plan:
        """The plan, its batches for these nodes."""
        assert self.cluster is not None
        plan = plan_backup(self.context, self.cluster, self.request, run_key=str(uuid.uuid4()))
        batches = tuple(batch.model_copy(update={"nodes": self.readers}) for batch in plan.batches)
        return plan.model_copy(update={"batches": batches})

    def export(self, plan: Plan) -> None:
        """Export all batches; `receipts` then counts the spans of each node."""
        assert self.cluster is not None
        for batch in plan.batches:
            export_batch(self.context, self.cluster, self.uri, plan, batch.index)
        self.receipts = Counter(one.node for one in read_receipts(self.storage, plan.subdir, plan.number).values())

    def take(self) -> Manifest:
        """All steps, in this process."""
        plan = self.plan()
        self.export(plan)
        self.context.reached("export.all")
        return self.finish(plan)

    def finish(self, plan: Plan) -> Manifest:
        """What comes behind the export."""
        assert self.cluster is not None
        key = seal_backup(self.context, self.cluster, self.uri, plan)
        manifest = write_manifest(self.context, self.uri, plan, key)
        advance_protection(self.context, self.cluster, manifest)
        return manifest


def primary_first(nodes: Nodes, database: TestDatabase, **limits: object) -> Cluster:
    endpoints = tuple(nodes.endpoint(server, database.name) for server in nodes.servers)
    return nodes.cluster().model_copy(update={"endpoints": endpoints, **limits})


def small(**options: object) -> BackupOptions:
    return BackupOptions.model_validate({"span_bytes": 192 << 10, "workers": 1, **options})


def read_by_scans(database: TestDatabase, table: str) -> tuple[int, ...]:
    """Scans that began on the table, and rows that they read, by sessions that have ended, as all others have by then. A
    scan of some pages counts by its rows only."""
    wait_for(database.server, f"select count(*) = 0 from pg_stat_activity where datname = '{database.name}'")
    return database.execute(f"select seq_scan, seq_tup_read, idx_scan from pg_stat_user_tables where relname = '{table}'")[0]


def rows_at_snapshot(database: TestDatabase) -> dict[str, list[str]]:
    """All tables' rows under the snapshot that a seal of the database has just exported, as PostgreSQL prints them. A table
    that was truncated or rewritten in between cannot be read by it any more, and is left out."""
    (name,) = [row[0] for row in database.execute("select pg_ls_dir('pg_snapshots')")]
    found = {}
    with connect(database.endpoint, purpose="test") as session:
        session.execute("begin isolation level repeatable read read only")
        session.execute(f"set transaction snapshot '{name}'".encode())
        tables = session.execute(
            "select c.oid::int8, c.relname, array_agg(a.attname order by a.attnum) from pg_class c join pg_attribute a on"
            " a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''"
            " where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace group by c.oid, c.relname"
        ).fetchall()
        for oid, table, columns in tables:
            text = f"select t::text from (select {', '.join(map(quote, columns))} from only public.{quote(table)}) t order by 1"
            try:
                with session.transaction():
                    session.execute(f"lock table only public.{quote(table)} in access share mode".encode())
                    same = session.execute(
                        "select relfilenode = pg_relation_filenode(oid) and oid = to_regclass(%s) from pg_class where oid = %s",
                        (f"public.{quote(table)}", oid),
                    ).fetchone()
                    rows = [row[0] for row in session.execute(text.encode())]
            except Exception:  # noqa: S112 - dropped or renamed meanwhile
                continue
            if same is not None and same[0]:
                found[table] = rows
    return found


def test_a_backup_from_standbys_is_the_primarys_state_at_the_cut(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    fill(source)
    before = read_by_scans(source, QUIET)
    expected: dict[str, list[str]] = {}
    chance = random.Random(5)

    def look() -> None:
        expected.clear()  # the seal may start over
        expected.update(rows_at_snapshot(source))

    with Writers(source, seed=5) as writers:
        backup = NodeBackup(
            source,
            tmp_path,
            at={
                "export.after_data": [lambda: writers.pause_for(0.1), lambda: writers.reshape(chance)] * 4,
                "seal.after_snapshot": [look] * 5,
            },
            options=small(),
            cluster=primary_first(nodes, source),
            readers=("standby_b", "standby_us"),
        )
        manifest = backup.take()
    after = read_by_scans(source, QUIET)
    assert not writers.failures
    assert writers.done > 30, "the writers hardly wrote, so the test shows nothing"
    assert set(backup.receipts) <= {"standby_b", "standby_us"}
    assert backup.receipts.total() > 10
    # The test's own look at the rows is one scan of the table for each try of the seal; Spanvault's readers add nothing.
    looks = backup.visits["seal.after_snapshot"]
    assert after == (before[0] + looks, before[1] + looks * 3000, before[2])
    assert len(expected) >= 10
    assert "log" in {backup.capture(manifest, table) for table in expected}
    for table, rows in expected.items():
        assert backup.rows(manifest, table) == rows, table


def test_the_primarys_counters_would_show_a_read(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    backup = NodeBackup(source, tmp_path, options=small(), cluster=primary_first(nodes, source))
    before = read_by_scans(source, QUIET)
    backup.export(backup.plan())
    assert backup.receipts.keys() == {"primary"}
    assert read_by_scans(source, QUIET)[1] == before[1] + 3000


def test_a_standby_that_is_killed_hands_its_spans_on(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    backup = NodeBackup(
        source,
        tmp_path,
        at={"export.after_data": [lambda: None, nodes.standby_b.kill]},
        options=small(),
        cluster=primary_first(nodes, source),
        readers=("standby_b", "standby_us", "primary"),
    )
    try:
        manifest = backup.take()
    finally:
        nodes.standby_b.start()
    assert backup.receipts["standby_b"] == 1
    assert backup.receipts["standby_us"] == backup.receipts.total() - 1 > 2
    assert any("Node standby_b hands" in note for note in backup.progress.notes)
    assert backup.rows(manifest, QUIET) == backup.source_rows(QUIET)


def test_a_recovery_conflict_hands_the_spans_on(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    standby = TestDatabase(nodes.standby_b, "postgres")

    def conflict() -> None:
        """Let the standby replay a lock that the reader is in the way of."""
        source.execute(f"begin; lock table {QUIET} in access exclusive mode; insert into {QUIET} values (-1, 'new'); commit")
        nodes.caught_up()

    standby.execute("alter system set max_standby_streaming_delay = 0")
    standby.execute("select pg_reload_conf()")
    try:
        wait_for(nodes.standby_b, "select current_setting('max_standby_streaming_delay') = '0'")
        backup = NodeBackup(
            source,
            tmp_path,
            at={"export.after_data": [lambda: None, conflict]},
            options=small(),
            cluster=primary_first(nodes, source),
            readers=("standby_b", "standby_us"),
        )
        manifest = backup.take()
    finally:
        standby.execute("alter system reset max_standby_streaming_delay")
        standby.execute("select pg_reload_conf()")
    assert backup.receipts["standby_b"] == 1
    assert backup.receipts["standby_us"] == backup.receipts.total() - 1 > 2
    assert any("conflict with recovery" in note and "Node standby_b hands" in note for note in backup.progress.notes)
    assert backup.rows(manifest, QUIET) == backup.source_rows(QUIET)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_standby_is_used_once_it_has_replayed_enough(
    nodes: Nodes, source: TestDatabase, tmp_path: Path, *, resumed: bool
) -> None:
    nodes.caught_up()
    control = TestDatabase(nodes.standby_us, "postgres")
    control.execute("select pg_wal_replay_pause()")
    resume = threading.Timer(1, control.execute, ["select pg_wal_replay_resume()"])
    try:
        source.execute(f"update {QUIET} set note = 'new'")
        backup = NodeBackup(
            source, tmp_path, options=small(), cluster=primary_first(nodes, source), readers=("standby_us", "primary")
        )
        plan = backup.plan()
        if resumed:
            resume.start()
        else:
            backup.wait = 0.3
        backup.export(plan)
    finally:
        resume.cancel()
        control.execute("select pg_wal_replay_resume()")
    assert set(backup.receipts) == {"standby_us" if resumed else "primary"}
    assert resumed != any("standby_us has replayed the log up to" in note for note in backup.progress.notes)
    ready = plan.databases[0].ready
    assert ready is not None
    assert all(one.seen_lsn >= ready for one in read_receipts(backup.storage, plan.subdir, 0).values())


@pytest.mark.parametrize("rule", [True, False], ids=["rule", "without"])
def test_a_standby_must_show_what_was_open_when_its_table_was_published(
    nodes: Nodes, source: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rule: bool
) -> None:
    """`without`: what has been replayed is asked within the span's transaction, where it is ahead of the snapshot."""
    backup = NodeBackup(source, tmp_path, options=small(), cluster=primary_first(nodes, source), readers=("primary",))
    backup.take()  # leaves a slot: only a new one waits for writers itself
    source.execute(
        "create table late (id int primary key, v text); insert into late select i, 'old' from generate_series(1, 99) i"
    )
    backup.readers = ("standby_us", "primary")
    control = TestDatabase(nodes.standby_us, "postgres")
    with ThreadPoolExecutor(1) as planner:
        with source.connect(autocommit=False) as writer:
            writer.execute("update late set v = 'new'")
            planned = planner.submit(backup.plan)
            wait_for(nodes.primary, "select count(*) > 0 from pg_stat_activity where application_name = 'spanvault plan'"
                                    " and query like '%pg_snapshot_xmin%'")  # fmt: skip
            nodes.caught_up()
            control.execute("select pg_wal_replay_pause()")
        plan = planned.result()
    backup.wait = 0.3

    def replay() -> None:
        control.execute("select pg_wal_replay_resume()")
        nodes.caught_up()
        present = Lsn.parse(control.execute("select pg_last_wal_replay_lsn()::text")[0][0])
        assert present >= (plan.databases[0].ready or Lsn(0)), "or a look from within would have refused, too"

    if not rule:
        monkeypatch.setattr(SpanSession, "_wait_until_replayed", lambda _: None)
        backup.at, backup.visits = {"read.after_snapshot": replay}, {}
    try:
        replayed = Lsn.parse(control.execute("select pg_last_wal_replay_lsn()::text")[0][0])
        assert replayed >= plan.databases[0].protection.start, "or the test shows nothing"
        backup.export(plan)
    finally:
        control.execute("select pg_wal_replay_resume()")
    assert backup.receipts.keys() == {"primary" if rule else "standby_us"}
    held = "new" if rule else "old"
    assert backup.rows(backup.finish(plan), "late") == [f"({i},{held})" for i in sorted(range(1, 100), key=str)]


@pytest.mark.parametrize("moment", ["while it is read", "before it is read"])
def test_a_promotion_is_refused(nodes: Nodes, source: TestDatabase, tmp_path: Path, servers_folder: Path, moment: str) -> None:
    name = f"promoted_{len(moment)}"
    with PostgresServer.standby_of(nodes.primary, servers_folder / name, name=name) as standby:
        nodes_then = primary_first(nodes, source)
        extra = nodes_then.primary.model_copy(update={"node": name, "port": standby.port})
        during: dict[str, Callable[[], object]] = {"export.after_data": standby.promote}
        backup = NodeBackup(
            source,
            tmp_path,
            at=during if moment == "while it is read" else {"plan.after_plan": standby.promote},
            options=small(),
            cluster=nodes_then.model_copy(update={"endpoints": (*nodes_then.endpoints, extra)}),
            readers=(name, "primary"),
        )
        plan = backup.plan()
        with pytest.raises(Refused, match=f"node {name} is on timeline 2, and the backup was planned on timeline 1"):
            backup.export(plan)
        assert read_receipts(backup.storage, plan.subdir, 0) == {}
    TestDatabase(nodes.primary, "postgres").execute(f"select pg_drop_replication_slot('{name}')")


def test_turns_and_load_are_kept_to(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    cluster = primary_first(nodes, source, max_active=1)
    limited = [one.model_copy(update={"max_connections": 1}) for one in cluster.endpoints]
    backup = NodeBackup(
        source,
        tmp_path,
        options=small(),
        cluster=cluster.model_copy(update={"endpoints": tuple(limited)}),
        readers=("standby_b", "standby_us", "primary"),
    )
    nodes.caught_up()
    plan = backup.plan()
    backup.wait = 0.3
    with (
        TestDatabase(nodes.standby_b, source.name).connect() as holder,
        someone_at_work(nodes.standby_us),
        someone_at_work(nodes.standby_us),
    ):
        holder.execute(f"select pg_advisory_lock({TURN_LOCK}, 0)")
        backup.export(plan)
    assert backup.receipts.keys() == {"primary"}
    notes = "\n".join(backup.progress.notes)
    assert "Node standby_b was not free within 0.3 s: all 1 of its sessions for exports (max_connections) are in use" in notes
    assert "Node standby_us was not free within 0.3 s: 2 sessions are at work there, allowed are 1 (max_active)" in notes
    for server in nodes.servers:
        held = "select count(*) = 0 from pg_locks where locktype = 'advisory'"
        wait_for(server, held)


def test_the_primary_counts_by_the_worst_of_its_standbys(nodes: Nodes, source: TestDatabase) -> None:
    standby = TestDatabase(nodes.standby_b, "postgres")
    cluster = primary_first(nodes, source, max_replay_lag=0.5)
    standby.execute("alter system set recovery_min_apply_delay = '1500ms'")
    standby.execute("select pg_reload_conf()")
    try:
        wait_for(nodes.standby_b, "select current_setting('recovery_min_apply_delay') = '1500ms'")
        source.execute(f"delete from {QUIET} where id = 1")
        wait_for(nodes.primary, "select max(replay_lag) > interval '1 s' from pg_stat_replication")
        with source.connect() as session:
            told = overload(cluster, lambda query: session.execute(query.encode()).fetchone(), standby=False)
    finally:
        standby.execute("alter system reset recovery_min_apply_delay")
        standby.execute("select pg_reload_conf()")
    assert told.startswith("one of its standbys is ")
    assert told.endswith(" s behind, allowed are 0.5 s (max_replay_lag)")
    with source.connect() as session:
        assert not overload(
            cluster.model_copy(update={"max_replay_lag": 9}), lambda q: session.execute(q.encode()).fetchone(), standby=False
        )


def test_a_session_writes_at_its_share_of_the_nodes_rate(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    backup = NodeBackup(source, tmp_path, options=small(), cluster=primary_first(nodes, source))
    plan = backup.plan()
    assert backup.cluster is not None
    run = backup.context.run(backup.cluster, backup.uri, plan)
    slow = backup.cluster.primary.model_copy(update={"rate_limit": 1000, "max_connections": 4})
    with open_node(run, slow, plan.databases[0], 1) as node:
        assert isinstance(node.data, LimitedStorage)
        assert node.data._limit._rate == 250


def test_files_go_where_the_node_is_and_strict_allows_no_other(nodes: Nodes, source: TestDatabase, tmp_path: Path) -> None:
    default, us = tmp_path / "default", tmp_path / "us"
    places = f"file://{default}?COCKROACH_LOCALITY=default\nfile://{us}?COCKROACH_LOCALITY=region%3Dus"

    class Spread(NodeBackup):
        @property
        def uri(self) -> str:
            return places

    backup = Spread(source, tmp_path, options=small(), cluster=primary_first(nodes, source), readers=("standby_us", "primary"))
    manifest = backup.take()
    assert backup.receipts.keys() == {"standby_us"}
    files = [file for file in read_files(backup.storage, manifest.subdir, manifest.files) if file.role == "base"]
    assert {file.locality for file in files} == {"region=us"}
    assert len(list(us.rglob("*.parquet"))) == len(files)
    assert backup.rows(manifest, QUIET) == backup.source_rows(QUIET)
    plan = backup.plan()
    strict = plan.request.model_copy(update={"options": small(strict=True)})
    batches = tuple(batch.model_copy(update={"nodes": ("standby_b",)}) for batch in plan.batches)
    with pytest.raises(Refused, match=r"With strict, node standby_b \(region=eu,zone=b\) must not export"):
        backup.export(plan.model_copy(update={"request": strict, "batches": batches}))
