"""docker-compose.yaml and Dockerfile, as far as they can be checked where no Docker engine runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spanvault.config.clusters import load_cluster
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.embedded.binaries import tool, tool_environment
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.storage.registry import open_storage
from tests.kit.compose import AIRFLOW_SERVICES, COMPOSE_FILE, WORKERS, compose, environment_of

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copied() -> list[tuple[str, str]]:
    found = re.findall(r"^COPY (?:--\S+ )*(.+)$", DOCKERFILE, re.MULTILINE)
    pairs = []
    for words in found:
        *sources, target = words.split()
        pairs += [(source, target.rstrip("/")) for source in sources]
    return pairs


def test_the_compose_file_follows_the_schema(tmp_path: Path) -> None:
    done = validate(COMPOSE_FILE)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "docker-compose.yaml"
    broken.write_text(COMPOSE_FILE.read_text().replace("healthcheck:", "health_check:"))
    assert validate(broken).returncode == 1, "the check can fail"


def test_every_service_that_is_waited_for_exists_and_can_be_waited_for() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} waits for {needed}"
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed], f"{name} waits for {needed}"


def test_every_volume_and_config_is_declared() -> None:
    document = compose()
    for service in document["services"].values():
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(document["volumes"])
        assert {config["source"] for config in service.get("configs", [])} <= set(document["configs"])


def test_ports_are_published_on_this_machine_only() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned() -> None:
    images = {service["image"] for service in compose()["services"].values()}
    assert all(re.search(r":\d+\.\d+(\.\d+)?$", image) for image in images), images
    (airflow,) = re.findall(r"^apache-airflow==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"FROM apache/airflow:{airflow}-python3.12\n" in DOCKERFILE


def test_postgres_18_keeps_its_data_on_the_volume() -> None:
    for name in ("metadata", "source", "standby-eu", "standby-us"):
        assert [volume.split(":")[1] for volume in compose()["services"][name]["volumes"]] == ["/var/lib/postgresql"]


def test_every_file_that_the_image_copies_is_there_and_sent_to_docker() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_import_roots_are_what_was_copied() -> None:
    targets = {target for _, target in copied()}
    (in_image,) = re.findall(r"PYTHONPATH=(\S+)", DOCKERFILE)
    for service in AIRFLOW_SERVICES:
        assert environment_of(service)["PYTHONPATH"] == in_image
    assert set(in_image.split(":")) <= targets


def test_every_airflow_service_shares_secrets_and_addresses() -> None:
    environments = [environment_of(service) for service in AIRFLOW_SERVICES]
    localities = {
        service: environment.pop("SPANVAULT_LOCALITY", None)
        for service, environment in zip(AIRFLOW_SERVICES, environments, strict=True)
    }
    assert {service: place for service, place in localities.items() if place} == {
        "worker-eu": "region=eu",
        "worker-us": "region=us",
    }
    assert all(environment == environments[0] for environment in environments)
    assert {"AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY"} <= set(environments[0])


def test_every_airflow_command_is_one_that_airflow_knows() -> None:
    commands = [compose()["services"][service]["command"] for service in AIRFLOW_SERVICES]
    assert all(command[0] == "airflow" for command in commands)
    script = f"from airflow.cli.cli_parser import get_parser\nfor c in {commands!r}: get_parser().parse_args(c[1:])"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_connections_are_those_that_the_project_names(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_of("scheduler")
    cluster = load_cluster(ROOT / "include" / "config" / "clusters.yaml", "source", EnvironmentConnections(environment))
    assert cluster.primary.display == "postgres@source:5432/shop"
    monkeypatch.setenv("SPANVAULT_COLLECTION_BASE", environment["SPANVAULT_COLLECTION_BASE"])
    assert Settings.load().collection_base == "s3://backups/spanvault?conn_id=spanvault_s3"


@pytest.fixture
def clusters_file(tmp_path: Path) -> Path:
    file = tmp_path / "clusters.yaml"
    file.write_text(compose()["configs"]["clusters"]["content"])
    return file


def test_every_node_is_a_service_and_every_queue_has_a_worker_where_it_says(clusters_file: Path) -> None:
    environment = environment_of("scheduler")
    assert environment["SPANVAULT_CLUSTERS_FILE"] in {
        config["target"] for config in compose()["services"]["scheduler"]["configs"]
    }
    cluster = load_cluster(clusters_file, "source", EnvironmentConnections(environment))
    assert [endpoint.host for endpoint in cluster.endpoints] == ["source", "standby-eu", "standby-us"]
    assert {endpoint.host for endpoint in cluster.endpoints} <= set(compose()["services"])
    listening = {}
    for worker in WORKERS:
        command = compose()["services"][worker]["command"]
        for queue in command[command.index("--queues") + 1].split(","):
            listening[queue] = environment_of(worker)["SPANVAULT_LOCALITY"]
    assert {endpoint.host: listening[cluster.queue_of(endpoint.locality) or ""] for endpoint in cluster.endpoints} == {
        endpoint.host: str(endpoint.locality) for endpoint in cluster.endpoints
    }
    assert "default" in listening, "where tasks without a queue of their own go"


def test_a_standby_is_copied_once_and_follows_the_primary(postgres: PostgresServer, tmp_path: Path) -> None:
    script = tmp_path / "standby.sh"
    script.write_text(compose()["configs"]["standby"]["content"])
    data = tmp_path / "18" / "docker"
    data.mkdir(parents=True)
    (data / "broken-off").touch()
    environment = {
        **tool_environment(),
        **environment_of("standby-us"),
        "PATH": f"{tool('pg_basebackup').parent}:/usr/bin:/bin",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGDATA": str(data),
    }
    for _ in range(2):
        done = subprocess.run(["bash", script, "echo", "postgres"], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "postgres\n", "then the server is started in its place"
        assert (data / "standby.signal").is_file()
        assert not (data / "broken-off").exists()
        (data / "kept").touch()
    assert (data / "kept").is_file()
    assert f"port={postgres.port}" in (data / "postgresql.auto.conf").read_text()


def test_the_bucket_is_made_once_and_the_connection_reaches_it(seaweed: SeaweedServer) -> None:
    service: dict[str, Any] = compose()["services"]["bucket"]
    assert service["command"][:2] == ["python", "-c"]
    ast.parse(service["command"][2])
    keys = {"AWS_ACCESS_KEY_ID": seaweed.access_key, "AWS_SECRET_ACCESS_KEY": seaweed.secret_key}
    environment = {**environment_of("bucket"), **keys, "AWS_ENDPOINT_URL": seaweed.endpoint}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", service["command"][2]], env=environment, check=True)
    text = environment_of("scheduler")["AIRFLOW_CONN_SPANVAULT_S3"]
    text = text.replace("http://s3:8333", seaweed.endpoint)
    text = text.replace('"spanvault"', f'"{seaweed.access_key}"').replace('"spanvault-s3-secret"', f'"{seaweed.secret_key}"')
    connections = EnvironmentConnections({"AIRFLOW_CONN_SPANVAULT_S3": text})
    storage = open_storage("s3://backups/spanvault?conn_id=spanvault_s3", settings=Settings.load(), connections=connections)
    storage.put("hello", b"1", create_only=True)
    assert storage.get("hello") == b"1"


def test_the_sample_data_loads(database: Any) -> None:
    database.execute(yaml.safe_load(COMPOSE_FILE.read_text())["configs"]["shop"]["content"])
    assert database.execute("select count(*), sum(amount) > 0 from purchase") == [(100_000, True)]


def test_the_source_runs_with_the_settings_that_a_source_needs() -> None:
    for name in ("source", "standby-eu", "standby-us"):
        command = compose()["services"][name]["command"]
        assert command[0] == "postgres"
        assert "wal_level=logical" in command
