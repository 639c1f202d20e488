"""Azurite, Microsoft's own test server of Azure Blob Storage, as `make azurite` installs it from npm. It listens on
127.0.0.1 only, checks account keys and SAS tokens, and keeps what it stores in memory."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient

from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.process import ServerProcess

PROGRAM = (
    Path(__file__).resolve().parents[2] / ".tools" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
)
ACCOUNT = "spanvaulttests"


class Azurite:
    """A server with its log below `directory`, as a context manager. Skips the test where it is not installed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: ServerProcess | None = None
        self.port = 0
        self.account_key = base64.b64encode(secrets.token_bytes(64)).decode()

    @property
    def endpoint(self) -> str:
        """The account's URL."""
        return self.endpoint_at(self.port)

    @staticmethod
    def endpoint_at(port: int) -> str:
        """The account's URL through another port, such as a proxy's."""
        return f"http://{LOOPBACK}:{port}/{ACCOUNT}"

    def uri(self, container: str, path: str = "") -> str:
        """An azure-blob:// URI with endpoint and key as parameters."""
        given = {"AZURE_ACCOUNT_NAME": ACCOUNT, "AZURE_ACCOUNT_KEY": self.account_key, "AZURE_ENDPOINT": self.endpoint}
        return f"azure-blob://{container}/{path}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items())

    def client(self) -> BlobServiceClient:
        """The SDK's client with the account's key; the caller closes it."""
        return BlobServiceClient(self.endpoint, credential=AzureNamedKeyCredential(ACCOUNT, self.account_key), retry_total=0)

    def create_container(self, name: str) -> None:
        """Create the container `name`."""
        with self.client() as client:
            client.create_container(name)

    def __enter__(self) -> Azurite:
        node = shutil.which("node")
        if node is None or not PROGRAM.exists():
            missing = "Node.js is not installed" if node is None else "Azurite is not installed (make azurite)"
            pytest.skip(f"NO TEST OF AZURE BLOB STORAGE: {missing}.")
        self._directory.mkdir(parents=True)
        (self.port,) = free_ports(1)
        arguments = ["--blobHost", LOOPBACK, "--blobPort", str(self.port), "--inMemoryPersistence", "--silent"]
        self._process = ServerProcess.launch(
            [node, PROGRAM, *arguments, "--disableTelemetry", "--skipApiVersionCheck"],
            directory=self._directory,
            log=self._directory / "server.log",
            environment={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.account_key}"},
        )
        self._wait()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.kill()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with self.client() as client:
                    client.get_account_information()
                return
            except AzureError:
                assert self._process is not None
                if not self._process.is_running() or time.monotonic() > deadline:
                    log = (self._directory / "server.log").read_text()
                    raise RuntimeError(f"Azurite does not answer: {log}") from None
                time.sleep(0.2)
