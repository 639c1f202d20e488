"""The servers that tests share. With pytest-xdist each worker has its own: they start in a second or a few, and what one
test holds on a server (transactions, slots) would delay another's waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database, server_folder


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder below which servers may keep their data."""
    with server_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres(servers_folder: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL that can be backed up, shared by the tests of this process."""
    with PostgresServer(servers_folder / "postgres", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(servers_folder: Path) -> Iterator[SeaweedServer]:
    """A running S3 server, shared by the tests of this process; each makes buckets of its own."""
    with SeaweedServer(servers_folder / "seaweed") as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A new empty database on `postgres`."""
    with fresh_database(postgres) as fresh:
        yield fresh
