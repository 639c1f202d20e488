"""Queues of clusters.yaml, the workers behind them, and what a run does with a worker in the wrong place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from spanvault.errors import Refused
from spanvault_airflow.operators.base import require_worker_in
from spanvault_airflow.operators.pick_batches import PickBatchesOperator
from spanvault_airflow.operators.plan import BatchHandle
from tests.kit.airflow import AirflowSite

CLUSTERS = """
clusters:
  source:
    nodes: [{name: primary, conn_id: spanvault_source}]
    queues:
      - {locality: region=eu, queue: eu}
      - {locality: "region=us,zone=a", queue: "us:east"}
      - {locality: "region=us,zone=b", queue: "us:east"}
"""


@pytest.fixture(scope="module")
def clusters_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("queues") / "clusters.yaml"
    file.write_text(CLUSTERS)
    return file


@pytest.fixture(scope="module")
def dags(site: AirflowSite, clusters_file: Path) -> dict[str, Any]:
    """The DAGs of a project whose clusters.yaml names queues."""
    here = replace(site, variables={"SPANVAULT_CLUSTERS_FILE": str(clusters_file)})
    probe = json.loads(here.python("-m", "tests.kit.dag_probe").splitlines()[-1])
    assert probe["import_errors"] == {}
    found: dict[str, Any] = probe["dags"]
    return found


@pytest.mark.parametrize("dag_id", ["full_backup", "incremental_backup", "locality_aware_backup"])
def test_each_queue_has_an_export_task_of_its_own(dags: dict[str, Any], dag_id: str) -> None:
    tasks = dags[dag_id]["tasks"]
    elsewhere = {task_id: task["queue"] for task_id, task in tasks.items() if task["queue"] != "default"}
    assert elsewhere == {"export_eu": "eu", "export_us_east": "us:east"}
    assert {"export", "export_eu", "export_us_east"} < set(tasks["seal"]["upstream"])
    assert tasks["seal"]["trigger_rule"] == "none_failed_min_one_success", "an export without batches must not skip the seal"
    assert tasks["plan"]["fields"]["options"]["workers"] == 12, "the rate limit is shared by all that work at a time"


@pytest.mark.parametrize(("suffix", "queue", "locality"), [("eu", "eu", "region=eu"), ("us_east", "us:east", "region=us")])
def test_each_queue_has_dags_that_run_there_only(dags: dict[str, Any], suffix: str, queue: str, locality: str) -> None:
    for name in (f"locality_aware_backup__{suffix}", f"restore__{suffix}"):
        assert {task["queue"] for task in dags[name]["tasks"].values()} == {queue}
        assert dags[name]["params"]["execution_locality"]["value"] == locality
        assert {task["fields"]["execution_locality"] for task in dags[name]["tasks"].values()} == {
            "{{ params.execution_locality }}"
        }


def test_chains_in_different_places_do_not_share_a_collection(dags: dict[str, Any]) -> None:
    chains = [dag["params"]["into"]["value"] for dag in dags.values() if "into" in dag["params"]]
    assert len(chains) == 7
    assert len(set(chains)) == 7


def test_restores_weigh_more_than_any_backup(dags: dict[str, Any]) -> None:
    restores = [task["weight"] for name, dag in dags.items() if name.startswith("restore") for task in dag["tasks"].values()]
    others = [task["weight"] for name, dag in dags.items() if not name.startswith("restore") for task in dag["tasks"].values()]
    assert min(restores) > 10 * max(others)


EU = "s3://eu/x?conn_id=s3&COCKROACH_LOCALITY=region%3Deu"
DEFAULT = "s3://all/x?conn_id=s3&COCKROACH_LOCALITY=default"


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("into", f"{DEFAULT}\n{EU}", f"{DEFAULT}\n{EU}&AWS_SECRET_ACCESS_KEY=y"),
        ("into", f" {DEFAULT}\r\n\r\n{EU}\n", f"{DEFAULT}&AWS_SECRET_ACCESS_KEY=y\n{EU}"),
        ("into", "file:///x", f"{DEFAULT}\n/var/x"),
        ("execution_locality", "region=eu, zone=a", "eu"),
        ("execution_locality", "", "region="),
        ("strict", True, "yes"),
        ("revision_history", True, "yes"),
    ],
)
def test_form_of_places(dags: dict[str, Any], field: str, good: object, bad: object) -> None:
    schema = dags["locality_aware_backup"]["params"][field]["schema"]
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)


def picked(pick: str, *queues: str | None) -> list[int]:
    batches = [BatchHandle(index=index, label="", queue=queue) if queue else BatchHandle(index=index, label="")
               for index, queue in enumerate(queues)]  # fmt: skip
    operator = PickBatchesOperator(task_id="batches", batches=batches, queues=["eu", "us:east"], pick=pick)
    return [batch["index"] for batch in operator.step({})]


def test_every_batch_is_picked_once() -> None:
    queues = ["eu", None, "us:east", "forgotten", "eu"]
    assert picked("eu", *queues) == [0, 4]
    assert picked("us:east", *queues) == [2]
    assert picked("", *queues) == [1, 3], "a queue that came with a newer clusters.yaml has no task of its own yet"


@pytest.mark.parametrize(
    ("asked", "here"), [("", ""), ("", "region=eu"), ("region=eu", "region=eu,zone=a"), ("zone=a, region=eu", "region=eu,zone=a")]
)
def test_a_worker_where_the_run_belongs_may_work(monkeypatch: pytest.MonkeyPatch, asked: str, here: str) -> None:
    monkeypatch.setenv("SPANVAULT_LOCALITY", here)
    require_worker_in(asked)


@pytest.mark.parametrize(("here", "named"), [("region=us", "region=us"), ("region=eu", "region=eu"), ("", "not set")])
def test_a_worker_elsewhere_says_so(monkeypatch: pytest.MonkeyPatch, here: str, named: str) -> None:
    monkeypatch.setenv("SPANVAULT_LOCALITY", here)
    with pytest.raises(Refused) as error:
        require_worker_in("region=eu,zone=b")
    assert f"whose SPANVAULT_LOCALITY is {named};" in str(error.value)
    assert "EXECUTION LOCALITY = 'region=eu,zone=b'" in str(error.value)
    assert "queue of workers in region=eu,zone=b" in str(error.value)
