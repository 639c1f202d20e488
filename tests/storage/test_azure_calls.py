"""The limit on calls at a time, on Azure Blob Storage."""

from __future__ import annotations

import uuid
from contextlib import suppress

import pytest

from spanvault.errors import AlreadyExists, NotFound, Retryable
from spanvault.storage.azure_upload import FIRST_BLOCK_BYTES
from spanvault.storage.limit import CallLimit
from tests.kit.azurite import Azurite
from tests.kit.http_stub import answering
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage
from tests.storage.test_azure import every_call, stream

pytestmark = pytest.mark.apt


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many turns were taken and given back, by limits that are made from now on."""
    turns = {"taken": 0, "back": 0}

    class Counting(CallLimit):
        def enter(self) -> None:
            super().enter()
            turns["taken"] += 1

        def leave(self) -> None:
            super().leave()
            turns["back"] += 1

    monkeypatch.setattr(CallLimit, "of", staticmethod(Counting))
    return turns


def test_calls_to_azure_wait_for_their_turn(opened: OpenStorage, azurite: Azurite, container: str) -> None:
    storage = opened(azurite.uri(container, str(uuid.uuid4())), storage_calls=1)
    stream(storage, "large", 3 * FIRST_BLOCK_BYTES)  # Its blocks go one after another.
    readers = [storage.read_chunks("large", 1 << 20) for _ in range(3)]
    assert [len(next(reader)) for reader in readers] == [1 << 20] * 3
    assert len(list(storage.list())) == 1
    with pytest.raises(NotFound):
        storage.get("none")
    with pytest.raises(ZeroDivisionError), storage.open_write("gone") as writer:
        writer.write(bytes(2 * FIRST_BLOCK_BYTES))
        raise ZeroDivisionError
    storage.delete("large")
    assert list(storage.list()) == []
    assert list(storage.list_unfinished()) == []


def test_every_call_to_azure_takes_a_turn_and_gives_it_back(
    opened: OpenStorage, azurite: Azurite, container: str, turns: dict[str, int]
) -> None:
    with TcpProxy(azurite.port) as proxy:
        uri = azurite.uri(container, str(uuid.uuid4())).replace(f"%3A{azurite.port}", f"%3A{proxy.port}")
        for call in every_call(opened(uri, storage_calls=2)):
            with suppress(NotFound, AlreadyExists):
                call()
        assert turns["taken"] == turns["back"] == len(proxy.requests) > 10


def test_each_try_takes_a_turn_of_its_own(opened: OpenStorage, turns: dict[str, int]) -> None:
    with answering(503, b"", {"x-ms-error-code": "ServerBusy"}) as stub:
        uri = f"azure-blob://container/a?AZURE_ACCOUNT_NAME=account&AZURE_ACCOUNT_KEY=a2V5&AZURE_ENDPOINT=http://127.0.0.1:{stub.port}"
        with pytest.raises(Retryable):
            opened(uri, storage_calls=1, storage_attempts=2).get("key")
    assert turns == {"taken": 2, "back": 2}
