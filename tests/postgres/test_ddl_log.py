"""The optional DDL log on real PostgreSQL: what it writes, how it comes and goes, and that it never breaks the application."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import psycopg
import pytest

from spanvault.database.postgres import ddl_log
from spanvault.database.postgres.connect import connect
from spanvault.engine.context import Context
from spanvault.engine.maintenance import collection_check, compact_backups, uninstall
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput, Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest, ManifestTable
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from spanvault.restore.origin import AtCut
from tests.kit.command_line import spanvault
from tests.kit.harness import Backup, Notes
from tests.kit.servers import TestDatabase, drop_database

pytestmark = pytest.mark.slow

ENTRIES = "select tag, event, identity from spanvault.ddl_log order by id"
LEFT = "select (select count(*) from pg_event_trigger), (select count(*) from pg_namespace where nspname = 'spanvault')"


def install(database: TestDatabase) -> None:
    with connect(database.endpoint) as connection:
        ddl_log.install(connection)


def state(database: TestDatabase) -> tuple[str, int, int]:
    with connect(database.endpoint) as connection:
        found = ddl_log.status(connection)
    return found.state, found.published, found.publications


def published(database: TestDatabase) -> set[str]:
    return {name for (name,) in database.execute("select distinct tablename from pg_publication_tables")}


@pytest.fixture
def logged(database: TestDatabase, tmp_path: Path) -> Backup:
    """A database with the DDL log, and the publication and chain of a first full backup."""
    install(database)
    database.execute("create table first (id int primary key)")
    backup = Backup(database, tmp_path / "collection")
    backup.take()
    return backup


def names(manifest: Manifest) -> set[str]:
    return {table.qualified for table in manifest.databases[0].database.tables}


def test_it_comes_and_goes_twice(database: TestDatabase) -> None:
    database.execute("create publication spanvault_abc")
    assert state(database) == ("absent", 0, 0)
    for _ in range(2):
        install(database)
        assert state(database) == ("installed", 1, 1)
    database.execute("create publication spanvault_def")
    assert state(database) == ("installed", 2, 2), "a publication that is made later carries it from its birth"
    for _ in range(2):
        with connect(database.endpoint) as connection:
            ddl_log.remove(connection)
        assert state(database) == ("absent", 0, 0)
    assert database.execute(LEFT) == [(0, 0)]


def test_what_is_missing_switched_off_or_old_shows(database: TestDatabase) -> None:
    install(database)
    database.execute("comment on function spanvault.log_ddl() is 'another version'")
    assert state(database)[0] == "outdated"
    install(database)
    database.execute("alter event trigger spanvault_sql_drop disable")
    assert state(database)[0] == "incomplete"
    install(database)
    assert state(database)[0] == "installed"
    database.execute("drop function spanvault.log_ddl() cascade")
    assert state(database)[0] == "incomplete"


def test_a_schema_of_that_name_of_somebody_elses_is_refused(database: TestDatabase) -> None:
    database.execute("create schema spanvault; create table spanvault.ddl_log (mine int)")
    with pytest.raises(Refused, match=r"has a schema \"spanvault\" that is not Spanvault's; rename it first"):
        install(database)
    with connect(database.endpoint) as connection:
        ddl_log.remove(connection)
    assert database.execute("select * from spanvault.ddl_log") == []


def test_a_role_that_may_not_is_given_the_script_that_an_administrator_runs(database: TestDatabase) -> None:
    database.execute(f'create role plain login; grant create on database "{database.name}" to plain')
    try:
        refused = spanvault(
            "cluster", "ddl-log", "install", "--url", database.url.replace("postgres@", "plain@"), "--database", database.name
        )
        assert refused.returncode == 2
        sentence, _, script = refused.stderr.partition("run this there:\n")
        assert f"The role plain may not install the DDL log in database '{database.name}'" in sentence
        assert database.execute(LEFT) == [(0, 0)], "nothing is left half"
        database.execute(script)
        assert state(database)[0] == "installed"
        with (
            pytest.raises(BadInput, match="let an administrator run this there:\nDROP EVENT TRIGGER"),
            connect(database.endpoint.model_copy(update={"user": "plain"})) as connection,
        ):
            ddl_log.remove(connection)
        assert state(database)[0] == "installed"
    finally:
        database.execute("drop owned by plain; drop role plain")


def test_the_command_line(database: TestDatabase) -> None:
    arguments = ["--url", database.url, "--database", database.name, "--format", "csv"]
    for command, expected in (("install", "installed"), ("status", "installed"), ("remove", "absent"), ("status", "absent")):
        done = spanvault("cluster", "ddl-log", command, *arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{database.name},{expected},0,", done.stdout, re.MULTILINE)
    unknown = spanvault("cluster", "ddl-log", "status", "--url", database.url, "--database", "nowhere")
    assert (unknown.returncode, "has no database 'nowhere'" in unknown.stderr) == (2, True)


def test_each_command_on_a_table_is_an_entry(database: TestDatabase) -> None:
    install(database)
    for statement in (
        "create table t (id int primary key, c int)",
        "alter table t rename c to d",
        "create temp table passing (id int primary key)",
        "create view v as select 1 as one",
        "create table roots (id int primary key) partition by list (id)",
        'create table "A leaf" partition of roots for values in (1)',
        "alter table roots add x int",
        "create type kind as (a int); create table typed of kind",
        "alter type kind add attribute b int cascade",
        "create type mood as enum ('well'); create table felt (m mood, n int)",
        "drop type mood cascade",
        "drop table t",
    ):
        database.execute(statement)
    assert database.execute(ENTRIES) == [
        ("CREATE TABLE", "create", "public.t"),
        ("ALTER TABLE", "alter", "public.t"),
        ("CREATE TABLE", "create", 'public."A leaf"'),
        ("ALTER TABLE", "alter", 'public."A leaf"'),
        ("CREATE TABLE", "create", "public.typed"),
        ("ALTER TYPE", "alter", "public.typed"),
        ("CREATE TABLE", "create", "public.felt"),
        ("DROP TYPE", "alter", "public.felt"),
        ("DROP TABLE", "drop", "public.t"),
    ]


def test_old_entries_are_deleted_now_and_then(database: TestDatabase) -> None:
    install(database)
    database.execute("create table t (id int primary key)")
    database.execute("update spanvault.ddl_log set logged_at = now() - interval '31 days'")
    for number in range(60):
        database.execute(f"alter table t alter id set statistics {number}")
    assert database.execute("select count(*), min(logged_at) > now() - interval '1 day' from spanvault.ddl_log") == [(60, True)]


def test_a_new_table_with_a_key_is_published_at_once(logged: Backup) -> None:
    database = logged.database
    database.execute("create table keyed (id int primary key); create table bare (id int)")
    database.execute("create table filled as select 1 as id; select 1 as id into chosen")
    database.execute("create unlogged table light (id int primary key); create table refers (r regclass primary key)")
    assert published(database) == {"ddl_log", "first", "keyed"}
    later = database.connect(autocommit=False)
    later.execute("create table undone (id int primary key)")
    later.rollback()
    later.close()
    assert published(database) == {"ddl_log", "first", "keyed"}


@pytest.mark.parametrize(
    "loss",
    [
        "alter table t drop constraint t_pkey",
        "alter table t replica identity nothing",
        "alter table t drop id",
        "alter table t replica identity using index other; drop index other",
        "alter table t replica identity full; alter table t add g int generated always as (id) stored",
        "alter table t add g int generated always as (id) virtual; alter table t replica identity full",
        "alter table t drop constraint t_pkey; alter table t add g int generated always as (id) stored, replica identity full",
    ],
)
def test_a_table_that_loses_its_identity_leaves_at_once_and_updates_go_on(logged: Backup, loss: str) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, v int not null); create unique index other on t (v)")
    database.execute("insert into t values (1, 1)")
    assert "t" in published(database)
    with database.connect(autocommit=False) as session:
        for statement in loss.split("; "):
            session.execute(statement)
        session.execute("update t set v = 2")
    assert published(database) == {"ddl_log", "first"}
    database.execute("delete from t")


def test_a_key_that_is_exchanged_in_one_command_stays_published(logged: Backup) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, v int)")
    database.execute("alter table t drop constraint t_pkey, add primary key (id, v)")
    assert "t" in published(database)


def test_ddl_goes_on_when_the_trigger_fails(logged: Backup) -> None:
    database = logged.database
    database.execute("alter table spanvault.ddl_log add check (identity <> 'public.refused')")
    database.execute("create table refused (id int primary key)")
    assert database.execute(ENTRIES)[-1][1] == "failed"
    database.execute("drop table spanvault.ddl_log")
    database.execute(
        "create table t (id int primary key); alter table t add c int; drop table t; create table u as select 1 as a"
    )
    assert database.execute("select * from u") == [(1,)]
    assert logged.rows(logged.increment(), "u") == ["(1)"]


def test_a_user_who_makes_tables_needs_no_rights_on_it(logged: Backup) -> None:
    database = logged.database
    database.execute("create role maker login; create schema made authorization maker")
    try:
        with psycopg.connect(database.url.replace("postgres@", "maker@"), autocommit=True) as session:
            session.execute("create table made.t (id int primary key)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("select * from spanvault.ddl_log")
        assert "t" in published(database)
    finally:
        database.execute("drop owned by maker; drop role maker")


def test_it_is_no_users_table_and_is_not_restored(logged: Backup) -> None:
    manifest = logged.increment()
    assert names(manifest) == {"public.first"}
    target = f"{logged.database.name}_r"
    statement = f"RESTORE DATABASE \"{logged.database.name}\" FROM LATEST IN '{logged.uri}' WITH new_db_name = '{target}'"
    done = spanvault("sql", "--url", logged.database.url, statement)
    try:
        assert done.returncode == 0, done.stderr
        restored = TestDatabase(logged.database.server, target)
        assert restored.execute(LEFT) == [(0, 0)]
        assert restored.execute("select count(*) from pg_publication") == [(0,)]
    finally:
        logged.database.execute(f'drop database if exists "{target}" with (force)')


def test_uninstalling_removes_it(logged: Backup) -> None:
    uninstall(logged.context, logged.database.cluster)
    assert logged.database.execute(LEFT) == [(0, 0)]
    assert logged.database.execute("select count(*) from pg_publication") == [(0,)]


def test_an_open_transaction_that_made_a_table_lets_others_make_theirs(logged: Backup) -> None:
    database = logged.database
    with database.connect(autocommit=False) as session:
        session.execute("create table slow (id int primary key)")
        database.execute("create table quick (id int primary key)")
        assert "quick" not in published(database), "the publication is locked; the next backup adds it"
        session.commit()
    assert logged.rows(logged.increment(), "quick") == []
    assert {"slow", "quick"} <= published(database)


def rows_everywhere(backup: Backup, manifest: Manifest, table: str) -> None:
    """The layer's end holds what the source has now."""
    assert backup.rows(manifest, table) == backup.source_rows(table)


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_columns_are_split_where_the_ddl_stands_among_the_changes(logged: Backup, history: bool) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, c int default 1, v text)")
    database.execute("insert into t select i, i, 'v' || i from generate_series(1, 100) i")
    logged.increment(revision_history=history)
    database.execute(
        "begin; update t set c = 99 where id < 40; alter table t drop c; update t set v = 'between' where id between 20 and 30;"
        "alter table t add c int default 5; update t set c = 6 where id in (10, 50); commit"
    )
    manifest = logged.increment(revision_history=history)
    rows_everywhere(logged, manifest, "t")
    assert logged.capture(manifest, "t") == "log"
    entry = table_entry(manifest, "t")
    assert entry.basis == 1
    database.execute("alter table t rename c to d; alter table t rename v to c; update t set c = 'now v', d = 7 where id = 11")
    database.execute("alter table t add passing int; update t set passing = 1; alter table t drop passing")
    third = logged.increment(revision_history=history)
    rows_everywhere(logged, third, "t")
    assert logged.capture(third, "t") == "log"


