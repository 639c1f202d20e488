"""Airflow for the demo: API server, scheduler and dag processor, with its metadata in an embedded PostgreSQL of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg

from spanvault.demo.place import PROJECT
from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.process import ServerProcess, kill_tree
from spanvault.errors import Permanent, Retryable

COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "api-server": (),
    # Logs are read from the disk that all share; the scheduler's own log server would listen on every interface.
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
}
_PROGRAM = Path(sys.executable).with_name("airflow")
_ENDED = frozenset({"success", "failed"})

Value = TypeVar("Value")


@dataclass(frozen=True)
class TaskState:
    """A task instance as a run shows it. `seconds`: how long its last try took, once it has ended."""

    name: str
    label: str
    state: str
    seconds: float | None

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state in {"success", "failed", "skipped", "upstream_failed", "removed"}


class DemoAirflow:
    """One AIRFLOW_HOME below `folder`. `variables` are added to the environment of all that runs in it."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self._folder = folder
        self._asked_port = port
        self._port = port
        self._metadata = PostgresServer(folder / "airflow-metadata", name="airflow-metadata")
        self._migration: subprocess.Popen[bytes] | None = None
        self._components: dict[str, ServerProcess] = {}
        self._secrets = {
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        }
        self._client: httpx.Client | None = None
        self._closing = threading.Event()

    @property
    def address(self) -> str:
        """The UI's address."""
        return f"http://{LOOPBACK}:{self._port}"

    def prepare(self) -> None:
        """Start the metadata server and migrate its database. Raises Permanent with the place of the log."""
        self._metadata.start()
        if self._closing.is_set():
            return
        with psycopg.connect(self._metadata.url(), autocommit=True) as control:
            control.execute("create database airflow template template0")
        home = self._folder / "airflow"
        home.mkdir(exist_ok=True)
        log = home / "migration.log"
        with log.open("ab") as output:
            self._migration = subprocess.Popen(  # noqa: S603 - our own program
                [_PROGRAM, "db", "migrate"],
                env=self._environment({}),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if self._closing.is_set():
            kill_tree(self._migration.pid)
        if self._migration.wait():
            raise Permanent(f"Airflow could not prepare its database; see {log}.")

    def start(self, variables: Mapping[str, str]) -> None:
        """Start the components; they need seconds until `wait_until_ready`."""
        self._port = self._asked_port or free_ports(1)[0]
        for name, options in COMPONENTS.items():
            if self._closing.is_set():
                return
            folder = self._folder / f"airflow-{name}"
            folder.mkdir(exist_ok=True)
            self._components[name] = ServerProcess.launch(
                [_PROGRAM, name, *options],
                directory=folder,
                log=folder / "output.log",
                environment=self._environment(variables),
                guard_signal=signal.SIGKILL,
            )
        self._client = httpx.Client(base_url=f"{self.address}/api/v2", timeout=30)

    def wait_until_ready(self, *dag_ids: str, timeout: float = 180) -> None:
        """Return when all components say that they are healthy, and the DAGs are known and unpaused."""

        def healthy() -> bool | None:
            with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
                health = self._get("/monitor/health")
                parts = ("metadatabase", "scheduler", "dag_processor")
                return all(health[part]["status"] == "healthy" for part in parts) or None
            return None

        def warm() -> bool | None:
            # The first request here makes the server build what all tasks talk to, which takes longer than tasks wait.
            with contextlib.suppress(httpx.TransportError):
                return self._http.get(f"{self.address}/execution/health").is_success or None
            return None

        def unpaused() -> bool | None:
            answers = [self._http.patch(f"/dags/{dag_id}", json={"is_paused": False}) for dag_id in dag_ids]
            return all(answer.is_success for answer in answers) or None

        self._wait_for(warm, "to answer", timeout)
        self._wait_for(healthy, "to be healthy", timeout)
        self._wait_for(unpaused, f"to know {', '.join(dag_ids)}", timeout)

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run as a person would with the form; its id."""
        answer = self._http.post(f"/dags/{dag_id}/dagRuns", json={"conf": dict(conf), "logical_date": None})
        if answer.is_error:
            raise Permanent(f"Airflow refused to run {dag_id}: {answer.status_code} {answer.text[:500]}")
        return str(answer.json()["dag_run_id"])

    def follow(self, dag_id: str, run_id: str, show: Callable[[list[TaskState]], None], timeout: float = 600) -> str:
        """Show the run's tasks again and again until it has ended; its state."""

        def look() -> str | None:
            state = str(self._get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
            show(self.tasks(dag_id, run_id))
            return state if state in _ENDED else None

        return self._wait_for(look, f"to finish {dag_id}", timeout)

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """The run's tasks, mapped ones each."""
        found = self._get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=200")["task_instances"]
        return [
            TaskState(
                name=one["task_id"],
                label=one["rendered_map_index"] or "",
                state=one["state"] or "waiting",
                seconds=one["duration"] if one["end_date"] else None,
            )
            for one in found
        ]

    def run_address(self, dag_id: str, run_id: str) -> str:
        """The run's page in the UI."""
        return f"{self.address}/dags/{dag_id}/runs/{run_id}"

    def log_folder(self, dag_id: str, run_id: str) -> Path:
        """Where the run's tasks write their logs."""
        return self._folder / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"

    def stopped_parts(self) -> list[str]:
        """The names of parts that have ended."""
        stopped = [f"airflow-{name}" for name, process in self._components.items() if not process.is_running()]
        return stopped + ([] if self._metadata.is_running() else [self._metadata.name])

    def abandon(self) -> None:
        """Make what another thread does here end soon."""
        self._closing.set()
        if self._migration is not None and self._migration.poll() is None:
            kill_tree(self._migration.pid)

    def stop(self) -> None:
        """Kill everything of it; what it wrote stays. Nothing else may be under way here."""
        if self._client is not None:
            self._client.close()
        for process in reversed(self._components.values()):
            process.kill()
        self._metadata.stop(immediate=True, timeout=10)

    @property
    def _http(self) -> httpx.Client:
        if self._client is None:
            raise RuntimeError("Airflow was not started")
        return self._client

    def _get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()

    def _wait_for(self, look: Callable[[], Value | None], what: str, timeout: float) -> Value:
        deadline = time.monotonic() + timeout
        while (found := look()) is None:
            if self._closing.is_set():
                raise Retryable("Airflow is being stopped.")
            ended = self.stopped_parts()
            if ended:
                raise Permanent(f"{ended[0]} ended by itself; its log is below {self._folder / ended[0]}.")
            if time.monotonic() > deadline:
                raise Retryable(f"Airflow took more than {timeout:g} s {what}; its logs are below {self._folder}.")
            self._closing.wait(0.2)
        return found

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the person's own Airflow: only the demo's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
        metadata = self._metadata.url("airflow").replace("postgresql://", "postgresql+psycopg2://")
        return {
            **kept,
            "PATH": f"{_PROGRAM.parent}{os.pathsep}{kept.get('PATH', '')}",
            "AIRFLOW_HOME": str(self._folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "3",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self._port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            # An unpaused DAG would at once make up for the last night, in the middle of the story.
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            **self._secrets,
            **variables,
        }
