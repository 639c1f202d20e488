"""The pool of a cluster: which tasks are in it, and what is said of those that are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spanvault.errors import Refused
from spanvault_airflow.operators.plan import PlanBackupOperator
from spanvault_airflow.operators.restore import PlanRestoreOperator
from spanvault_airflow.pools import other_pool
from tests.kit.airflow import AirflowSite

CLUSTERS = """
clusters:
  shop: {pool: spanvault_shop, nodes: [{name: a, conn_id: shop}]}
  crm: {pool: spanvault_crm, nodes: [{name: a, conn_id: crm}]}
  test: {nodes: [{name: a, conn_id: test}]}
"""
DAGS = """
from spanvault_airflow.builder import backup_dag, restore_dag

for cluster in ("shop", "crm", "test", None, "unknown"):
    given = dict(collection="c", description="d", doc_md="m", cluster=cluster)
    try:
        globals()[f"b_{cluster}"] = backup_dag(f"backup_{cluster}", schedule=None, **given)
        globals()[f"r_{cluster}"] = restore_dag(f"restore_{cluster}", **given)
    except Exception as error:
        assert str(error) == "clusters.yaml has no cluster 'unknown'; it has shop, crm, test.", error
"""


@pytest.fixture
def clusters_file(tmp_path: Path) -> Path:
    file = tmp_path / "clusters.yaml"
    file.write_text(CLUSTERS)
    return file


def parsed(site: AirflowSite, clusters_file: Path) -> dict[str, Any]:
    variables = {"SPANVAULT_CLUSTERS_FILE": str(clusters_file), "SPANVAULT_COLLECTION_BASE": "s3://bucket/b?conn_id=s3"}
    probe = json.loads(replace(site, variables=variables).python("-m", "tests.kit.dag_probe").splitlines()[-1])
    assert probe["import_errors"] == {}
    found: dict[str, Any] = probe["dags"]
    return found


def pools_of(dag: dict[str, Any]) -> set[str]:
    return {task["pool"] for task in dag["tasks"].values()}


def test_the_dags_of_the_project_are_in_the_first_clusters_pool(site: AirflowSite, clusters_file: Path) -> None:
    backup = parsed(site, clusters_file)["full_backup"]
    assert pools_of(backup) == {"spanvault_shop"}
    assert backup["params"]["cluster"]["value"] == "shop"
    assert backup["params"]["into"]["value"] == "s3://bucket/b/full?conn_id=s3"


def test_a_dag_for_a_cluster_is_in_its_pool(site: AirflowSite, clusters_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "own.py").write_text(DAGS)
    dags = parsed(replace(site, dags=folder), clusters_file)
    assert len(dags) == 8
    for kind in ("backup", "restore"):
        for cluster, pool in (("shop", "spanvault_shop"), ("crm", "spanvault_crm"), ("test", "default_pool")):
            dag = dags[f"{kind}_{cluster}"]
            assert pools_of(dag) == {pool}
            assert dag["params"]["cluster"]["value"] == cluster
        assert pools_of(dags[f"{kind}_None"]) == {"spanvault_shop"}


@pytest.mark.parametrize(
    ("cluster", "pool", "said"),
    [
        ("shop", "spanvault_shop", None),
        ("test", "default_pool", None),
        ("test", "a_pool_of_ones_own", None),
        ("crm", "spanvault_shop", "names the pool spanvault_crm for the cluster crm, but this DAG's tasks run in the pool spanv"),
        ("crm", "default_pool", "names the pool spanvault_crm for the cluster crm"),
        ("test", "spanvault_shop", "names no pool for the cluster test, but this DAG's tasks run in the pool spanvault_shop"),
    ],
)
def test_a_run_on_another_cluster_says_whose_pool_it_is_in(
    monkeypatch: pytest.MonkeyPatch, clusters_file: Path, cluster: str, pool: str, said: str | None
) -> None:
    monkeypatch.setenv("SPANVAULT_CLUSTERS_FILE", str(clusters_file))
    sentence = other_pool(cluster, pool)
    if said is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert said in sentence
        assert f"cluster={cluster!r}" in sentence


@pytest.mark.parametrize("kind", [PlanBackupOperator, PlanRestoreOperator])
def test_planning_warns_in_the_tasks_log(monkeypatch: pytest.MonkeyPatch, clusters_file: Path, kind: Any) -> None:
    monkeypatch.setenv("SPANVAULT_CLUSTERS_FILE", str(clusters_file))
    place = "into" if kind is PlanBackupOperator else "collection"
    operator = kind(task_id="plan", cluster="crm", pool="spanvault_shop", **{place: "file:///c"})

    def no_engine(_: object) -> None:
        raise Refused("The end of this test.")

    warnings: list[str] = []
    monkeypatch.setattr(kind, "engine", no_engine)
    monkeypatch.setattr(kind, "log", SimpleNamespace(warning=warnings.append))
    with pytest.raises(Refused):
        operator.step({})
    (warning,) = warnings
    assert "names the pool spanvault_crm" in warning
