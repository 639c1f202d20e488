"""moto's server in a process of its own: AWS KMS, STS and IAM for tests. A mock, though one that encrypts.

It checks credentials and policies only after `deny_strangers`. It does not refuse disabled keys, and calls a key that did
not wrap something an AccessDeniedException.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
import httpx

from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.process import ServerProcess

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_START_SECONDS = 60
REGION = "eu-central-1"


class MotoServer:
    """A context manager; `folder` is where its log goes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_ports(1)[0]
        self.endpoint = f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> MotoServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = ServerProcess.launch(
            [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(self.port)],
            directory=self._folder,
            log=self._folder / "moto.log",
            environment={**os.environ, "MOTO_PORT": str(self.port)},
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.is_running() and time.monotonic() < deadline, (self._folder / "moto.log").read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()

    def kms(self) -> KMSClient:
        """A client with the rights of the account itself."""
        client: KMSClient = self.client("kms")
        return client

    def client(self, service: Any) -> Any:
        """A client of any service, as the account itself."""
        session = boto3.session.Session(aws_access_key_id="root", aws_secret_access_key="root", region_name=REGION)
        return session.client(service, endpoint_url=self.endpoint)

    def uri(self, key: str, **parameters: str) -> str:
        """The URI of a key on this server; parameters that are given as empty are left out."""
        keys = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
        params = {"REGION": REGION, "AWS_ENDPOINT": self.endpoint, **keys, **parameters}
        return f"aws:///{key}?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in params.items() if value)

    def deny_strangers(self) -> None:
        """From the next request on, check access keys, signatures and policies."""
        self._after(0)

    def admit_strangers(self) -> None:
        """Check nothing, as at the start."""
        self._after(float("inf"))

    def _after(self, requests: float) -> None:
        httpx.post(f"{self.endpoint}/moto-api/reset-auth", content=json.dumps(requests)).raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/moto-api/").is_success
        except httpx.TransportError:
            return False
