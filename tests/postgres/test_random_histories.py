"""Random histories by several writers during whole backups, DDL included. The oracle is PostgreSQL itself: the count and
hash of every table that it computed under the snapshot at the cut must be those of the rows that the backup holds."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.window import UndecodableLog
from spanvault.errors import Retryable
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

ROWS = 400
BIG = "(select string_agg(md5(random()::text), '') from generate_series(1, 120))"  # 3,840 bytes, stored apart

TABLES = {
    "plain": "create table plain (id int primary key, n int, big text)",
    "other_index": "create table other_index (id int primary key, n int not null, big text);"
    "create unique index other on other_index (n, id); alter table other_index replica identity using index other",
    "full": "create table full_rows (id int primary key, n int, big text); alter table full_rows replica identity full",
    "keyless": "create table keyless (id int, n int, big text)",
    "text_key": "create table text_key (n int, big text, id text primary key)",
}
NAMES = ["plain", "other_index", "full_rows", "keyless", "text_key"]


def statement(chance: random.Random, table: str) -> str:
    """One random change of one table."""
    key, other = chance.randint(1, ROWS), chance.randint(ROWS + 1, 4 * ROWS)
    where = f"where id = '{key}'"
    return chance.choices(
        [
            f"update {table} set n = n + 1 {where}",
            f"update {table} set big = {BIG} {where}",
            f"update {table} set id = '{other}' {where}",
            f"update {table} set id = '{key}', n = n + 1 where id = '{other}'",
            f"delete from {table} {where}",
            f"insert into {table} (id, n, big) values ('{key}', 0, {BIG})",
            f"insert into {table} (id, n, big) select '{other}', n, big from {table} {where}",
            f"update {table} set big = 'short' where id in ('{key}', '{other}')",
            f"truncate {table}",
        ],
        weights=[30, 10, 15, 15, 10, 10, 10, 5, 0.1],
    )[0]


def ddl(chance: random.Random, table: str) -> str:
    """One random change of a table's shape or file."""
    return chance.choice([
        f"vacuum full {table}",
        f"alter table {table} add column c{chance.randint(1, 10**6)} int default 7",
        f"alter table {table} alter n type {chance.choice(['bigint', 'int'])}",
        f"analyze {table}",
        f"create table extra_{chance.randint(1, 10**6)} (id int primary key)",
    ])


def write(database: TestDatabase, seed: int, stop: threading.Event, done: list[int], failures: list[BaseException]) -> None:
    chance = random.Random(seed)
    try:
        with psycopg.connect(database.url, autocommit=True) as session:
            session.execute(f"set synchronous_commit = {chance.choice(['on', 'off'])}")
            session.execute("set lock_timeout = '2s'")
            while not stop.is_set():
                _transaction(session, chance)
                done[0] += 1
                if chance.random() < 0.002:
                    _try(session, ddl(chance, chance.choice(NAMES)))
                stop.wait(0.002)
    except BaseException as error:
        failures.append(error)
        raise


def _transaction(session: psycopg.Connection[Any], chance: random.Random) -> None:
    try:
        with session.transaction():
            for _ in range(chance.randint(1, 6)):
                try:
                    with session.transaction():  # a savepoint, so that a duplicate key ends only this change
                        session.execute(statement(chance, chance.choice(NAMES)).encode())
                except (errors.UniqueViolation, errors.LockNotAvailable):
                    continue
            if chance.random() < 0.15:
                raise psycopg.Rollback
    except (errors.DeadlockDetected, errors.LockNotAvailable):
        return


def _try(session: psycopg.Connection[Any], text: str) -> None:
    try:
        session.execute(text.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected, errors.InFailedSqlTransaction, errors.DuplicateTable):
        return


def fingerprint_of_backup(backup: Backup, manifest: Manifest, table: str) -> tuple[int, str]:
    rows = backup.rows(manifest, table)
    with connect(backup.database.endpoint, purpose="test") as session:
        found = session.execute(
            "select count(*), coalesce(sum(hashtextextended(r, 0)::numeric), 0)::text from unnest(%s::text[]) r", (rows,)
        ).fetchone()
    assert found is not None
    return found[0], found[1]


def take(backup: Backup) -> Manifest:
    """DDL may leave no quiet moment for a seal; then the backup is run again and continues. And PostgreSQL itself cannot
    decode some of these histories (TRUNCATE beside rolled back savepoints); then a new backup is whole."""
    while True:
        try:
            return backup.take()
        except Retryable as error:
            assert "The seal was tried" in str(error)
        except UndecodableLog:
            left = backup.database.execute("select count(*) from pg_replication_slots where database = current_database()")
            assert left == [(0,)]


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(database: TestDatabase, tmp_path: Path, seed: int) -> None:
    for text in TABLES.values():
        database.execute(text)
    for name in NAMES:
        database.execute(f"alter table {name} alter big set storage external")
        database.execute(f"insert into {name} (id, n, big) select i, i, {BIG} || (i > 0)::text from generate_series(1, {ROWS}) i")
    stop, done = threading.Event(), [0]
    failures: list[BaseException] = []
    writers = [threading.Thread(target=write, args=(database, seed * 10 + n, stop, done, failures)) for n in range(3)]
    for writer in writers:
        writer.start()
    try:
        backup = Backup(database, tmp_path, options=BackupOptions(span_bytes=256 << 10, workers=1, fingerprint=True))
        manifest = take(backup)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not failures
    assert done[0] > 30, "the writers hardly wrote, so the test shows nothing"
    entry = manifest.databases[0]
    names = {table.oid: table.name for table in entry.database.tables}
    assert set(NAMES) <= set(names.values())
    proven = {names[table.oid]: table.fingerprint for table in entry.tables if table.fingerprint and names[table.oid] in NAMES}
    assert len(proven) >= 2, "hardly a table has a fingerprint, so the test shows nothing"
    held = {name: fingerprint_of_backup(backup, manifest, name) for name in proven}
    assert held == {name: (fingerprint.rows, fingerprint.hash) for name, fingerprint in proven.items()}
