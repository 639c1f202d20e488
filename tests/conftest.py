"""The servers that tests share. With pytest-xdist each worker has its own: they start in a second or a few, and what one
test holds on a server (transactions, slots) would delay another's waits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database, server_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the modules with the longest time limits to the front: begun last, one would run on while the other workers have
    nothing left to do. The rest stays in its order, which has the small unit tests at its end."""
    limits: dict[str, float] = {}
    for item in items:
        limit = max((mark.args[0] for mark in item.iter_markers("timeout")), default=0)
        limits[item.nodeid.partition("::")[0]] = max(limits.get(item.nodeid.partition("::")[0], 0), limit)
    items.sort(key=lambda item: -limits[item.nodeid.partition("::")[0]])


@pytest.fixture(scope="session")
def shared_servers_folder() -> Iterator[Path]:
    """A folder below which the servers may keep their data that all tests of this process share."""
    with server_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def servers_folder(shared_servers_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A new folder below which the servers of this module may keep their data; every user may enter it."""
    folder = Path(tempfile.mkdtemp(prefix=f"{request.module.__name__}-", dir=shared_servers_folder))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def postgres(shared_servers_folder: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL that can be backed up, shared by the tests of this process."""
    with PostgresServer(shared_servers_folder / "postgres", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(shared_servers_folder: Path) -> Iterator[SeaweedServer]:
    """A running S3 server, shared by the tests of this process; each makes buckets of its own."""
    with SeaweedServer(shared_servers_folder / "seaweed") as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A new empty database on `postgres`."""
    with fresh_database(postgres) as fresh:
        yield fresh
