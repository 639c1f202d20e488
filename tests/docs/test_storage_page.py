"""The page on storage names every parameter and every setting, and no other."""

from __future__ import annotations

import base64
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.errors import BadInput
from spanvault.model.uri import STORAGE_CLASSES, StorageUri
from spanvault.model.uri_parameters import AZURE_ENVIRONMENTS, Role
from spanvault.storage.registry import open_storage
from spanvault.storage.s3_access import s3_access

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "storage.md").read_text()
SCHEMES = {"s3": "s3://bucket/", "gs": "gs://bucket/", "azure-blob": "azure://box/", "nodelocal": "nodelocal://self/"}
NAMED = {
    name for line in PAGE.splitlines() if re.match(r"\| `[A-Zc]", line) for name in re.findall(r"`(\w+)`", line.split("|")[1])
}
EXAMPLES = re.findall(r"^\| `([a-z0-9-]+)` \| [^|]+ \| `(\w[^`|]*:/[^`|]*)` \|$", PAGE, re.MULTILINE)
CONNECTIONS = EnvironmentConnections({
    "AIRFLOW_CONN_BACKUP_STORE": '{"conn_type": "aws", "login": "k", "password": "p"}',
    "AIRFLOW_CONN_BACKUP_GOOGLE": '{"conn_type": "google_cloud_platform"}',
    "AIRFLOW_CONN_BACKUP_AZURE": '{"conn_type": "wasb", "login": "shopbackups", "password": "c2hvcA=="}',
})
# The page shows the beginning of a key file only.
KEY_FILE = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
WORDS = {name for name in NAMED if not name.startswith("SPANVAULT_")}


def takes(scheme: str, name: str) -> bool:
    with pytest.raises(BadInput) as caught:
        StorageUri.parse(f"{SCHEMES[scheme]}?{name}=")
    return "unknown query parameters" not in str(caught.value) and "cannot be read" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_what_the_tables_say_a_scheme_takes_it_takes(scheme: str) -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if re.match(r"\| `[A-Zc]", line) and "SPANVAULT_" not in line]
    said = {name for names, schemes in rows if f"`{scheme}`" in schemes for name in re.findall(r"`(\w+)`", names)}
    assert said == {name for name in WORDS if takes(scheme, name)}


def test_every_parameter_of_the_module_is_named() -> None:
    source = (Path(__file__).resolve().parents[2] / "include/spanvault/model/uri_parameters.py").read_text()
    used = set(re.findall(r'"((?:AWS|AZURE|S3|OBJECT|GOOGLE|ASSUME)_\w+|AUTH|CREDENTIALS|conn_id)"', source))
    assert used == WORDS


def test_every_setting_of_storage_is_named() -> None:
    ours = {name for name in Settings.model_fields if name.startswith(("storage_", "external_io_", "allowed_"))}
    assert {name for name in NAMED if name.startswith("SPANVAULT_")} == {f"SPANVAULT_{name.upper()}" for name in ours}


def test_the_values_that_are_named_exist() -> None:
    assert {"GLACIER", "DEEP_ARCHIVE"} <= set(STORAGE_CLASSES)
    assert set(re.findall(r"`(AZURE\w+CLOUD)`", PAGE)) == set(AZURE_ENVIRONMENTS)


@pytest.mark.parametrize(("scheme", "example"), EXAMPLES)
def test_every_example_is_a_place_that_can_be_opened(monkeypatch: pytest.MonkeyPatch, scheme: str, example: str) -> None:
    def no_network(*_: Any) -> Any:
        raise AssertionError("something was contacted")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    # What is the machine's own is found in its environment; without that its cloud is asked.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-this-machine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-this-machine")
    parsed = StorageUri.parse(example)
    assert example.startswith(f"{scheme}://")
    assert (parsed.host, parsed.path) in {("backups", "shop"), ("self", "shop"), ("", "srv/backups/shop")}
    whole = base64.urlsafe_b64encode(json.dumps(KEY_FILE).encode()).decode()
    opened = re.sub(r"(?<=CREDENTIALS=)\w+", whole, example)
    assert open_storage(opened, settings=Settings(), connections=CONNECTIONS).display_uri == StorageUri.parse(opened).redacted()


def test_there_is_an_example_of_every_store_and_way() -> None:
    ways = {(uri.scheme, way) for _, text in EXAMPLES for uri in [StorageUri.parse(text)] for way in ways_of(uri)}
    assert ways == {
        *(("s3", way) for way in ("keys", "token", "implicit", "roles", "conn_id", "endpoint")),
        *(("gs", way) for way in ("keys", "implicit", "roles", "conn_id")),
        *(("azure-blob", way) for way in ("keys", "client", "implicit", "conn_id", "environment")),
        ("nodelocal", "none"),
        ("file", "none"),
    }
    assert {scheme for scheme, _ in EXAMPLES} == {"s3", "gs", "azure-blob", "azure", "nodelocal", "file"}


def ways_of(uri: StorageUri) -> set[str]:
    names = {
        "AWS_ACCESS_KEY_ID": "keys", "AWS_SESSION_TOKEN": "token", "CREDENTIALS": "keys", "AZURE_ACCOUNT_KEY": "keys",
        "AZURE_CLIENT_SECRET": "client", "ASSUME_ROLE": "roles", "conn_id": "conn_id", "AWS_USE_PATH_STYLE": "endpoint",
        "AZURE_ENVIRONMENT": "environment",
    }  # fmt: skip
    implicit = {"implicit"} if uri.params.get("AUTH") == "implicit" else set()
    return {names[name] for name in uri.params if name in names} | implicit or {"none"}


def test_the_example_of_roles_assumes_them_in_turn() -> None:
    (example,) = [text for scheme, text in EXAMPLES if scheme == "s3" and "ASSUME_ROLE" in text]
    access = s3_access(StorageUri.parse(example), Settings(), CONNECTIONS)
    assert access.roles == (
        Role("arn:aws:iam::111122223333:role/hop"),
        Role("arn:aws:iam::444455556666:role/backup", "shop-1"),
    )
