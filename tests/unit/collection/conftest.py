from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """An empty collection folder."""
    return LocalStorage(tmp_path / "backups", "file:///backups")
