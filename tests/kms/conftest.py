"""What the tests of key services share: how a key is opened, and what no message may hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.crypto.kms import KeyService, open_key

OpenKey = Callable[..., KeyService]
DATA_KEY = bytes(range(32))
CHAIN, OTHER_CHAIN = "6f2c8a52-6a0f-4a30-9d0a-0c1c9f6f0001", "6f2c8a52-6a0f-4a30-9d0a-0c1c9f6f0002"
_OTHERS = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_")


@pytest.fixture
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests find neither keys, roles nor proxies that the machine may have."""
    for name in os.environ:
        if name.startswith(_OTHERS) or name.lower() in {"http_proxy", "https_proxy", "no_proxy", "requests_ca_bundle"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def opened() -> OpenKey:
    """Opens a key's URI, with settings as keywords; two tries and short waits unless told."""

    def opened(uri: str, connections: Mapping[str, str] | None = None, **settings: object) -> KeyService:
        short = {"storage_attempts": 2, "storage_connect_timeout": 5, "storage_read_timeout": 20}
        known = Settings.model_validate({**short, **settings})
        return open_key(uri, settings=known, connections=EnvironmentConnections(connections or {}))

    return opened
