"""Other versions of PostgreSQL than the wheel's, as sources and as targets: those that are installed where Debian puts them.

One server of the version has two databases: `zoo` with one of every kind of object, and `shop`, whose rows and columns change
between backups. What the restored databases must be is what the source's own dumps and rows said at each moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from spanvault.collection.receipts import read_receipts
from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres import archive
from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.preflight import examine
from spanvault.embedded.binaries import PG_BIN_VARIABLE
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.ddl_logs import install_ddl_log, remove_ddl_log
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import uninstall
from spanvault.engine.protections import all_held
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import abandon_restore, plan_restore, restore_schema
from spanvault.engine.steps import export_batch, plan_backup, seal_backup, write_manifest
from spanvault.errors import BadInput, BrokenChain, Busy, Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from spanvault.restore import finish
from tests.kit.dumps import database_text, globals_text
from tests.kit.harness import Notes
from tests.kit.object_zoo import pieces
from tests.kit.object_zoo_outside import CHANGES, CLUSTER, DATABASE
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, endpoint_of
from tests.kit.standbys import wait_for
from tests.kit.versions import VERSIONS, programs, understood

pytestmark = [pytest.mark.slow, pytest.mark.apt]

OWN = 18  # the wheel's

SHOP = """
CREATE TABLE account (id int PRIMARY KEY, balance numeric NOT NULL, note text, doubled numeric GENERATED ALWAYS AS (balance * 2)
    STORED);
ALTER TABLE account ALTER note SET STORAGE EXTERNAL;
INSERT INTO account SELECT i, i * 1.5, repeat(md5(i::text), CASE WHEN i % 10 = 0 THEN 200 ELSE 1 END)
    FROM generate_series(1, 300) i;
