"""A cluster of three nodes in two regions, backed up into a place of each: encrypted, with history, while a standby dies."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.chain import original_layers
from spanvault.collection.files import read_files
from spanvault.collection.receipts import read_receipts
from spanvault.config.clusters import Cluster, Placement
from spanvault.config.settings import Settings
from spanvault.database.postgres.nodes import discover, with_primary
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.engine.steps import plan_backup
from spanvault.errors import NotFound, Refused
from spanvault.model.locality import Locality
from spanvault.model.manifest import DataFile, Manifest, Plan
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.standbys import Nodes, running_nodes, wait_for

pytestmark = pytest.mark.slow
KEY = EncryptionOptions(passphrase=SecretStr("not to be found in any place"))
MARK = b"unmistakable"
TABLES = ("here", "there", "part_1", "part_2")
_SOURCE = """
    create table here (id int primary key, v text);
    insert into here select i, 'unmistakable ' || repeat(md5(i::text), 20) from generate_series(1, 3000) i;
    create table there (id int primary key, v text);
    insert into there select i, 'unmistakable ' || repeat(md5(i::text), 20) from generate_series(1, 3000) i;
    create table parts (id int primary key, v text) partition by range (id);
    create table part_1 partition of parts for values from (0) to (1000);
    create table part_2 partition of parts for values from (1000) to (3000);
    comment on table parts is 'sold parts; spanvault.locality=region=us and nowhere else';
    comment on table part_2 is 'spanvault.locality=zone=b';
    insert into parts select i, 'unmistakable ' || repeat(md5(i::text), 20) from generate_series(0, 2999) i
"""
_ABROAD = """
    create schema abroad;
    comment on schema abroad is E'Sold abroad.\\nspanvault.locality=region=us';
    create table abroad.plain (id int primary key);
    create table abroad.own (id int primary key);
    comment on table abroad.own is 'spanvault.locality=zone=b';
    create table local_parts (id int primary key) partition by range (id);
    comment on table local_parts is 'spanvault.locality=zone=b';
    create table abroad.part_3 partition of local_parts for values from (0) to (10);
    insert into abroad.plain values (1); insert into abroad.own values (1); insert into local_parts values (1)