def table_entry(manifest: Manifest, name: str) -> ManifestTable:
    entry = manifest.databases[0]
    oid = next(table.oid for table in entry.database.tables if table.name == name)
    return next(table for table in entry.tables if table.oid == oid)


class Times:
    """Positions between the statements of an application, and what its tables held there."""

    def __init__(self, backup: Backup) -> None:
        self.backup = backup
        self.seen: list[tuple[Lsn, dict[str, list[str]]]] = []

    def after(self, statement: str, *tables: str) -> Lsn:
        """Run a statement; the position behind it, and the rows there."""
        self.backup.database.execute(statement)
        ((position,),) = self.backup.database.execute("select pg_current_wal_insert_lsn()::text")
        self.seen.append((Lsn.parse(position), {table: self.backup.source_rows(table) for table in tables}))
        return self.seen[-1][0]

    def assert_equal(self, manifest: Manifest) -> None:
        """Each position gives what the tables held."""
        for position, tables in self.seen:
            for table, rows in tables.items():
                assert self.backup.rows(manifest, table, at=position) == rows, f"{table} at {position}"


def restored(backup: Backup, at: Lsn, *tables: str) -> dict[str, list[str]]:
    """The rows of tables of a database restored to a position. Raises what the restore raises."""
    target = TestDatabase(backup.database.server, f"{backup.database.name}_r")
    options = RestoreOptions(new_db_name=target.name)
    whole = DatabaseTarget(names=(backup.database.name,))
    request = RestoreRequest(target=whole, collection=backup.uri, as_of=at, options=options)
    try:
        run_restore(Context(progress=Notes()), backup.database.cluster, request, processes=False)
        return {table: [row[0] for row in target.execute(f"select t::text from {table} t order by 1")] for table in tables}
    finally:
        drop_database(backup.database.server, target.name)


