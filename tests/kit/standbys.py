"""A primary with two streaming standbys as one cluster, for tests of several nodes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.embedded.postgres import PostgresServer
from spanvault.model.locality import Locality
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, endpoint_of

PLACES = {"primary": "region=eu,zone=a", "standby_b": "region=eu,zone=b", "standby_us": "region=us,zone=a"}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Nodes:
    """The servers. Their cluster names the standbys first: which is the primary is found out."""

    primary: PostgresServer
    standby_b: PostgresServer
    standby_us: PostgresServer

    @property
    def servers(self) -> tuple[PostgresServer, ...]:
        """All of them."""
        return (self.primary, self.standby_b, self.standby_us)

    def endpoint(self, server: PostgresServer, database: str = "postgres") -> Endpoint:
        """The server as a node with its locality."""
        return endpoint_of(server, database).model_copy(update={"locality": Locality.parse(PLACES[server.name])})

    def cluster(self, database: str = "postgres") -> Cluster:
        """All nodes, the primary last."""
        return Cluster(name="nodes", endpoints=tuple(self.endpoint(server, database) for server in reversed(self.servers)))

    def commit_now(self) -> str:
        """A flushed position behind a commit that is made now."""
        primary = TestDatabase(self.primary, "postgres")
        primary.execute("select pg_logical_emit_message(true, 'test', 'now')")
        return str(primary.execute("select pg_current_wal_flush_lsn()::text")[0][0])

    def caught_up(self, timeout: float = 30) -> None:
        """Return when both standbys have replayed all that the primary has written by now."""
        position = self.commit_now()
        for standby in (self.standby_b, self.standby_us):
            wait_for(standby, f"select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn", timeout)


def wait_for(server: PostgresServer, query: str, timeout: float = 30) -> None:
    """Return when the query's answer is true."""
    deadline = time.monotonic() + timeout
    while not TestDatabase(server, "postgres").execute(query)[0][0]:
        assert time.monotonic() < deadline, f"{server.name}: {query}"
        time.sleep(0.02)


@contextmanager
def someone_at_work(server: PostgresServer) -> Iterator[None]:
    """A session of somebody else that works while the block lasts."""
    task = f"select pg_sleep(60), {next(_numbers)}"

    def work() -> None:
        with suppress(psycopg.errors.QueryCanceled):
            TestDatabase(server, "postgres").execute(task)

    at_work = f"from pg_stat_activity where query = '{task}' and state = 'active'"
    thread = threading.Thread(target=work)
    thread.start()
    wait_for(server, f"select count(*) = 1 {at_work}")
    yield
    TestDatabase(server, "postgres").execute(f"select pg_cancel_backend(pid) {at_work}")
    thread.join()


@contextmanager
def running_nodes(folder: Path) -> Iterator[Nodes]:
    """The three servers below `folder`, streaming."""
    settings = {**SOURCE_SETTINGS, "wal_keep_size": "256MB", "wal_receiver_status_interval": "1s"}
    with PostgresServer(folder / "primary", settings=settings, name="primary") as primary:
        standbys = [PostgresServer.standby_of(primary, folder / name, name=name) for name in PLACES if name != "primary"]
        with standbys[0], standbys[1]:
            wait_for(primary, "select count(*) = 2 from pg_stat_replication where state = 'streaming'")
            yield Nodes(primary, *standbys)