"""
Rows = dict[str, list[str]]


@pytest.fixture(scope="module")
def nodes(servers_folder: Path) -> Iterator[Nodes]:
    with running_nodes(servers_folder / "locality_cluster") as found:
        yield found


@dataclass
class Story:
    """The database, and a folder for each place."""

    nodes: Nodes
    database: TestDatabase
    folder: Path
    hooks: dict[str, list[object]] = field(default_factory=dict)
    progress: Notes = field(default_factory=Notes)

    @property
    def context(self) -> Context:
        return Context(settings=Settings(wait_for_writers=20), progress=self.progress, reached=self._reached)

    def _reached(self, name: str) -> None:
        for hook in self.hooks.pop(name, []):
            assert callable(hook)
            hook()

    @property
    def cluster(self) -> Cluster:
        """As it is now; the table `there` belongs to region=us by clusters.yaml."""
        rule = Placement(tables=f"{self.database.name}.public.there", locality=Locality.parse("region=us"))
        cluster = self.nodes.cluster(self.database.name).model_copy(update={"placement": (rule,)})
        return with_primary(cluster, discover(cluster))

    def uri(self, *tiers: str) -> str:
        tagged = [f"file://{self.folder / tier}?COCKROACH_LOCALITY={tier.replace('=', '%3D')}" for tier in ("default", *tiers)]
        return "\n".join(tagged)

    def request(self, into: str, append: str | None = None, **options: object) -> BackupRequest:
        return BackupRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            into=into,
            append=append,
            options=BackupOptions.model_validate({"span_bytes": 192 << 10, "workers": 1, **options}),
            encryption=KEY,
        )

    def backup(self, into: str, append: str | None = None, **options: object) -> Manifest:
        return run_backup(self.context, self.cluster, self.request(into, append, **options), processes=False)

    def plan(self, into: str, **options: object) -> Plan:
        return plan_backup(
            self.context.unlocking(KEY), self.cluster, self.request(into, None, **options), run_key=str(uuid.uuid4())
        )

    def rows(self) -> Rows:
        return rows_of(self.database)

    def restored(self, into: str, as_of: datetime | None = None) -> Rows:
        name = f"{self.database.name}_restored"
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            collection=into,
            as_of=as_of,
            options=RestoreOptions(new_db_name=name),
            encryption=KEY,
        )
        try:
            run_restore(self.context, self.cluster, request, processes=False)
            return rows_of(replace(self.database, name=name))
        finally:
            drop_database(self.database.server, name)

    def files(self, into: str, manifest: Manifest) -> list[DataFile]:
        return list(read_files(self.context.unlocking(KEY).storage(into), manifest.subdir, manifest.files))

    def change(self, step: int) -> datetime:
        """Changes of all tables; a moment behind them."""
        self.database.execute(
            f"update here set v = v || 'x' where id % 5 = {step};"
            f"update there set v = 'unmistakable {step}' where id % 7 = {step};"
            f"delete from parts where id % 11 = {step}; insert into here values ({9000 + step}, 'new');"
            f"update parts set id = id + 1 where id = {100 * step} and not exists (select from parts where id = {100 * step} + 1)"
        )
        moment: datetime = self.database.execute("select clock_timestamp()")[0][0]
        return moment


def rows_of(database: TestDatabase) -> Rows:
    return {table: sorted(row for (row,) in database.execute(f"select x::text from {table} x")) for table in TABLES}


@pytest.fixture
def story(nodes: Nodes, tmp_path: Path) -> Iterator[Story]:
    with fresh_database(nodes.primary) as database:
        database.execute(_SOURCE)
        nodes.caught_up()
        yield Story(nodes, database, tmp_path)


def test_each_region_has_its_files_while_a_standby_dies_and_comes_back(story: Story) -> None:
    into = story.uri("region=eu", "region=us")
    standby = story.nodes.standby_us
    story.hooks = {"export.after_receipt": [lambda: standby.stop(immediate=True)]}
    full = story.backup(into)
    assert any("hands" in note for note in story.progress.notes), "the standby's spans were not handed on"
    moments = [(story.change(step), story.rows()) for step in (1, 2)]
    story.backup(into, "LATEST", revision_history=True)
    standby.start()
    story.nodes.caught_up()
    moments.append((story.change(3), story.rows()))
    story.backup(into, "LATEST", revision_history=True)
    assert story.restored(into) == story.rows()
    for moment, rows in moments[:2]:
        assert story.restored(into, moment) == rows
    context = story.context.unlocking(KEY)
    layers = original_layers(context.storage(into), full.subdir, open_location=context.locations(into))
    assert [layer.manifest.number for layer in layers] == [0, 1, 2]
    for place in ("default", "region=eu", "region=us"):
        for path in (story.folder / place).rglob("*"):
            assert not path.is_file() or MARK not in path.read_bytes(), path
    assert not list((story.folder / "default").rglob("*/data/*.parquet"))


def test_rows_that_go_elsewhere_than_they_belong_are_told(story: Story) -> None:
    """At planning; and of a standby that goes away afterwards also when worker processes find that out."""
    into, standby = story.uri("region=eu", "region=us"), story.nodes.standby_us
    story.database.execute("comment on table here is 'spanvault.locality=region=mars'")
    story.hooks = {"plan.after_plan": [lambda: standby.stop(immediate=True)]}
    manifest = run_backup(story.context, story.cluster, story.request(into, workers=2))
    handed_on = [note for note in story.progress.notes if "standby_us hands" in note]
    assert handed_on, story.progress.notes
    assert {file.locality for file in story.files(into, manifest)} == {"region=eu"}
    mars = r"Tables that belong to region=mars, where the cluster has no node, are read by .*: public\.here \("
    assert any(re.match(mars, note) for note in story.progress.notes)
    story.progress.notes.clear()
    story.plan(into)
    standby.start()
    story.nodes.caught_up()
    (us,) = [note for note in story.progress.notes if note.startswith("Tables that belong to region=us")]
    assert "where no node may read (standby_us: " in us
    assert re.search(
        r"stored at the URI of region=eu: public\.(part_1|there), public\.(part_1|there) \(tables: 2, spans: \d+\)\.$", us
    )


def test_tables_are_read_where_they_belong(story: Story) -> None:
    """`there` by clusters.yaml, `part_1` by the comment of the table that it is a partition of, `part_2` by its own, those of
    the schema `abroad` by the schema's, unless one nearer says otherwise."""
    into = story.uri("region=eu", "region=us")
    story.database.execute(_ABROAD)
    story.nodes.caught_up()
    manifest = story.backup(into)
    named = (*TABLES, "abroad.plain", "abroad.own", "abroad.part_3")
    oids = {table: story.database.execute(f"select '{table}'::regclass::oid::int8")[0][0] for table in named}
    storage = story.context.unlocking(KEY).storage(into)
    receipts = read_receipts(storage, manifest.subdir, 0).values()
    readers = {table: {one.node for one in receipts if one.file.table_oid == oid} for table, oid in oids.items()}
    assert readers["there"] == readers["part_1"] == {"standby_us"}
    assert readers["part_2"] == readers["abroad.own"] == readers["abroad.part_3"] == {"standby_b"}
    assert readers["abroad.plain"] == {"standby_us"}
    placed = Counter((file.table_oid, file.locality) for file in story.files(into, manifest) if file.role == "base")
    assert {locality for oid, locality in placed if oid == oids["there"]} == {"region=us"}
    assert {locality for oid, locality in placed if oid == oids["part_2"]} == {"region=eu"}
    assert story.restored(into) == story.rows()