def test_a_new_table_is_followed_from_its_birth(logged: Backup) -> None:
    big = "string_agg(md5(random()::text), '') from generate_series(1, 400)"
    times = Times(logged)
    before = times.after("insert into first values (1)", "first")
    logged.database.execute("create table fresh (id int primary key, v text, n int)")
    logged.database.execute("alter table fresh alter v set storage external")
    times.after(f"insert into fresh select i, (select {big} where i > 0), i from generate_series(1, 50) i", "fresh", "first")
    times.after("update fresh set n = 0 where id < 9; update fresh set id = 900 where id = 4", "fresh")
    times.after("begin; create table empty (id int primary key); delete from fresh where id = 5; commit", "fresh", "empty")
    times.after("truncate fresh; insert into fresh values (1, 'again', 1)", "fresh", "empty")
    manifest = logged.increment(revision_history=True)
    assert logged.capture(manifest, "fresh") == logged.capture(manifest, "empty") == "log", "not read whole"
    entry = table_entry(manifest, "fresh")
    assert (entry.basis, entry.rows, entry.rows_exact, entry.shape_since) == (1, 1, True, None)
    assert before < entry.since < times.seen[1][0]
    times.assert_equal(manifest)
    logged.database.execute("update fresh set n = 7; insert into empty values (3)")
    later = logged.increment()
    rows_everywhere(logged, later, "fresh")
    rows_everywhere(logged, later, "empty")
    assert table_entry(later, "fresh").basis == 1
    with pytest.raises(Refused, match=r"no rows as of .* of public\.empty \(restorable from .*public\.fresh"):
        restored(logged, before, "first")
    findings = collection_check(logged.context, logged.uri, "checksums")
    assert [row["outcome"] for row in findings.dicts()] == ["pass"] * len(findings.rows)


