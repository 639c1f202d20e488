"""Each Airflow service's command of docker-compose.yaml, run with its own environment, together, up to a finished backup.

Docker's part is played by this test: names of services become addresses on 127.0.0.1, the image's folders the checkout's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from spanvault.embedded.ports import free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.process import ServerProcess
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.celery_workers import ValkeyServer
from tests.kit.compose import AIRFLOW_SERVICES, compose, environment_of
from tests.kit.servers import TestDatabase
from tests.kit.standbys import Nodes, running_nodes

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def wait_for(look: Callable[[], object], what: str, timeout: float) -> object:
    deadline = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come within {timeout:g} s"
        time.sleep(0.5)
    return found


@pytest.fixture
def metadata(servers_folder: Path) -> Iterator[PostgresServer]:
    """The service `metadata`, with the user and database that the image makes from its environment."""
    wanted = environment_of("metadata")
    with PostgresServer(servers_folder / "metadata", name="metadata") as server:
        with psycopg.connect(server.url(), autocommit=True) as control:
            control.execute(f"create role {wanted['POSTGRES_USER']} login password '{wanted['POSTGRES_PASSWORD']}'")
            control.execute(f"create database {wanted['POSTGRES_DB']} owner {wanted['POSTGRES_USER']}")
        yield server


@pytest.fixture
def redis(servers_folder: Path) -> Iterator[ValkeyServer]:
    """The service `redis`, without its password."""
    with ValkeyServer(servers_folder / "redis") as server:
        yield server


@pytest.fixture
def nodes(servers_folder: Path) -> Iterator[Nodes]:
    """The services `source`, `standby-eu` and `standby-us`."""
    with running_nodes(servers_folder / "nodes") as nodes:
        TestDatabase(nodes.primary, "postgres").execute("create database shop")
        yield nodes


@pytest.fixture
def run_service(
    tmp_path: Path, metadata: PostgresServer, nodes: Nodes, redis: ValkeyServer, seaweed: SeaweedServer
) -> Iterator[tuple[str, Callable[[str], ServerProcess]]]:
    """The API server's address, and what starts one service."""
    (api_port,) = free_ports(1)
    (tmp_path / "clusters.yaml").write_text(compose()["configs"]["clusters"]["content"])
    docker = {
        "@metadata:5432/": f"@127.0.0.1:{metadata.port}/",
        "@source:5432/": f"@127.0.0.1:{nodes.primary.port}/",
        "@standby-eu:5432/": f"@127.0.0.1:{nodes.standby_b.port}/",
        "@standby-us:5432/": f"@127.0.0.1:{nodes.standby_us.port}/",
        "redis://:redis@redis:6379/0": redis.url,
        "http://api-server:8080": f"http://127.0.0.1:{api_port}",
        "http://s3:8333": seaweed.endpoint,
        '"login": "spanvault"': f'"login": "{seaweed.access_key}"',
        "spanvault-s3-secret": seaweed.secret_key,
        "/opt/airflow/extern": str(tmp_path / "extern"),
        "/opt/airflow/clusters.yaml": str(tmp_path / "clusters.yaml"),
        "/opt/airflow": str(ROOT),
    }
    image = {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:/usr/bin:/bin",
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(api_port),
    }
    running: list[ServerProcess] = []

    def run(service: str) -> ServerProcess:
        text = json.dumps(environment_of(service))
        for there, here in docker.items():
            text = text.replace(json.dumps(there)[1:-1], json.dumps(here)[1:-1])
        environment = json.loads(text)
        folder = tmp_path / service
        folder.mkdir()
        # Containers have a network each; here the workers would offer their logs on one port.
        environment["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = str(free_ports(1)[0])
        program, *arguments = compose()["services"][service]["command"]
        command = [BIN / program, *arguments]
        process = ServerProcess.launch(command, directory=folder, log=folder / "log", environment={**image, **environment})
        running.append(process)
        return process

    yield f"http://127.0.0.1:{api_port}/api/v2", run
    for process in reversed(running):
        process.kill()


def test_the_services_run_together_and_a_triggered_backup_reaches_the_bucket(
    run_service: tuple[str, Callable[[str], ServerProcess]], tmp_path: Path, nodes: Nodes, seaweed: SeaweedServer
) -> None:
    address, run = run_service
    TestDatabase(nodes.primary, "shop").execute(compose()["configs"]["shop"]["content"])
    seaweed.create_bucket("backups")
    init = run("init")
    wait_for(lambda: not init.is_running(), "the migration's end", timeout=180)
    services = {name: run(name) for name in AIRFLOW_SERVICES if name != "init"}
    with httpx.Client(base_url=address, timeout=120) as api:

        def healthy() -> bool:
            for name, process in services.items():
                assert process.is_running(), (tmp_path / name / "log").read_text()[-3000:]
            try:
                health = api.get("/monitor/health").json()
            except httpx.TransportError:
                return False
            return all(
                health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
            )

        wait_for(healthy, "all services healthy", timeout=240)
        wait_for(lambda: api.get("/dags/full_backup").status_code == 200, "the DAG", timeout=120)
        assert api.patch("/dags/full_backup", json={"is_paused": False}).status_code == 200
        run_id = api.post("/dags/full_backup/dagRuns", json={"logical_date": None, "conf": {}}).json()["dag_run_id"]

        def ended() -> str | None:
            state: str = api.get(f"/dags/full_backup/dagRuns/{run_id}").json()["state"]
            return state if state in {"success", "failed"} else None

        assert wait_for(ended, "the run's end", timeout=240) == "success"
    client = seaweed.client()
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="backups")["Contents"]]
    client.close()
    assert "spanvault/full/COLLECTION.json" in keys
    assert [key for key in keys if key.endswith("chain/000000.json")], keys
