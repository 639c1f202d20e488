"""docs/helm-values.yaml: what it says of clusters, queues and workers fits together. No chart is rendered here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from spanvault.config.clusters import load_cluster
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "helm-values.yaml").read_text())
ENVIRONMENT = {entry["name"]: entry["value"] for entry in VALUES["env"]}


def test_clusters_yaml_lies_where_the_setting_says() -> None:
    (volume,), (mount,) = VALUES["volumes"], VALUES["volumeMounts"]
    assert volume["name"] == mount["name"]
    content = yaml.safe_load(VALUES["extraConfigMaps"][volume["configMap"]["name"]]["data"])
    assert {f"{mount['mountPath']}/{file}" for file in content} == {ENVIRONMENT["SPANVAULT_CLUSTERS_FILE"]}


def test_each_queue_has_workers_in_its_locality(tmp_path: Path) -> None:
    file = tmp_path / "clusters.yaml"
    file.write_text(yaml.safe_load(VALUES["extraConfigMaps"]["spanvault-clusters"]["data"])["clusters.yaml"])
    node = json.dumps({"conn_type": "postgres", "host": "node", "login": "backup"})
    names = {"AIRFLOW_CONN_SPANVAULT_PRIMARY": node, "AIRFLOW_CONN_SPANVAULT_STANDBY_US": node}
    cluster = load_cluster(file, "shop", EnvironmentConnections(names))
    where = {
        queue: entry["value"]
        for workers in VALUES["workers"]["celery"]["sets"]
        for queue in workers["queue"].split(",")
        for entry in workers["env"]
        if entry["name"] == "SPANVAULT_LOCALITY"
    }
    assert {rule.queue: str(rule.locality) for rule in cluster.queues} == {
        queue: place for queue, place in where.items() if queue != "default"
    }
    assert "default" in where


def test_the_settings_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Settings.load().collection_base == ENVIRONMENT["SPANVAULT_COLLECTION_BASE"]


def test_its_airflow_is_the_project_s() -> None:
    assert f"apache-airflow=={VALUES['airflowVersion']}\n" in (ROOT / "requirements.in").read_text()
    assert VALUES["images"]["airflow"]["tag"] == VALUES["airflowVersion"]
