"""The optional DDL log on real PostgreSQL: what it writes, how it comes and goes, and that it never breaks the application."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from spanvault.database.postgres import ddl_log
from spanvault.database.postgres.connect import connect
from spanvault.engine.maintenance import uninstall
from spanvault.errors import BadInput, Refused
from spanvault.model.manifest import Manifest
from tests.kit.command_line import spanvault
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

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