CREATE TABLE visit (at timestamptz, what text);
INSERT INTO visit VALUES ('2026-01-02 03:04:05+06', 'no key'), ('-infinity', NULL);
CREATE TABLE counted (v text, loud text GENERATED ALWAYS AS (upper(v)) STORED);
ALTER TABLE counted REPLICA IDENTITY FULL;
INSERT INTO counted VALUES ('twice'), ('twice'), ('once');
CREATE TABLE part (id int, at date, v jsonb, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE part_old PARTITION OF part FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
CREATE TABLE part_new PARTITION OF part FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
INSERT INTO part SELECT i, date '2025-12-25' + i, jsonb_build_object('i', i) FROM generate_series(1, 20) i;
SELECT lo_from_bytea(77, convert_to(repeat('large object ', 999), 'UTF8'));
"""
CHANGES_OF_SHOP = (
    "UPDATE account SET balance = balance + 1 WHERE id % 3 = 0; UPDATE account SET id = id + 1000 WHERE id % 10 = 0",
    "DELETE FROM counted WHERE ctid = '(0,1)'; UPDATE part SET at = '2026-05-05' WHERE id = 2; DELETE FROM account WHERE id < 9",
    "CREATE TABLE born (id int PRIMARY KEY, v text); INSERT INTO born VALUES (1, 'with the DDL log')",
    "ALTER TABLE account ADD COLUMN late int DEFAULT 7; INSERT INTO account (id, balance) VALUES (1, 0.00)",
    "TRUNCATE part_old; INSERT INTO visit VALUES ('infinity', 'later'); SELECT lo_put(77, 3, 'LARGE')",
)
ZOO, SHOP_TARGET = DatabaseTarget(names=("zoo",)), DatabaseTarget(names=("shop",))
LOGGED_TABLES = ("account", "counted", "part", "born")  # the last one since it is there
SHOP_TABLES = (*LOGGED_TABLES, "visit")
# Rows hashed by an enum lie in other partitions in every database; the zoo's event triggers see the backup's own commands.
COMPARED = ("--exclude-table-data=zoo.ddl*", "--exclude-table-data=zoo.by_hash*")


def rows_of(shop: TestDatabase, *tables: str) -> dict[str, list[str]]:
    """The rows of these tables as text, without the column that comes later."""
    columns = {"account": "(SELECT id, balance, note, doubled FROM account)"}
    return {one: [row[0] for row in shop.execute(f"SELECT t::text FROM {columns.get(one, one)} t ORDER BY 1")] for one in tables}


def backed_up(
    main: TestDatabase,
    uri: str,
    target: Target,
    *,
    append: bool = False,
    encryption: EncryptionOptions | None = None,
    **given: object,
) -> Manifest:
    request = BackupRequest(
        target=target,
        into=uri,
        append="LATEST" if append else None,
        options=BackupOptions.model_validate({"protection": "1h", **given}),
        encryption=encryption or EncryptionOptions(),
    )
    return run_backup(Context(progress=Notes()), main.cluster, request, processes=False)


def restored(main: TestDatabase, uri: str, target: Target, **given: object) -> list[str]:
    """Run the restore on the server of `main`; its notes."""
    place = {name: given.pop(name) for name in ("as_of", "encryption") if name in given}
    options = RestoreOptions.model_validate(given)
    notes = Notes()
    request = RestoreRequest.model_validate({"target": target, "collection": uri, "options": options, **place})
    run_restore(Context(progress=notes), main.cluster, request, processes=False)
    return notes.notes


@dataclass
class Source:
    """A server of an older version, the chain of its backups, and what was there at each moment."""

    version: int
    server: PostgresServer
    uri: str
    moments: list[tuple[Lsn, dict[str, list[str]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.main, self.zoo, self.shop = (TestDatabase(self.server, name) for name in ("postgres", "zoo", "shop"))
        self.run(self.main, CLUSTER, "CREATE DATABASE zoo TEMPLATE template0", "CREATE DATABASE shop TEMPLATE template0")
        # The wheel's server, where all of it goes to, is built without ICU.
        self.run(self.zoo, *pieces(self.version, icu=False).values())
        self.run(self.main, DATABASE.format(name="zoo"))
        self.run(self.shop, SHOP)
        install_ddl_log(Context(), self.main.cluster, "shop")
        self.full = backed_up(self.main, self.uri, ClusterTarget(), fingerprint=True)
        self.zoo_at_full = database_text(self.zoo, *COMPARED)
        for statement in CHANGES_OF_SHOP:
            self._change(statement)
        self.run(self.zoo, CHANGES)
        self.last = backed_up(self.main, self.uri, ClusterTarget(), append=True, revision_history=True, fingerprint=True)
        self.rows = rows_of(self.shop, *SHOP_TABLES)
        remove_ddl_log(Context(), self.main.cluster, "shop")
        self.text = {one.name: database_text(one, "--create", *COMPARED) for one in (self.zoo, self.shop)}
        self.globals = globals_text(self.main)

    def run(self, database: TestDatabase, *texts: str) -> None:
        for text in texts:
            options = "-c default_transaction_read_only=off"
            with psycopg.connect(database.url, autocommit=True, options=options) as connection:
                connection.execute(understood(text, self.version).encode())

    def _change(self, statement: str) -> None:
        self.shop.execute(statement)
        ((position, born),) = self.shop.execute("SELECT pg_current_wal_insert_lsn()::text, to_regclass('born') IS NOT NULL")
        self.moments.append((Lsn.parse(position), rows_of(self.shop, *LOGGED_TABLES[: None if born else -1])))


@pytest.fixture(scope="module", params=VERSIONS, ids="postgresql-{}".format)
def source(request: pytest.FixtureRequest, servers_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    version = request.param
    folder = servers_folder / f"source-{version}"
    with PostgresServer(folder, settings=SOURCE_SETTINGS, name=f"v{version}", programs=programs(version)) as server:
        yield Source(version, server, f"file://{tmp_path_factory.mktemp('collection')}")


@pytest.fixture
def newest(servers_folder: Path) -> Iterator[PostgresServer]:
    """A new server of the wheel's version."""
    with PostgresServer(servers_folder / "newest", settings=SOURCE_SETTINGS, name="newest") as server:
        yield server


@pytest.fixture
def deadlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs of pg_restore deadlock whenever a database gets its indexes: only what comes last is made, and the rest anew."""
    real = archive.restore_entries

    def without_the_rest(endpoint: Endpoint, database: str, file: Path, entries: Sequence[Entry], **given: Any) -> None:
        if given["jobs"] == 1:
            return real(endpoint, database, file, entries, **given)
        last = [entry for entry in entries if "EVENT TRIGGER" in entry.sql]
        real(endpoint, database, file, last, **given)
        raise Busy("deadlock detected")

    monkeypatch.setattr(finish, "restore_entries", without_the_rest)


HASHED = "SELECT c::text, n FROM zoo.by_hash ORDER BY 1, 2"
DDL = "SELECT n, tag, event FROM zoo.ddl ORDER BY n"


def as_before_16(text: str) -> str:
    """pg_dump's text without what PostgreSQL 16 leaves out: in views over one relation the relation before each column."""
    view = re.compile(r"^CREATE (?:OR REPLACE )?(?:MATERIALIZED )?(?:RECURSIVE )?VIEW .*?;$", re.MULTILINE | re.DOTALL)
    return view.sub(lambda found: re.sub(r'"(?:[^"]|"")+"\.', "", found[0]), text)


def memberships_since_16(text: str) -> str:
    """pg_dumpall's text of memberships in the form of version 16, which keeps with each who granted it and whether the member
    inherits: as the member's own attribute said before."""
    grant = re.compile(r'^(GRANT ("(?:[^"]|"")+") TO ("(?:[^"]|"")+"))( WITH ADMIN OPTION)?;$', re.MULTILINE)
    without = set(re.findall(r'^ALTER ROLE ("(?:[^"]|"")+") WITH .*NOINHERIT', text, re.MULTILINE))

    def inherits(found: re.Match[str]) -> str:
        admin = "ADMIN OPTION, " if found[4] else ""
        return f'{found[1]} WITH {admin}INHERIT {"FALSE" if found[3] in without else "TRUE"} GRANTED BY "postgres";'

    return grant.sub(inherits, text)


def non_empty(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_every_kind_of_object_comes_back_on_its_own_version(source: Source, deadlocked: None) -> None:
    at_full, at_end = TestDatabase(source.server, "zoo at the full"), TestDatabase(source.server, "zoo_later")
    given = {"grants": True, "verify_fingerprint": True}
    restored(source.main, source.uri, ZOO, as_of=source.full.end.lsn, new_db_name=at_full.name, **given)
    assert database_text(at_full, *COMPARED) == source.zoo_at_full
    notes = restored(source.main, source.uri, ZOO, as_of=source.last.end.lsn, new_db_name=at_end.name, **given)
    assert database_text(at_end, *COMPARED) == database_text(source.zoo, *COMPARED)
    assert any("Subscriptions come back disabled" in note for note in notes)
    assert len(at_end.execute(HASHED)) == 12
    assert at_end.execute(HASHED) == source.zoo.execute(HASHED)
    for copy in (at_full, at_end):
        rows = copy.execute(DDL)
        assert rows
        assert rows == source.zoo.execute(DDL)[: len(rows)], "no command of the restore fired a restored event trigger"


def test_every_moment_comes_back_on_its_own_version(source: Source) -> None:
    for number, (position, rows) in list(enumerate(source.moments))[::2]:
        copy = TestDatabase(source.server, f"shop_{number}")
        given = {"new_db_name": copy.name, "verify_fingerprint": True, "skip_unrestorable_tables": "born" not in rows}
        restored(source.main, source.uri, SHOP_TARGET, as_of=position, **given)
        assert rows_of(copy, *rows) == rows
    restored(source.main, source.uri, SHOP_TARGET, new_db_name="shop_last", verify_fingerprint=True)
    last = TestDatabase(source.server, "shop_last")
    assert database_text(last, "--create", *COMPARED).replace("shop_last", "shop") == source.text["shop"]


def test_a_cluster_comes_back_on_the_newest_version(source: Source, newest: PostgresServer, deadlocked: None) -> None:
    main = TestDatabase(newest, "postgres")
    restored(main, source.uri, ClusterTarget())
    zoo, shop = TestDatabase(newest, "zoo"), TestDatabase(newest, "shop")
    assert rows_of(shop, *SHOP_TABLES) == source.rows
    assert shop.execute("SELECT lo_get(77)") == source.shop.execute("SELECT lo_get(77)")
    assert zoo.execute(HASHED) == source.zoo.execute(HASHED)
    for one in (zoo, shop):
        here, there = database_text(one, "--create", *COMPARED), source.text[one.name]
        if source.version < 16:
            here, there = as_before_16(here), as_before_16(there)
        assert here == there
    there = source.globals if source.version >= 16 else memberships_since_16(source.globals)
    assert non_empty(globals_text(main)) == non_empty(there)


def test_a_newer_backup_is_refused_before_anything_is_made(source: Source, newest: PostgresServer, tmp_path: Path) -> None:
    there = TestDatabase(newest, "postgres")
    there.execute("CREATE ROLE only_there")
    there.execute("CREATE DATABASE item")
    TestDatabase(newest, "item").execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    uri = f"file://{tmp_path}/newer"
    backed_up(there, uri, ClusterTarget(), protection="none")
    source.main.execute("CREATE DATABASE part_of_item")
    before = database_text(TestDatabase(source.server, "part_of_item"), "--create")
    wanted: list[tuple[Target, dict[str, str]]] = [
        (ClusterTarget(), {}),
        (DatabaseTarget(names=("item",)), {}),
        (TableTarget(patterns=(TablePattern(database="item", name="t"),)), {"into_db": "part_of_item"}),
    ]
    for target, given in wanted:
        with pytest.raises(Refused, match=rf"is of PostgreSQL {OWN}\..*, and the target is PostgreSQL {source.version}\."):
            restored(source.main, uri, target, **given)
    assert database_text(TestDatabase(source.server, "part_of_item"), "--create") == before
    made = "SELECT (SELECT count(*) FROM pg_database WHERE datname = 'item'), count(*) FROM pg_roles WHERE rolname = 'only_there'"
    assert source.main.execute(made) == [(0, 0)]


LETTERS = """
CREATE SCHEMA s;
CREATE TABLE s.word (id int PRIMARY KEY, w text);
CREATE TABLE s.other (w text);
INSERT INTO s.word SELECT i, chr(96 + i) FROM generate_series(1, 26) i;
INSERT INTO s.other SELECT w FROM s.word;
CREATE VIEW s.vowel AS SELECT w FROM s.word WHERE w IN ('a', 'e', 'i', 'o', 'u');
"""
KEY = EncryptionOptions(passphrase=SecretStr("correct horse"))


@pytest.fixture
def letters(source: Source) -> TestDatabase:
    """A database with a locale provider of its own, where the version has that."""
    provider = "LOCALE_PROVIDER icu ICU_LOCALE 'de'" if source.version >= 15 else ""
    source.main.execute("DROP DATABASE IF EXISTS letters WITH (FORCE)")
    source.main.execute(f"CREATE DATABASE letters TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' {provider}")
    database = TestDatabase(source.server, "letters")
    database.execute(LETTERS)
    return database


def test_parts_and_encrypted_chains_come_back(source: Source, letters: TestDatabase, tmp_path: Path) -> None:
    main, name = source.main, letters.name
    targets: dict[str, tuple[Target, tuple[str, ...]]] = {
        "schema": (SchemaTarget(names=((name, "s"),)), ("s.word", "s.other", "s.vowel")),
        "table": (TableTarget(patterns=(TablePattern(database=name, schema_name="s", name="word"),)), ("s.word",)),
    }
    main.execute("CREATE DATABASE parts")
    parts = TestDatabase(source.server, "parts")
    for kind, (target, relations) in targets.items():
        uri = f"file://{tmp_path}/{kind}"
        backed_up(main, uri, target, protection="none")
        parts.execute("DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA s" if kind == "table" else "SELECT 1")
        request = RestoreRequest(target=target, collection=uri, options=RestoreOptions.model_validate({"into_db": "parts"}))
        plan = plan_restore(Context(), main.cluster, request)
        restore_schema(Context(), main.cluster, plan.request)
        abandon_restore(Context(), main.cluster, plan.request)
        run_restore(Context(), main.cluster, request, processes=False)
        assert rows_of(parts, *relations) == rows_of(letters, *relations)
    uri, whole = f"file://{tmp_path}/whole", DatabaseTarget(names=(name,))
    backed_up(main, uri, whole, encryption=KEY)
    letters.execute("DELETE FROM s.word WHERE id > 13; UPDATE s.other SET w = upper(w); ALTER TABLE s.other ADD PRIMARY KEY (w)")
    backed_up(main, uri, whole, append=True, encryption=KEY)
    restored(main, uri, whole, encryption=KEY, new_db_name="letters_copy")
    copy = database_text(TestDatabase(source.server, "letters_copy"), "--create")
    assert copy.replace("letters_copy", "letters") == database_text(letters, "--create")
    assert ("LOCALE_PROVIDER = icu" in copy) == (source.version >= 15)


def test_a_standby_is_read(source: Source, servers_folder: Path, tmp_path: Path) -> None:
    with PostgresServer.standby_of(source.server, servers_folder / "standby", name="standby") as standby:
        cluster = Cluster(name="both", endpoints=tuple(endpoint_of(server, "shop") for server in (source.server, standby)))
        position = source.main.execute("SELECT pg_current_wal_flush_lsn()::text")[0][0]
        wait_for(standby, f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn")
        uri, context = f"file://{tmp_path}/standby", Context()
        request = BackupRequest(target=SHOP_TARGET, into=uri, options=BackupOptions(protection="none"))
        plan = plan_backup(context, cluster, request, run_key="standby")
        plan = plan.model_copy(update={"batches": tuple(one.model_copy(update={"nodes": ("standby",)}) for one in plan.batches)})
        for batch in plan.batches:
            export_batch(context, cluster, uri, plan, batch.index)
        nodes = {receipt.node for receipt in read_receipts(context.storage(uri), plan.subdir, plan.number).values()}
        write_manifest(context, uri, plan, seal_backup(context, cluster, uri, plan))
    source.main.execute("SELECT pg_drop_replication_slot('standby')")
    assert nodes == {"standby"}
    restored(source.main, uri, SHOP_TARGET, new_db_name="shop_by_standby", verify_fingerprint=True)
    assert rows_of(TestDatabase(source.server, "shop_by_standby"), *SHOP_TABLES) == source.rows


def test_programs_of_the_version_serve_its_servers_and_no_newer_ones(
    source: Source, letters: TestDatabase, newest: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = DatabaseTarget(names=(letters.name,))
    by_newest = f"file://{tmp_path}/by_newest"
    backed_up(source.main, by_newest, target, protection="none")
    monkeypatch.setenv(PG_BIN_VARIABLE, str(programs(source.version)))
    uri = f"file://{tmp_path}/own"
    backed_up(source.main, uri, target, protection="none")
    restored(source.main, uri, target, new_db_name="by_own_programs")
    text = database_text(TestDatabase(source.server, "by_own_programs"), "--create")
    assert text.replace("by_own_programs", "letters") == database_text(letters, "--create")

    there = TestDatabase(newest, "postgres")
    (check,) = [check for check in examine(there.endpoint) if check.name == "programs"]
    assert check.status == "failed"
    assert PG_BIN_VARIABLE in check.fix
    with pytest.raises(BadInput, match=f"pg_dump is of PostgreSQL {source.version}, and the server of {OWN}"):
        backed_up(there, f"file://{tmp_path}/refused", ClusterTarget())
    assert there.execute("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    if source.version < 17:  # whose pg_restore knows the archives of 18
        with pytest.raises(BadInput, match=f"pg_restore is of an older PostgreSQL.*{PG_BIN_VARIABLE}"):
            restored(source.main, by_newest, target, new_db_name="never_made")
        assert source.main.execute("SELECT count(*) FROM pg_database WHERE datname = 'never_made'") == [(0,)]


def test_a_slot_that_was_given_up_ends_its_chain(source: Source, letters: TestDatabase, tmp_path: Path) -> None:
    uri, target = f"file://{tmp_path}/given_up", DatabaseTarget(names=(letters.name,))
    backed_up(source.main, uri, target)
    source.main.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    source.main.execute("SELECT pg_reload_conf()")
    for _ in range(3):
        source.main.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")
        source.main.execute("SELECT pg_switch_wal()")
    source.main.execute("CHECKPOINT")
    why = "wal_removed" if source.version >= 17 else "wal_status lost"
    with pytest.raises(BrokenChain, match=rf"gave up the replication slot .*\({why}: it held more log than max_slot_wal_keep"):
        backed_up(source.main, uri, target, append=True, on_broken_chain="fail")


def test_nothing_is_left(source: Source) -> None:
    """The last one: what the other backups hold goes."""
    assert [check.name for check in examine(source.main.endpoint) if check.status == "failed"] == []
    assert all_held(source.main.cluster)
    uninstall(Context(), source.main.cluster)
    assert all_held(source.main.cluster) == []
    assert source.main.execute("SELECT slot_name FROM pg_replication_slots") == []
    assert source.shop.execute("SELECT pubname FROM pg_publication") == []
