"""A role that does not own all tables: what an administrator published is used, the rest counts as without identity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg import sql

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres.preflight import Check, examine
from spanvault.errors import BadInput, Refused
from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

ROLE, OWNER = "limited backup", "unowned_owner"


@dataclass(frozen=True)
class AsRole(TestDatabase):
    """The database as the backup's role sees it."""

    @property
    def endpoint(self) -> Endpoint:
        return super().endpoint.model_copy(update={"user": ROLE})

    @property
    def cluster(self) -> Cluster:
        return Cluster(name=self.server.name, endpoints=(self.endpoint,))


@pytest.fixture
def roles(database: TestDatabase) -> Iterator[None]:
    """A role that may read all and replicate, and one that owns tables."""
    name = sql.Identifier(database.name)
    with database.connect() as admin:
        for role in (ROLE, OWNER):
            admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        for text in (
            "alter role {} replication bypassrls",
            "grant pg_read_all_data, pg_monitor to {}",
            "grant create on schema public to {}",
        ):
            admin.execute(sql.SQL(text).format(sql.Identifier(ROLE)))
        admin.execute(sql.SQL("grant create on database {} to {}").format(name, sql.Identifier(ROLE)))
    yield
    with database.connect() as admin:
        admin.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()")
        for role in (ROLE, OWNER):
            admin.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(role)))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.fixture
def backup(database: TestDatabase, roles: None, tmp_path: Path) -> Backup:
    """Of a table of the role's own, `own`, and of two of somebody else."""
    with database.connect() as admin:
        for table, owner in (("own", ROLE), ("theirs", OWNER), ("more theirs", OWNER)):
            names = {"t": sql.Identifier(table), "r": sql.Identifier(owner)}
            admin.execute(sql.SQL("create table {t} (id int primary key, n int)").format(**names))
            admin.execute(sql.SQL("insert into {t} select i, 0 from generate_series(1, 100) i").format(**names))
            admin.execute(sql.SQL("alter table {t} owner to {r}").format(**names))
    return Backup(AsRole(database.server, database.name), tmp_path / "collection")


TABLES = ("own", "theirs", "more theirs")


def write(backup: Backup, step: int) -> None:
    for table in TABLES:
        backup.database.execute(
            f'update "{table}" set n = {step} where id % 7 = {step}; insert into "{table}" values ({1000 + step}, {step})'
        )


def captures(manifest: Manifest) -> dict[str, str]:
    return {table.name: table.capture for table in manifest.databases[0].database.tables}


def assert_equal(backup: Backup, manifest: Manifest) -> None:
    for table in TABLES:
        assert backup.rows(manifest, table) == backup.source_rows(table), table


def publication_check(backup: Backup) -> Check:
    name = f"{backup.database.name}: publication"
    return next(check for check in examine(backup.database.endpoint) if check.name == name)


def test_tables_of_others_count_as_without_identity_and_are_named(backup: Backup) -> None:
    write(backup, 1)
    full = backup.take()
    assert captures(full) == {"own": "log", "theirs": "exact", "more theirs": "exact"}
    assert any("public.more theirs, public.theirs" in note and "may not publish" in note for note in backup.progress.notes)
    assert_equal(backup, full)
    write(backup, 2)
    layer = backup.increment(on_broken_chain="fail")
    assert captures(layer) == captures(full)
    assert_equal(backup, layer)
    assert [backup.capture(backup.increment(), table) for table in ("theirs",)] == ["log"]  # unchanged: not read again


def test_the_policy_for_tables_without_identity_holds_for_them(backup: Backup) -> None:
    backup.take()
    with pytest.raises(Refused, match=r"public\.theirs.*preflight"):
        backup.increment(without_identity="fail")
    skipping = backup.increment(without_identity="skip")
    assert "public.theirs" in "; ".join(skipping.databases[0].omitted)


def test_preflight_prints_the_script_and_what_an_administrator_published_is_used(backup: Backup) -> None:
    check = publication_check(backup)
    assert check.status == "warning"
    assert "public.theirs" in check.detail.replace('"', "")
    assert f'GRANT {OWNER} TO "{ROLE}";' in check.fix
    full = backup.take()
    check = publication_check(backup)
    script = (
        f'ALTER PUBLICATION "{full.databases[0].protection.publication}" ADD TABLE ONLY "public"."more theirs",'
        ' ONLY "public"."theirs";'
    )
    assert script in check.fix
    backup.database.execute(script)
    assert publication_check(backup).status == "ok"
    write(backup, 3)
    layer = backup.increment(on_broken_chain="fail")
    assert set(captures(layer).values()) == {"log"}
    assert_equal(backup, layer)
    write(backup, 4)
    following = backup.increment(on_broken_chain="fail")
    assert [backup.capture(following, table) for table in TABLES] == ["log"] * 3
    assert_equal(backup, following)


def test_a_table_that_an_administrator_takes_out_again_counts_as_without_identity(backup: Backup) -> None:
    publication = backup.take().databases[0].protection.publication
    backup.database.execute(f'alter publication {publication} add table only theirs, only "more theirs"')
    backup.increment()
    backup.database.execute(f"alter publication {publication} drop table theirs")
    write(backup, 5)
    layer = backup.increment(on_broken_chain="fail")
    assert captures(layer) == {"own": "log", "theirs": "exact", "more theirs": "log"}
    assert_equal(backup, layer)


def test_a_publication_that_the_role_may_not_make_is_made_by_an_administrator(backup: Backup) -> None:
    backup.database.execute(f'revoke create on database {backup.database.name} from "{ROLE}"')
    with pytest.raises(BadInput, match=r"let an administrator run in .*CREATE PUBLICATION") as raised:
        backup.take()
    script = str(raised.value).partition(f"run in {backup.database.name}: ")[2]
    backup.database.execute(script)
    full = backup.take()
    assert set(captures(full).values()) == {"log"}
    write(backup, 6)
    assert_equal(backup, backup.increment(on_broken_chain="fail"))


def test_a_table_of_others_that_is_made_during_the_backup_is_read(backup: Backup) -> None:
    backup.at = {
        "export.all": lambda: backup.database.execute(
            f"create table late (id int primary key); insert into late values (1); alter table late owner to {OWNER}"
        )
    }
    full = backup.take()
    assert captures(full)["late"] == "exact"
    backup.database.execute("insert into late values (2)")
    layer = backup.increment(on_broken_chain="fail")
    assert backup.rows(layer, "late") == ["(1)", "(2)"]
    assert backup.rows(full, "late") == ["(1)"]
