"""One migrated Airflow database for all tests here; each site has a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.airflow import AirflowMetadata, AirflowSite


@pytest.fixture(scope="session")
def airflow_metadata(servers_folder: Path) -> Iterator[AirflowMetadata]:
    """A running metadata server with a migrated database."""
    metadata = AirflowMetadata(servers_folder / "airflow")
    try:
        metadata.start()
        yield metadata
    finally:
        metadata.stop()


@pytest.fixture(scope="session")
def site(airflow_metadata: AirflowMetadata, servers_folder: Path) -> AirflowSite:
    """An AIRFLOW_HOME for commands and dag.test()."""
    return airflow_metadata.site(servers_folder / "site")