def test_a_new_table_is_restored_at_moments_since_its_birth(logged: Backup) -> None:
    times = Times(logged)
    before = times.after("insert into first values (1)")
    logged.database.execute("create table fresh (id int primary key, v text)")
    times.after("insert into fresh select i, 'v' || i from generate_series(1, 50) i", "fresh", "first")
    times.after("delete from fresh where id > 20; alter table fresh add late text default 'x'", "fresh", "first")
    times.after("update fresh set late = v", "fresh", "first")
    logged.increment(revision_history=True)
    with pytest.raises(Refused, match=r"no rows as of .* of public\.fresh \(restorable from "):
        restored(logged, before)
    with pytest.raises(Refused, match=r"of public\.fresh \(its columns changed there; restorable from "):
        restored(logged, times.seen[1][0])
    for position, rows in times.seen[2:]:
        assert restored(logged, position, "fresh", "first") == rows


def test_moments_on_both_sides_of_columns_that_were_added_and_renamed(logged: Backup) -> None:
    times = Times(logged)
    logged.database.execute("create table t (id int primary key, c int)")
    logged.database.execute("insert into t select i, i from generate_series(1, 30) i")
    logged.increment(revision_history=True)
    first = times.after("update t set c = 0 where id < 5", "t")
    times.after("alter table t rename c to d; alter table t add e text default 'e e'; alter table t add f int", "t")
    times.after("update t set d = 1, f = 2 where id < 9; delete from t where id = 3", "t")
    manifest = logged.increment(revision_history=True)
    assert logged.capture(manifest, "t") == "log"
    assert restored(logged, first, "t")["t"] == [row.removesuffix(")") + ',"e e",)' for row in times.seen[0][1]["t"]]
    for position, rows in times.seen[1:]:
        assert restored(logged, position, "t") == rows
    assert table_entry(logged.increment(), "t").shape_since == table_entry(manifest, "t").shape_since


