"""The demo's source: a primary and two streaming standbys with localities, and the object store beside them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg
import yaml

from spanvault.demo.place import OBJECT_STORE
from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import Retryable

CLUSTER = "demo"
SHOP = "shop"
S3_CONNECTION = "demo_s3"
BUCKET = "backups"
COLLECTION_BASE = f"s3://{BUCKET}/demo?conn_id={S3_CONNECTION}"

_PRIMARY_PLACE = "region=eu,zone=a"
_STANDBYS = {"standby_b": "region=eu,zone=b", "standby_us": "region=us,zone=a"}

_SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_keep_size": "512MB",  # so that none goes between a copy and the standby's first request
    # A demo that is left running must not fill the disk with the log that it protects.
    "max_slot_wal_keep_size": "4GB",
}


@dataclass(frozen=True)
class Node:
    """A server, its place and its port."""

    name: str
    locality: str
    port: int

    @property
    def conn_id(self) -> str:
        """The Airflow Connection that leads to it."""
        return f"demo_{self.name}"


class DemoCluster:
    """Primary, standbys and object store below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.primary = PostgresServer(folder / "primary", settings=_SETTINGS, name="primary")
        self._servers = [self.primary]
        self._standby_ports = dict(zip(_STANDBYS, free_ports(len(_STANDBYS)), strict=True))
        self.s3 = SeaweedServer(folder / OBJECT_STORE, name="object store")

    @property
    def clusters_file(self) -> Path:
        """The clusters.yaml that names the nodes."""
        return self._folder / "clusters.yaml"

    def start(self) -> None:
        """Start the primary with an empty shop, and the object store with its bucket."""
        with ThreadPoolExecutor(2) as pool:
            stores = pool.submit(self._start_store)
            self.primary.start()
            with psycopg.connect(self.primary.url(), autocommit=True) as control:
                control.execute(f"create database {SHOP} template template0")
            stores.result()

    def add_standbys(self) -> None:
        """Copy the primary twice; return when both stream from it."""
        with ThreadPoolExecutor(len(_STANDBYS)) as pool:
            list(pool.map(self._add_standby, _STANDBYS))
        self._wait_until_streaming(len(_STANDBYS))

    @property
    def nodes(self) -> list[Node]:
        """The primary, once it runs, and the standbys, which come later."""
        standbys = [Node(name, _STANDBYS[name], port) for name, port in self._standby_ports.items()]
        return [Node(self.primary.name, _PRIMARY_PLACE, self.primary.port), *standbys]

    def url(self, database: str = SHOP) -> str:
        """A database on the primary."""
        return self.primary.url(database)

    def connections(self) -> dict[str, str]:
        """The environment that defines the Airflow Connections of the nodes and of the object store."""
        store = {
            "conn_type": "aws",
            "login": self.s3.access_key,
            "password": self.s3.secret_key,
            "extra": {
                "endpoint_url": self.s3.endpoint,
                "region_name": self.s3.REGION,
                "config_kwargs": {"s3": {"addressing_style": "path"}},
            },
        }
        nodes = {
            node.conn_id: {
                "conn_type": "postgres",
                "host": LOOPBACK,
                "port": node.port,
                "login": PostgresServer.SUPERUSER,
                "schema": "postgres",
            }
            for node in self.nodes
        }
        return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(one) for name, one in {**nodes, S3_CONNECTION: store}.items()}

    def write_clusters_file(self) -> None:
        """Write clusters.yaml."""
        nodes = [{"name": node.name, "conn_id": node.conn_id, "locality": node.locality} for node in self.nodes]
        self.clusters_file.write_text(yaml.safe_dump({"clusters": {CLUSTER: {"nodes": nodes}}}, sort_keys=False))

    def stopped_parts(self) -> list[str]:
        """The names of servers that have ended."""
        stopped = [server.name for server in self._servers if not server.is_running()]
        return stopped if self.s3.is_running() else [*stopped, self.s3.name]

    def stop(self) -> None:
        """End all servers at once; their data stays."""
        for server in reversed(self._servers):
            server.stop(immediate=True, timeout=10)
        self.s3.stop()

    def _start_store(self) -> None:
        self.s3.start()
        self.s3.create_bucket(BUCKET)

    def _add_standby(self, name: str) -> None:
        standby = PostgresServer.standby_of(self.primary, self._folder / name, name=name, port=self._standby_ports[name])
        self._servers.append(standby)
        standby.start()

    def _wait_until_streaming(self, count: int, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        with psycopg.connect(self.primary.url(), autocommit=True) as control:
            while True:
                row = control.execute("select count(*) from pg_stat_replication where state = 'streaming'").fetchone()
                if row is not None and row[0] >= count:
                    return
                if time.monotonic() > deadline:
                    raise Retryable(f"The standbys did not begin to stream within {timeout:g} s (logs: {self._folder}).")
                time.sleep(0.05)
