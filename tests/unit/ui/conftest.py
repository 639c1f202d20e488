"""Collections below a base, as the DAGs keep them, and the pages over them without Airflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from spanvault.storage.local import LocalStorage
from spanvault_airflow.ui.app import create_app

NOW = datetime(2026, 11, 22, 17, 30, tzinfo=UTC)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LocalStorage]:
    """The storage of the collection of that name below the base that the settings name."""
    monkeypatch.setenv("SPANVAULT_COLLECTION_BASE", "nodelocal://self/backups")
    monkeypatch.setenv("SPANVAULT_EXTERNAL_IO_DIR", str(tmp_path / "extern"))

    def storage(name: str) -> LocalStorage:
        return LocalStorage(tmp_path / "extern" / "backups" / name, f"nodelocal://self/backups/{name}")

    return storage


@pytest.fixture
def pages(base: Callable[[str], LocalStorage]) -> Iterator[TestClient]:
    """The pages to a visitor who may see them, mounted as Airflow mounts them, three hours after the first backup."""
    with TestClient(create_app(lambda: None, lambda: NOW), root_path="/backups", raise_server_exceptions=False) as client:
        yield client