def test_moments_on_both_sides_of_a_dropped_column(logged: Backup) -> None:
    times = Times(logged)
    logged.database.execute("create table t (id int primary key, c int, v text)")
    logged.database.execute("insert into t select i, i, 'v' || i from generate_series(1, 30) i")
    logged.increment(revision_history=True)
    times.after("update t set c = 0 where id < 5", "t")
    times.after("alter table t rename c to d; update t set d = 3 where id = 9", "t")
    times.after(
        "begin; update t set v = 'gone' where id = 2; alter table t drop v; update t set d = 4 where id = 10; commit", "t"
    )
    times.after("update t set d = 1 where id = 11; delete from t where id = 3", "t")
    manifest = logged.increment(revision_history=True)
    assert logged.capture(manifest, "t") == "log"
    for position, _ in times.seen[:2]:
        with pytest.raises(Refused, match=r"of public\.t \(its columns changed there; restorable from "):
            restored(logged, position)
    for position, rows in times.seen[2:]:
        assert restored(logged, position, "t") == rows
    since = table_entry(manifest, "t").shape_since
    assert since is not None
    assert restored(logged, since, "t") == times.seen[2][1]


def test_tables_whose_first_rows_precede_their_publication_are_read_whole(logged: Backup) -> None:
    database = logged.database
    for statement in (
        "create table filled as select i as id from generate_series(1, 9) i; alter table filled add primary key (id)",
        "begin; create table late (id int not null); insert into late values (1); alter table late add primary key (id); commit",
        "create table retyped (id int primary key, v int); insert into retyped values (1, 1)",
        "alter table retyped alter v type text",
        "create table again (id int primary key); insert into again values (1)",
    ):
        database.execute(statement)
    (publication,) = database.execute("select pubname from pg_publication")[0]
    database.execute(f"alter publication {publication} drop table again; insert into again values (2)")
    database.execute(f"alter publication {publication} add table again")
    manifest = logged.increment()
    for table in ("filled", "late", "retyped", "again"):
        assert logged.capture(manifest, table) == "exact", table
        rows_everywhere(logged, manifest, table)


