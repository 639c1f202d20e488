"""Signing in to Azure when the sign-in itself is in trouble: a fake one, which the official client is led to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from spanvault.errors import BadInput, Retryable
from tests.kit.fake_key_vault import CLIENT, SECRET, TENANT, FakeKeyVault, leading_clients
from tests.storage.conftest import OpenStorage


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyVault]:
    """A fake key vault, for the sign-in that it has."""
    yield from leading_clients(tmp_path, monkeypatch)


def uri(secret: str) -> str:
    client = f"AZURE_TENANT_ID={TENANT}&AZURE_CLIENT_ID={CLIENT}&AZURE_CLIENT_SECRET={quote(secret, safe='')}"
    return f"azure-blob://container/backups?AZURE_ACCOUNT_NAME=account&{client}"


def test_a_sign_in_that_is_down_may_be_tried_later(opened: OpenStorage, login: FakeKeyVault) -> None:
    login.sign_in_fails = True
    with pytest.raises(Retryable, match="container/backups: Azure's sign-in failed, also after several tries"):
        opened(uri(SECRET), storage_attempts=2).get("key")


def test_a_sign_in_that_refuses_is_no_use_trying_again(opened: OpenStorage, login: FakeKeyVault) -> None:
    with pytest.raises(BadInput, match="signing in with the client's secret failed") as caught:
        opened(uri("hunter2"), storage_attempts=2).get("key")
    assert "hunter2" not in str(caught.value)
