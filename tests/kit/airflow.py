"""A real Airflow for tests: metadata in an embedded PostgreSQL, each component a process of its own, all below one folder.

`AirflowMetadata` is migrated once; `AirflowSite` is one AIRFLOW_HOME with a copy of that database, in which commands and
`dag.test()` run; `site.running()` adds API server, scheduler and dag processor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg

from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.process import ServerProcess

PROJECT = Path(__file__).resolve().parents[2]
AIRFLOW = Path(sys.executable).with_name("airflow")
TERMINAL = frozenset({"success", "failed"})
MARK = "ANSWER "  # of a line of run_dags.py, which cannot be imported without Airflow

Value = TypeVar("Value")


@dataclass
class DagRun:
    """A run to make. The same `run_after` (ISO 8601) makes the same run again."""

    dag_id: str
    conf: dict[str, Any]
    run_after: str = "2026-01-02T14:30:00+00:00"


class AirflowMetadata:
    """A PostgreSQL server that holds one migrated Airflow database, to be copied."""

    TEMPLATE = "airflow_template"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = PostgresServer(folder / "metadata", name="airflow-metadata")

    @property
    def server(self) -> PostgresServer:
        """The running server."""
        return self._server

    def start(self) -> None:
        """Start the server and migrate the template."""
        self._server.start()
        self.create(self.TEMPLATE)
        AirflowSite(self._folder / "migration", self, database=self.TEMPLATE).command("db", "migrate")

    def stop(self) -> None:
        """Kill the server and delete its data."""
        self._server.remove()

    def create(self, database: str, template: str = "template0") -> None:
        """A new database."""
        with psycopg.connect(self._server.url(), autocommit=True) as control:
            control.execute(f'create database "{database}" template "{template}"')

    def site(self, folder: Path, **options: Any) -> AirflowSite:
        """A new AIRFLOW_HOME in `folder` with a copy of the migrated database."""
        database = f"airflow_{folder.name}"
        self.create(database, self.TEMPLATE)
        return AirflowSite(folder, self, database=database, **options)


@dataclass
class AirflowSite:
    """One AIRFLOW_HOME. `variables` are added to the environment of everything that runs in it: connections, settings."""

    home: Path
    metadata: AirflowMetadata
    database: str
    variables: Mapping[str, str] = field(default_factory=dict)
    dags: Path = PROJECT / "dags"
    port: int = 0

    def environment(self) -> dict[str, str]:
        """What Airflow's processes are started with; nothing of the developer's own Airflow."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_ports(1)[0]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SPANVAULT_", "PYTEST"))}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        url = f"postgresql+psycopg2://{self.metadata.server.SUPERUSER}@{LOOPBACK}:{self.metadata.server.port}/{self.database}"
        return {
            **kept,
            "PATH": f"{AIRFLOW.parent}{os.pathsep}{kept.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "3",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{self.port}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__API__HOST": LOOPBACK,
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API_AUTH__JWT_SECRET": "a secret that only this test run knows",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "SPANVAULT_EXTERNAL_IO_DIR": str(self.home / "extern"),
            **self.variables,
        }

    def command(self, *arguments: str, timeout: float = 180) -> str:
        """Run `airflow ARGUMENTS`; its standard output. Fails with the end of its log."""
        return self._run([str(AIRFLOW), *arguments], timeout)

    def python(self, *arguments: str, timeout: float = 240) -> str:
        """Run `python ARGUMENTS` in the project's folder, inside this site; its standard output."""
        return self._run([sys.executable, *arguments], timeout)

    @contextmanager
    def dag_tests(self) -> Iterator[Callable[..., list[dict[str, Any]]]]:
        """A process for `dag.test()`: a call with `DagRun`s makes these runs in turn and gives of each
        `{"state", "run_id", "tasks": [{"task", "map_index", "state", "label"}]}`. What they print and log goes to
        `dag_tests.log`.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        log = self.home / "dag_tests.log"
        with (
            log.open("ab") as errors,
            log.open("a", buffering=1) as log_of_output,
            subprocess.Popen(
                [sys.executable, "-m", "tests.kit.run_dags"],
                env=self.environment(),
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            asked, answers = process.stdin, process.stdout
            assert asked is not None and answers is not None

            def run(*runs: DagRun) -> list[dict[str, Any]]:
                print(json.dumps([one.__dict__ for one in runs]), file=asked, flush=True)
                said: list[str] = []
                for line in answers:
                    if line.startswith(MARK):
                        found: list[dict[str, Any]] = json.loads(line.removeprefix(MARK))
                        return found
                    said.append(line)
                    log_of_output.write(line)
                words = "".join(said)[-3000:] + log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"the process ended with {process.wait()}:\n{words}")

            try:
                yield run
            finally:
                process.kill()

    def _run(self, command: Sequence[str], timeout: float) -> str:
        done = subprocess.run(
            command, env=self.environment(), cwd=PROJECT, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}")
        return done.stdout

    @contextmanager
    def running(self) -> Iterator[AirflowApi]:
        """API server, scheduler and dag processor, until the block ends; then everything they started is killed."""
        processes: list[ServerProcess] = []
        try:
            for component in ("api-server", "scheduler", "dag-processor"):
                folder = self.home / component
                folder.mkdir(parents=True, exist_ok=True)
                processes.append(
                    ServerProcess.launch(
                        [AIRFLOW, component],
                        directory=folder,
                        log=folder / "output.log",
                        environment=self.environment(),
                        guard_signal=signal.SIGKILL,
                    )
                )
            with httpx.Client(base_url=f"http://{LOOPBACK}:{self.port}/api/v2", timeout=30) as client:
                api = AirflowApi(client, self, processes)
                api.wait_until_healthy()
                yield api
        finally:
            for process in reversed(processes):
                process.kill()


class AirflowApi:
    """The REST API of a running site."""

    def __init__(self, client: httpx.Client, site: AirflowSite, processes: Sequence[ServerProcess]) -> None:
        self.client = client
        self.site = site
        self._processes = processes

    def get(self, path: str, **query: Any) -> Any:
        """GET a resource; the JSON answer. Fails with the server's text."""
        return self._answer(self.client.get(path, params=query))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST; the JSON answer."""
        return self._answer(self.client.post(path, json=dict(body)))

    def unpause(self, dag_id: str) -> None:
        """Let a DAG's runs start."""
        self._answer(self.client.patch(f"/dags/{dag_id}", json={"is_paused": False}))

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a manual run without a logical date, as the UI and REST allow; its id."""
        return str(self.post(f"/dags/{dag_id}/dagRuns", {"conf": dict(conf), "logical_date": None})["dag_run_id"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, mapped ones each."""
        return list(self.get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=200)["task_instances"])

    def state(self, dag_id: str, run_id: str) -> str:
        """The run's state."""
        return str(self.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 180) -> str:
        """Wait until the run has ended; its state."""
        return self.wait_for(lambda: state if (state := self.state(dag_id, run_id)) in TERMINAL else None, timeout)

    def wait_until_healthy(self, timeout: float = 120) -> None:
        """Wait until API server, scheduler and dag processor all say so, and the DAGs are known."""

        def healthy() -> bool | None:
            try:
                health = self.get("/monitor/health")
                ready = all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))
                return (ready and self.get("/dags")["total_entries"] > 0) or None
            except httpx.TransportError:
                return None

        self.wait_for(healthy, timeout)

    def wait_for(self, look: Callable[[], Value | None], timeout: float = 120) -> Value:
        """What `look` gives as soon as it is not None. Fails after `timeout` seconds, or when a component has ended."""
        deadline = time.monotonic() + timeout
        while (found := look()) is None:
            if not all(process.is_running() for process in self._processes) or time.monotonic() > deadline:
                raise AssertionError(f"waited in vain; the components' last words:\n{self.last_words()}")
            time.sleep(0.25)  # each look costs the API server as much as a piece of a task
        return found

    def last_words(self) -> str:
        """The end of each component's output."""
        files = sorted(self.site.home.glob("*/output.log"))
        return "\n".join(f"--- {file.parent.name}\n{file.read_text(errors='replace')[-2500:]}" for file in files)

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, attempt: int = 1) -> str:
        """A try's log as text."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        return json.dumps(self.get(path, map_index=map_index, full_content="true"))

    def _answer(self, response: httpx.Response) -> Any:
        if response.is_error:
            raise AssertionError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
        return response.json()
