"""One migrated Airflow database for all tests here; each site has a copy of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.airflow import AirflowMetadata, AirflowSite
from tests.kit.servers import TestDatabase


@pytest.fixture(scope="session")
def airflow_metadata(shared_servers_folder: Path) -> Iterator[AirflowMetadata]:
    """A running metadata server with a migrated database."""
    metadata = AirflowMetadata(shared_servers_folder / "airflow")
    try:
        metadata.start()
        yield metadata
    finally:
        metadata.stop()


@pytest.fixture(scope="session")
def site(airflow_metadata: AirflowMetadata, shared_servers_folder: Path) -> AirflowSite:
    """An AIRFLOW_HOME for commands and dag.test()."""
    return airflow_metadata.site(shared_servers_folder / "site")


@pytest.fixture(scope="session")
def source_connection() -> Callable[[TestDatabase], dict[str, str]]:
    """The environment that defines the Connection of the cluster `source` in clusters.yaml."""

    def variables(database: TestDatabase) -> dict[str, str]:
        connection = {
            "conn_type": "postgres",
            "host": "127.0.0.1",
            "port": database.server.port,
            "login": database.server.SUPERUSER,
            "password": "not-to-be-seen",
            "schema": database.name,
        }
        return {"AIRFLOW_CONN_SPANVAULT_SOURCE": json.dumps(connection)}

    return variables


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder with its digest."""

    def files(folder: Path) -> dict[str, str]:
        found = sorted(file for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}

    return files
