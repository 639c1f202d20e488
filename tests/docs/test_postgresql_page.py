"""docs/postgresql.md: its grants are needed and enough, its last resort removes everything, applications meet what it says."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from spanvault.config.clusters import cluster_from_url
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.preflight import database_checks, server_checks
from spanvault.embedded.binaries import tool, tool_environment
from tests.kit.command_line import spanvault
from tests.kit.servers import TestDatabase

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "postgresql.md").read_text()
BLOCKS = re.findall(r"^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
GRANTS = next(block for block in BLOCKS if "REPLICATION;" in block)
LAST_RESORT = BLOCKS[-1]


@pytest.fixture
def url_of_role(database: TestDatabase) -> Iterator[str]:
    """The database with one table of an ordinary owner, and its URL for a role that may only log in."""
    database.execute("create role shop_owner; create role backup login; create table t (id int primary key)")
    database.execute("alter table t owner to shop_owner; select lo_from_bytea(1, 'of somebody else')")
    yield database.url.replace("postgres@", "backup@")
    database.execute("drop owned by backup, shop_owner; drop role backup, shop_owner")


def unmet(url: str) -> list[str]:
    """The names of the checks that the role of this URL does not pass without a word."""
    endpoint = cluster_from_url(url).primary
    with connect(endpoint) as connection:
        checks = [*server_checks(connection), *database_checks(connection, endpoint.database)]
    return [check.name.rpartition(": ")[2] for check in checks if check.status != "ok"]


def test_the_grants_are_needed_and_enough(database: TestDatabase, url_of_role: str, tmp_path: Path) -> None:
    assert unmet(url_of_role) == ["role", "publication"]
    database.execute(GRANTS.replace("DATABASE shop", f'DATABASE "{database.name}"'))
    assert unmet(url_of_role) == []
    statement = f"BACKUP DATABASE \"{database.name}\" INTO 'file://{tmp_path}/backups' WITH protection = 'none'"
    done = spanvault("sql", "--url", url_of_role, statement)
    assert done.returncode == 0, done.stderr


def test_the_last_resort_removes_slots_and_publications(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key)")
    done = spanvault("sql", "--url", database.url, f"BACKUP DATABASE \"{database.name}\" INTO 'file://{tmp_path}/backups'")
    assert done.returncode == 0, done.stderr
    left = "select (select count(*) from pg_publication), count(*) from pg_replication_slots where database = current_database()"
    assert database.execute(left) == [(1, 1)]
    environment = {**os.environ, **tool_environment()}
    subprocess.run([str(tool("psql")), database.url], input=LAST_RESORT, env=environment, text=True, check=True, timeout=60)
    assert database.execute(left) == [(0, 0)]


@pytest.mark.parametrize(
    ("change", "then", "phrase"),
    [
        ("alter table t drop constraint t_pkey", "update t set id = 2", "does not have a replica identity and publishes updates"),
        ("alter table t replica identity nothing", "delete from t", "does not have a replica identity and publishes deletes"),
        ("select 1", "alter table t set unlogged", 'cannot change table "t" to unlogged because it is part of a publication'),
    ],
)
def test_what_an_application_may_meet(database: TestDatabase, change: str, then: str, phrase: str) -> None:
    database.execute("create table t (id int primary key); create publication spanvault_test for table only t")
    database.execute(change)
    with pytest.raises(psycopg.Error, match=re.escape(phrase)):
        database.execute(then)
    database.execute("alter publication spanvault_test drop table t")
    database.execute(then)