def test_a_table_that_lost_its_key_goes_on(logged: Backup) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, v int); insert into t values (1, 1)")
    rows_everywhere(logged, logged.increment(), "t")
    database.execute("alter table t drop constraint t_pkey; update t set v = 2")
    rows_everywhere(logged, logged.increment(), "t")
    database.execute("alter table t add primary key (id); update t set v = 3")
    rows_everywhere(logged, logged.increment(), "t")
    database.execute("update t set v = 4")
    manifest = logged.increment()
    rows_everywhere(logged, manifest, "t")
    assert logged.capture(manifest, "t") == "log"


def test_a_chain_that_began_before_the_installation(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key, c int); insert into t values (1, 1), (2, 2)")
    backup = Backup(database, tmp_path / "collection")
    backup.take()
    database.execute("update t set c = 9 where id = 1")
    install(database)
    database.execute("alter table t drop c; alter table t add c int default 5; update t set c = 6 where id = 2")
    database.execute("create table fresh (id int primary key); insert into fresh values (1)")
    first = backup.increment()
    rows_everywhere(backup, first, "t")
    rows_everywhere(backup, first, "fresh")
    database.execute("alter table t drop c; alter table t add c int default 7; update t set c = 8 where id = 1")
    database.execute("create table later (id int primary key); insert into later values (1)")
    second = backup.increment()
    for table in ("t", "fresh", "later"):
        rows_everywhere(backup, second, table)
        assert backup.capture(second, table) == "log"
    with connect(database.endpoint) as connection:
        ddl_log.remove(connection)
    database.execute("alter table t drop c; alter table t add c int default 4; update t set c = 3 where id = 1")
    rows_everywhere(backup, backup.increment(), "t")


@pytest.mark.parametrize("unseen", ["alter table t drop c", "alter table t add c int default 5", "both"])
def test_commands_that_the_log_missed_show(logged: Backup, unseen: str) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, c int, d int); insert into t values (1, 1, 1), (2, 2, 2)")
    logged.increment()
    database.execute("update t set c = 9 where id = 1")
    for statement in ("alter table t drop c", "alter table t add c int default 5", "alter table t rename d to e"):
        off = unseen in {statement, "both"} and "rename" not in statement
        triggers = ("spanvault_ddl_command_end", "spanvault_sql_drop") if off else ()
        for trigger in triggers:
            database.execute(f"alter event trigger {trigger} disable")
        database.execute(statement)
        for trigger in triggers:
            database.execute(f"alter event trigger {trigger} enable always")
        database.execute("update t set id = id + 10 where id = 2")
    manifest = logged.increment()
    rows_everywhere(logged, manifest, "t")
    assert logged.capture(manifest, "t") == "exact"


def test_layers_that_end_at_a_time_before_the_last_command(logged: Backup) -> None:
    database = logged.database
    database.execute("create table t (id int primary key, c int); insert into t select i, i from generate_series(1, 9) i")
    logged.increment()
    database.execute("update t set c = 0 where id = 1; alter table t add d int default 3; update t set d = 4 where id = 2")
    database.execute("create table early (id int primary key); insert into early values (1)")
    ((due,),) = database.execute("select clock_timestamp()")
    database.execute("update t set c = 8 where id = 3; alter table t drop c; alter table t add c int default 6")
    database.execute("create table late (id int primary key); insert into late values (1); insert into early values (2)")
    database.execute("update t set c = 7 where id = 5; alter table t drop d")
    layer = logged.increment(as_of=due, revision_history=True)
    assert logged.rows(layer, "early") == ["(1)"]
    assert logged.capture(layer, "early") == "log"
    database.execute("update t set c = 5 where id = 6; insert into late values (2); delete from early")
    last = logged.increment(revision_history=True)
    for table in ("t", "early", "late"):
        rows_everywhere(logged, last, table)


