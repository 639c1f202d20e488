"""The backends that the contract's tests run on, each with a fresh root."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.model.places import Places
from spanvault.storage.base import Storage
from spanvault.storage.registry import open_storage
from spanvault.storage.spread import spread
from tests.kit.azurite import Azurite
from tests.kit.fake_gcs import FakeGcs
from tests.kit.tcp_proxy import TcpProxy

OpenStorage = Callable[..., Storage]
BUCKET = "contract"
BACKENDS = ("file", "s3", pytest.param("azure", marks=pytest.mark.apt), "gs")


@pytest.fixture
def opened() -> OpenStorage:
    """Opens a URI, or several of which each is on a line of its own, with settings as keywords."""

    def opened(uri: str, connections: dict[str, str] | None = None, **settings: object) -> Storage:
        def one(uri: str) -> Storage:
            known = Settings.model_validate(settings)
            return open_storage(uri, settings=known, connections=EnvironmentConnections(connections or {}))

        if "\n" not in uri:
            return one(uri)
        places = Places.parse(uri)
        return spread(one(places.default.revealed()), {tier: one(other.revealed()) for tier, other in places.others})

    return opened


@pytest.fixture(scope="session")
def bucket(seaweed: SeaweedServer) -> str:
    """A bucket for all tests; each takes a path of its own in it."""
    seaweed.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture(scope="session")
def azurite(shared_servers_folder: Path) -> Iterator[Azurite]:
    """Azure's test server, shared by the tests of this process."""
    with Azurite(shared_servers_folder / "azurite") as server:
        yield server


@pytest.fixture(scope="session")
def container(azurite: Azurite) -> str:
    """As `bucket`, on Azure's test server."""
    azurite.create_container(BUCKET)
    return BUCKET


@pytest.fixture(scope="session")
def fake_gcs(shared_servers_folder: Path) -> Iterator[FakeGcs]:
    """What stands for Google Cloud Storage, shared by the tests of this process."""
    with FakeGcs(shared_servers_folder / "fake-gcs") as server:
        yield server


@pytest.fixture(scope="session")
def gcs_bucket(fake_gcs: FakeGcs) -> str:
    """As `bucket`, there."""
    fake_gcs.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture
def at_fake_gcs(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// leads there, in this process and those that it starts."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs.endpoint)


@pytest.fixture(params=BACKENDS)
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place on each backend."""
    return uri_on(request.param, request, tmp_path)


def uri_on(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place."""
    if backend == "file":
        return f"file://{tmp_path}/backups"
    if backend == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return azurite.uri(request.getfixturevalue("container"), f"{uuid.uuid4()}/backups")
    if backend == "gs":
        request.getfixturevalue("at_fake_gcs")
        return f"gs://{request.getfixturevalue('gcs_bucket')}/{uuid.uuid4()}/backups?AUTH=implicit"
    seaweed: SeaweedServer = request.getfixturevalue("seaweed")
    return seaweed.uri(request.getfixturevalue("bucket"), f"{uuid.uuid4()}/backups")


@pytest.fixture
def storage(storage_uri: str, opened: OpenStorage) -> Storage:
    """An empty Storage on each backend."""
    return opened(storage_uri)


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[TcpProxy]:
    """A proxy before the S3 server whose connections tests break."""
    with TcpProxy(seaweed.port) as proxy:
        yield proxy
