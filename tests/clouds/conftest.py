"""Stores of every kind, and keys in key services of every kind, for whole encrypted backups."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
import pytest
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

from spanvault.embedded.ports import LOOPBACK
from tests.kit.azurite import Azurite
from tests.kit.fake_gcs import FakeGcs
from tests.kit.fake_google_kms import FakeCryptoKey, FakeGoogleKms, encoded
from tests.kit.fake_key_vault import CLIENT, SECRET, TENANT, FakeKeyVault
from tests.kit.moto_server import MotoServer
from tests.kit.stores import AzureStore, GcsStore, S3Store, Store
from tests.kit.tcp_proxy import Rule, TcpProxy

_OTHERS = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_")
_GOOGLE_KEY = "projects/p-1/locations/europe-west3/keyRings/ring/cryptoKeys/backups"


@dataclass
class Services:
    """Three keys of three services, by URIs that hold credentials. `secrets` are what nobody may find anywhere; `names` are
    who uses the keys, which is no secret but nobody's business who sees the store."""

    moto: MotoServer
    proxy: TcpProxy
    google_service: FakeGoogleKms
    aws: str
    google: str
    azure: str
    secrets: tuple[str, ...]
    names: tuple[str, ...] = ("AKIAUNMISTAKABLE", "AKIAOTHERMARK")
    broken: list[Rule] = field(default_factory=list)

    def another_aws_key(self) -> str:
        """A new key, on moto's server."""
        return _aws_uri(self.moto, self.proxy, "AKIAOTHERMARK", "another-secret-of-aws")

    def take_down(self, *names: str) -> None:
        """These services answer nothing any more."""
        if "aws" in names:
            self.broken.append(self.proxy.lose("", times=1000))
            self.proxy.break_connections()
        if "google" in names:
            self.google_service.failures[:] = [grpc.StatusCode.UNAVAILABLE] * 1000

    def bring_up(self) -> None:
        """All answer again."""
        for rule in self.broken:
            rule.times = 0
        self.broken.clear()
        self.google_service.failures.clear()


@pytest.fixture(scope="package")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Neither keys nor proxies that the machine may have."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(_OTHERS) or name.lower() in {"http_proxy", "https_proxy", "no_proxy", "requests_ca_bundle"}:
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield patch


@pytest.fixture(scope="package")
def services(environment: pytest.MonkeyPatch, shared_servers_folder: Path) -> Iterator[Services]:
    """moto's AWS KMS behind a proxy that can break, the fake of Google Cloud KMS and the fake of Azure Key Vault."""
    folder = shared_servers_folder / "key-vault"
    folder.mkdir()
    with (
        MotoServer(shared_servers_folder / "moto") as moto,
        TcpProxy(moto.port) as proxy,
        FakeGoogleKms() as google,
        FakeKeyVault(folder) as vault,
    ):
        for name, value in vault.environment.items():
            environment.setenv(name, value)
        environment.setattr(KeyManagementServiceGrpcTransport, "create_channel", google.create_channel)
        google.keys[_GOOGLE_KEY] = FakeCryptoKey()
        key_file = google.add_account("backup")
        client = f"AZURE_TENANT_ID={TENANT}&AZURE_CLIENT_ID={CLIENT}&AZURE_CLIENT_SECRET={quote(SECRET, safe='')}"
        yield Services(
            moto=moto,
            proxy=proxy,
            google_service=google,
            aws=_aws_uri(moto, proxy, "AKIAUNMISTAKABLE", "a-secret-of-aws"),
            google=f"gs:///{_GOOGLE_KEY}?AUTH=specified&CREDENTIALS={encoded(key_file)}",
            azure=f"azure-kms:///backups/{vault.add_version('backups')}?AZURE_VAULT_NAME={vault.vault}&{client}",
            secrets=(
                *("a-secret-of-aws", "another-secret-of-aws"),
                *(SECRET, quote(SECRET, safe="")),
                *(encoded(key_file), *_lines_of_key(key_file)),
            ),
        )


@pytest.fixture
def all_up(services: Services) -> Iterator[Services]:
    """The services, which are brought up again afterwards."""
    yield services
    services.bring_up()


def _aws_uri(moto: MotoServer, proxy: TcpProxy, access_key: str, secret: str) -> str:
    key = moto.kms().create_key()["KeyMetadata"]["KeyId"]
    endpoint = f"http://{LOOPBACK}:{proxy.port}"
    return moto.uri(key, AWS_ENDPOINT=endpoint, AWS_ACCESS_KEY_ID=access_key, AWS_SECRET_ACCESS_KEY=secret)


def _lines_of_key(key_file: Mapping[str, str]) -> list[str]:
    return [line for line in key_file["private_key"].splitlines() if line and "-----" not in line]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("s3", marks=pytest.mark.slow),
        pytest.param("azure", marks=[pytest.mark.slow, pytest.mark.apt]),
        pytest.param("gs", marks=pytest.mark.slow),
    ],
)
def store(request: pytest.FixtureRequest, shared_servers_folder: Path) -> Iterator[Store]:
    """An empty bucket or container of a server of each kind."""
    name = f"clouds-{uuid.uuid4()}"
    if request.param == "s3":
        yield S3Store(request.getfixturevalue("seaweed"), name)
        return
    if request.param == "gs":
        # gs:// leads there in this process and in those that it starts, as long as this store is tested.
        with FakeGcs(shared_servers_folder / "fake-gcs-clouds") as server, pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
            yield GcsStore(server, name)
        return
    with Azurite(shared_servers_folder / "azurite-clouds") as azurite:
        yield AzureStore(azurite, name)