@pytest.mark.parametrize(
    ("tiers", "execution_locality", "sentence"),
    [
        (
            "region=eu",
            "",
            r"belongs to region=us, where no node may read \(standby_us: no URI is given for region=us or zone=a\)",
        ),
        ("region=us", "", r"With strict, the primary primary \(region=eu,zone=a\) needs a URI"),
        ("zone=a", "zone=b", "With strict, no node is left"),
        ("region=eu", "region=mars", "No node matches EXECUTION LOCALITY = 'region=mars'; the nodes of"),
    ],
)
def test_nodes_that_are_not_there_are_asked_for(story: Story, tiers: str, execution_locality: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        story.plan(story.uri(tiers), strict=True, execution_locality=execution_locality)
    assert not list(story.folder.rglob("*"))
    assert not held_here(story)


def held_here(story: Story) -> list[str]:
    """The slots and publications in the story's database."""
    slots = "select slot_name::text from pg_replication_slots where database = current_database()"
    found = story.database.execute(f"{slots} union all select pubname::text from pg_publication")
    return [name for (name,) in found]


def test_what_is_refused_leaves_nothing_behind(story: Story) -> None:
    """Neither a slot that keeps the source's log, nor a publication, nor a file."""
    into = story.uri("region=eu", "region=us")
    with pytest.raises(Refused, match="Fingerprints are computed on the primary"):
        story.plan(into, execution_locality="region=us", fingerprint=True)
    story.database.execute("create table keyless (v text); insert into keyless values ('x')")
    with pytest.raises(Refused, match=r"The log does not tell the changes of public\.keyless"):
        story.plan(into, execution_locality="region=us")
    with pytest.raises(NotFound, match="has no table or view"):
        missing = BackupRequest(target=TableTarget(patterns=(TablePattern(name="missing"),)), into=into, encryption=KEY)
        plan_backup(story.context.unlocking(KEY), story.cluster, missing, run_key=str(uuid.uuid4()))
    assert not list(story.folder.rglob("*"))
    assert not held_here(story)


def test_strict_with_a_place_for_each_node(story: Story) -> None:
    into = story.uri("region=eu", "region=us")
    manifest = story.backup(into, strict=True)
    assert {file.locality for file in story.files(into, manifest)} == {"region=eu", "region=us"}


def read_by_scans(story: Story) -> tuple[int, ...]:
    """Scans on the primary and rows that they read, by sessions that have ended, as all others have by then. A scan of some
    pages counts by its rows only."""
    wait_for(story.nodes.primary, f"select count(*) = 0 from pg_stat_activity where datname = '{story.database.name}'")
    scans = "select sum(seq_scan), sum(seq_tup_read), sum(idx_scan) from pg_stat_user_tables"
    return tuple(story.database.execute(scans)[0])


def reads_in_log(server: PostgresServer) -> Counter[str]:
    """How often a statement in the server's log reads one of the tables, by table."""
    entries = re.split(r"^(?=\d{4}-\d\d-\d\d )", server.log.read_text(errors="replace"), flags=re.MULTILINE)
    reads = re.compile(rf'\b(?:FROM|COPY) (?:ONLY )?"?public"?\."?({"|".join(TABLES)})\b', re.IGNORECASE)
    return Counter(
        table for entry in entries if re.search(r" LOG:  (?:statement|execute )", entry) for table in reads.findall(entry)
    )


def test_an_execution_locality_without_the_primary_reads_no_table_there(story: Story) -> None:
    into = story.uri("region=eu", "region=us")
    # The servers log each statement of new sessions; standbys have the setting by replication.
    story.database.execute(f"alter database {story.database.name} set log_statement = 'all'")
    story.nodes.caught_up()
    before, read_before = read_by_scans(story), {server.name: reads_in_log(server) for server in story.nodes.servers}
    manifest = story.backup(into, execution_locality="region=us")
    assert read_by_scans(story) == before
    read = {server.name: reads_in_log(server) - read_before[server.name] for server in story.nodes.servers}
    assert set(read["standby_us"]) == set(TABLES), "so would have been seen what the primary reads"
    assert not read["primary"]
    assert not read["standby_b"]
    storage = story.context.unlocking(KEY).storage(into)
    assert {one.node for one in read_receipts(storage, manifest.subdir, 0).values()} == {"standby_us"}
    assert story.restored(into) == story.rows()
    with pytest.raises(Refused, match="does not match the primary primary, which is needed here"):
        run_restore(
            story.context,
            story.cluster,
            RestoreRequest(
                target=DatabaseTarget(names=(story.database.name,)),
                collection=into,
                options=RestoreOptions(new_db_name="never", execution_locality="region=us"),
                encryption=KEY,
            ),
            processes=False,
        )
    story.database.execute("create table keyless (v text); insert into keyless values ('x')")
    with pytest.raises(Refused, match=r"The log does not tell the changes of public\.keyless, so they are read on the primary"):
        story.plan(into, execution_locality="region=us")