@pytest.mark.parametrize("seed", range(2))
def test_random_commands_and_changes(logged: Backup, seed: int) -> None:
    """Columns come, go and are renamed among changes, tables are made, emptied and dropped: each layer's end is the source,
    and each moment that gives a table at all gives it as it was."""
    random = Random(seed)
    database = logged.database
    database.execute("create table t0 (id int primary key, a int)")
    database.execute("insert into t0 select i, i from generate_series(1, 20) i")
    logged.increment()
    tables, columns, made = ["t0"], {"t0": ["a"]}, 0
    for _ in range(4):
        times, emptied = Times(logged), set[str]()
        for _ in range(4):
            statements: list[str] = []
            for _ in range(random.randint(1, 6)):
                table = random.choice(tables)
                own, key = columns[table], random.randint(1, 25)
                name = f"c{random.randint(1, 3)}"
                action = random.randint(0, 11)
                if action == 0 and len(tables) < 4:
                    made += 1
                    tables.append(f"t{made}")
                    columns[f"t{made}"] = ["a"]
                    statements.append(f"create table t{made} (id int primary key, a int)")
                elif action == 1 and name not in own:
                    own.append(name)
                    statements.append(f"alter table {table} add {name} int default {key}")
                elif action == 2 and own:
                    gone = own.pop(random.randrange(len(own)))
                    statements.append(f"alter table {table} drop {gone}")
                elif action == 3 and own and name not in own:
                    place = random.randrange(len(own))
                    statements.append(f"alter table {table} rename {own[place]} to {name}")
                    own[place] = name
                elif action == 4:
                    statements.append(f"truncate {table}")
                    emptied.add(table)
                elif action == 5:
                    statements.append(f"delete from {table} where id % 5 = {key % 5}")
                elif action == 6:
                    statements.append(f"update {table} set id = id + 100 where id = {key}")
                elif own and action % 2:
                    statements.append(f"update {table} set {random.choice(own)} = {key} where id % 3 = {key % 3}")
                else:
                    first = f"insert into {table} (id) select i from generate_series({key}, {key + 5}) i"
                    statements.append(f"{first} on conflict do nothing")
            times.after(f"begin; {'; '.join(statements)}; commit", *tables)
        manifest = logged.increment(revision_history=True)
        for table in tables:
            rows_everywhere(logged, manifest, table)
            assert table in emptied or logged.capture(manifest, table) == "log", "only a TRUNCATE is perhaps not explained"
        compare_moments(logged, times)


def compare_moments(backup: Backup, times: Times) -> None:
    for position, rows in times.seen:
        resolved = backup.resolved("LATEST", position)
        entry = resolved.manifest.databases[0]
        at_cut = AtCut(resolved)
        for table in entry.database.tables:
            since = table_entry(resolved.manifest, table.name).shape_since
            known = (backup.database.name, table.oid) in at_cut.origins
            if known and table.name in rows and (since is None or since <= position):
                assert backup.rows(resolved.manifest, table.name, at=position) == rows[table.name], f"{table.name} at {position}"


def test_compacted_layers_give_the_same_moments(logged: Backup) -> None:
    times = Times(logged)
    logged.database.execute("create table t (id int primary key, c int)")
    times.after("insert into t select i, i from generate_series(1, 30) i", "t")
    logged.increment(revision_history=True)
    times.after("update t set c = 9 where id < 5; alter table t drop c; alter table t add c int default 5", "t")
    times.after("update t set c = 6 where id = 10; create table fresh (id int primary key)", "t", "fresh")
    times.after("insert into fresh values (1)", "t", "fresh")
    logged.increment(revision_history=True)
    times.after("update t set c = 7 where id = 11; insert into fresh values (2)", "t", "fresh")
    logged.increment(revision_history=True)
    compact_backups(logged.context, logged.uri, "LATEST", first=1, number=3)
    for position, rows in times.seen[1:]:
        held = logged.resolved("LATEST", position)
        assert {table: logged.rows(held.manifest, table, at=position) for table in rows} == rows
        assert "fresh" not in rows or restored(logged, position, *rows) == rows
    assert restored(logged, times.seen[0][0], "t") == times.seen[0][1], "the layer that was merged still tells it"
