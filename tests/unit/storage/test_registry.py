"""From URIs to storages, and what is refused before anything is contacted."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.errors import Refused
from spanvault.storage.base import Storage
from spanvault.storage.registry import open_storage

KEYS = "AWS_ACCESS_KEY_ID=k&AWS_SECRET_ACCESS_KEY=hunter2"


def opened(uri: str, **settings: object) -> Storage:
    return open_storage(uri, settings=Settings.model_validate(settings), connections=EnvironmentConnections({}))


def test_nodelocal_lies_below_its_folder(tmp_path: Path) -> None:
    storage = opened("nodelocal://self/shop/a%20b", external_io_dir=tmp_path)
    storage.put("x/y", b"1")
    assert (tmp_path / "shop" / "a b" / "x" / "y").read_bytes() == b"1"
    assert storage.display_uri == "nodelocal://self/shop/a%20b"


def test_opening_writes_nothing(tmp_path: Path) -> None:
    opened(f"file://{tmp_path}/new")
    assert list(tmp_path.iterdir()) == []


def test_what_the_settings_do_not_allow_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="SPANVAULT_ALLOWED_DESTINATIONS"):
        opened(f"file://{tmp_path}/new", allowed_destinations="file:///srv")
    with pytest.raises(Refused, match="SPANVAULT_ALLOWED_DESTINATIONS"):
        opened(f"s3://bucket/a?{KEYS}", allowed_destinations="s3://other/")


def test_a_connection_without_keys_is_implicit_too() -> None:
    connections = EnvironmentConnections({"AIRFLOW_CONN_STORE": '{"conn_type": "aws"}'})
    settings = Settings(external_io_disable_implicit_credentials=True)
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        open_storage("s3://bucket/a?conn_id=store", settings=settings, connections=connections)
