"""Buckets and containers as their own makers' clients see them: what really lies there, whatever the product says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from urllib.parse import quote

from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client  # type: ignore[import-untyped]

from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.azurite import Azurite
from tests.kit.fake_gcs import FakeGcs


class Store(Protocol):
    """A bucket. `secrets` are what opens it."""

    @property
    def uri(self) -> str:
        """A collection in it."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """As texts and as they stand in URIs."""

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """All objects: names from the collection on, and bytes."""


class S3Store:
    """A new bucket on SeaweedFS."""

    def __init__(self, server: SeaweedServer, name: str) -> None:
        self._server = server
        self._name = name
        server.create_bucket(name)

    @property
    def uri(self) -> str:
        return self._server.uri(self._name, "collection")

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._server.secret_key,)

    def objects(self) -> Iterator[tuple[str, bytes]]:
        client = self._server.client()
        try:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._name):
                for found in page.get("Contents", []):
                    data = client.get_object(Bucket=self._name, Key=found["Key"])["Body"].read()
                    yield found["Key"].removeprefix("collection/"), data
        finally:
            client.close()


class AzureStore:
    """A new container on Azurite."""

    def __init__(self, server: Azurite, name: str) -> None:
        self._server = server
        self._name = name
        server.create_container(name)

    @property
    def uri(self) -> str:
        return self._server.uri(self._name, "collection")

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._server.account_key, quote(self._server.account_key, safe=""))

    def objects(self) -> Iterator[tuple[str, bytes]]:
        with self._server.client() as client, client.get_container_client(self._name) as container:
            for name in container.list_blob_names():
                yield name.removeprefix("collection/"), container.download_blob(name).readall()


class GcsStore:
    """A new bucket on fake-gcs-server, which asks nobody who he is: nothing secret opens it. STORAGE_EMULATOR_HOST must lead
    there."""

    secrets: tuple[str, ...] = ()

    def __init__(self, server: FakeGcs, name: str) -> None:
        self._server = server
        self._name = name
        server.create_bucket(name)

    @property
    def uri(self) -> str:
        return f"gs://{self._name}/collection?AUTH=implicit"

    def objects(self) -> Iterator[tuple[str, bytes]]:
        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]
        options = {"api_endpoint": self._server.endpoint}
        client = Client(project="tests", credentials=anonymous, client_options=options)
        try:
            for found in client.list_blobs(self._name):
                yield found.name.removeprefix("collection/"), found.download_as_bytes()
        finally:
            client.close()
