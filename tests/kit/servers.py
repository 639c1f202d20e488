"""Real servers for tests: started once per test process, below a folder that the servers' user can enter."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.embedded.postgres import PostgresServer

# What a source needs; fsync stays off, and the rest keeps a test's waits short.
SOURCE_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_prepared_transactions": "20",
    "max_wal_senders": "30",
    "max_replication_slots": "30",
    "shared_buffers": "64MB",
    "autovacuum": "off",
}

_numbers = itertools.count(1)


@contextmanager
def server_folder() -> Iterator[Path]:
    """A new folder that every user may enter (pytest's own are closed to others), deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="spanvault-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class TestDatabase:
    """A database of its own for one test, on a running server."""

    __test__ = False

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        """`postgresql://postgres@127.0.0.1:port/name`."""
        return self.server.url(self.name)

    @property
    def endpoint(self) -> Endpoint:
        """The database as the product's own address."""
        return endpoint_of(self.server, self.name)

    @property
    def cluster(self) -> Cluster:
        """The server as a cluster of this one node."""
        return Cluster(name=self.server.name, endpoints=(self.endpoint,))

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        """An application's session: PostgreSQL's own settings, not the product's pinned ones."""
        return psycopg.connect(self.url, autocommit=autocommit)

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement, or several without parameters, in a session of its own; the last one's rows."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


def endpoint_of(server: PostgresServer, database: str = "postgres") -> Endpoint:
    """`server` as the product's address of one node."""
    return Endpoint(node=server.name, host="127.0.0.1", port=server.port, user=server.SUPERUSER, database=database)


@contextmanager
def fresh_database(server: PostgresServer, prefix: str = "t") -> Iterator[TestDatabase]:
    """A new empty database; dropped afterwards with its sessions, prepared transactions and slots."""
    name = f"{prefix}_{os.getpid()}_{next(_numbers)}"
    with connect(endpoint_of(server)) as control:
        control.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    try:
        yield TestDatabase(server, name)
    finally:
        if server.is_running():
            drop_database(server, name)
            forget_cluster_backups(server)


def forget_cluster_backups(server: PostgresServer) -> None:
    """Drop what a backup of the whole cluster holds on the database that all tests share."""
    with connect(endpoint_of(server)) as control:
        control.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = 'postgres' and slot_name like 'spanvault%' and not active"
        )
        for (name,) in control.execute("select pubname from pg_publication where pubname like 'spanvault%'").fetchall():
            control.execute(sql.SQL("drop publication {}").format(sql.Identifier(name)))


def drop_database(server: PostgresServer, name: str) -> None:
    """Drop a database and whatever would hold it: prepared transactions, slots, sessions. No error if it is gone."""
    with connect(endpoint_of(server)) as control:
        if control.execute("select 1 from pg_database where datname = %s", [name]).fetchone() is None:
            return
        prepared = control.execute("select gid from pg_prepared_xacts where database = %s", [name]).fetchall()
        if prepared:
            with connect(endpoint_of(server, name)) as inside:
                for (gid,) in prepared:
                    inside.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
        control.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()", [name]
        )
        control.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", [name])
        control.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
