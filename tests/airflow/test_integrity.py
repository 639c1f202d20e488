"""What Airflow makes of the plugins and DAG folders, before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.kit.airflow import PROJECT, AirflowSite

CHAIN_DAGS = ["encrypted_backup", "incremental_backup", "revision_history_backup"]
BACKUP_DAGS = ["full_backup", *CHAIN_DAGS]
BY_HAND = {"restore", "compact_backups", "locality_aware_backup"}
DAGS = {*BACKUP_DAGS, "validate_backup", "expire_backups", *BY_HAND}
BACKUP_CHAIN = ["plan", "export", "seal", "write_manifest", "validate", "advance_protection"]


@pytest.fixture(scope="module")
def probe(site: AirflowSite) -> dict[str, Any]:
    """What a fresh Airflow process finds."""
    answer: dict[str, Any] = json.loads(site.python("-m", "tests.kit.dag_probe").splitlines()[-1])
    return answer


def test_plugin_loads_and_is_the_only_scanned_file(probe: dict[str, Any]) -> None:
    assert probe["plugin_errors"] == {}
    assert probe["plugins"]["spanvault"] == "$PLUGINS_FOLDER/spanvault_plugin.py"
    assert "Manifest" in probe["links"]
    assert probe["scanned"] == [], "a module of spanvault_airflow was imported as a top-level module"


def test_no_module_is_loaded_under_two_names(probe: dict[str, Any]) -> None:
    assert probe["twice"] == {}


def test_dags_load_without_errors(probe: dict[str, Any]) -> None:
    assert probe["import_errors"] == {}
    assert set(probe["dags"]) == DAGS


def test_parsing_imports_nothing_heavy(probe: dict[str, Any]) -> None:
    assert probe["heavy"] == []


@pytest.mark.parametrize("dag_id", sorted(DAGS))
def test_dag_is_documented_paused_and_bounded(probe: dict[str, Any], dag_id: str) -> None:
    dag = probe["dags"][dag_id]
    assert dag["stored_tasks"] == sorted(dag["tasks"])
    assert "When it is red" in dag["doc_md"]
    assert dag["paused"] is True
    assert dag["catchup"] is False
    assert 1 <= dag["max_active_runs"] <= 4
    for task_id, task in dag["tasks"].items():
        assert len(task["doc_md"] or "") > 30, f"{task_id} has no doc_md"
        assert task["retries"] >= 3, f"{task_id} does not retry"
        assert task["pool"] == "default_pool", "a pool that a fresh Airflow does not have would leave tasks waiting for ever"


@pytest.mark.parametrize("dag_id", sorted(DAGS))
def test_every_first_task_knows_the_forms_fields(probe: dict[str, Any], dag_id: str) -> None:
    """So that a run which was given any other fails before anything is done."""
    dag = probe["dags"][dag_id]
    assert dag["params"]
    first = {task_id: task["known_fields"] for task_id, task in dag["tasks"].items() if not task["upstream"]}
    assert first
    for task_id, known in first.items():
        assert sorted(known) == sorted(dag["params"]), task_id


@pytest.mark.parametrize("dag_id", sorted(DAGS))
def test_every_leaf_is_all_success(probe: dict[str, Any], dag_id: str) -> None:
    leaves = {task_id: task for task_id, task in probe["dags"][dag_id]["tasks"].items() if not task["downstream"]}
    assert leaves
    assert {task["trigger_rule"] for task in leaves.values()} == {"all_success"}, "a cancelled run would end as success"


def test_every_operator_documents_its_parameters(probe: dict[str, Any]) -> None:
    for dag in probe["dags"].values():
        for task in dag["tasks"].values():
            assert ":param" in task["class_doc"], task["operator"]
            assert ".. seealso::" in task["class_doc"], task["operator"]


@pytest.mark.parametrize("dag_id", [*BACKUP_DAGS, "locality_aware_backup"])
def test_backup_has_the_shape_of_the_design(probe: dict[str, Any], dag_id: str) -> None:
    tasks = probe["dags"][dag_id]["tasks"]
    for before, after in itertools.pairwise(BACKUP_CHAIN):
        assert before in tasks[after]["upstream"]
    assert set(tasks) == set(BACKUP_CHAIN)
    assert {task["queue"] for task in tasks.values()} == {"default"}, "nobody listens on a queue that nobody named"
    assert tasks["export"]["map_index_template"] == "{{ task.batch['label'] }}"
    assert tasks["write_manifest"]["links"] == ["Manifest"]


def test_scheduled_dags_have_real_intervals_at_different_minutes(probe: dict[str, Any]) -> None:
    scheduled = {dag_id: dag for dag_id, dag in probe["dags"].items() if dag_id not in BY_HAND}
    assert {dag["has_intervals"] for dag in scheduled.values()} == {"CronDataIntervalTimetable"}
    minutes = [dag["summary"].split()[0] for dag in scheduled.values()]
    assert len(set(minutes)) == len(minutes)
    assert {probe["dags"][dag_id]["has_intervals"] for dag_id in BY_HAND} == {"NullTimetable"}
    assert all(scheduled[dag_id]["summary"].split()[1:] == ["*"] * 4 for dag_id in CHAIN_DAGS), "hourly"


def test_full_backup_refuses_backfills_and_chains_take_them(probe: dict[str, Any]) -> None:
    assert probe["dags"]["full_backup"]["allowed_run_types"] == ["manual", "scheduled"]
    for dag_id in CHAIN_DAGS:
        assert probe["dags"][dag_id]["allowed_run_types"] == ["backfill", "manual", "scheduled"]


def test_backup_dags_own_a_collection_each(probe: dict[str, Any]) -> None:
    owned = [probe["dags"][dag_id]["params"]["into"]["value"].rpartition("/")[2] for dag_id in BACKUP_DAGS]
    assert owned == ["full", "encrypted", "incremental", "revision_history"]


@pytest.mark.parametrize("dag_id", BACKUP_DAGS)
def test_plan_asks_for_what_the_dag_is_named_after(probe: dict[str, Any], dag_id: str) -> None:
    plan = probe["dags"][dag_id]["tasks"]["plan"]["fields"]
    assert plan["append"] == ("" if dag_id == "full_backup" else "LATEST")
    assert plan["options"]["revision_history"] is (dag_id == "revision_history_backup")
    form = set(probe["dags"][dag_id]["params"])
    assert {"full_every", "on_broken_chain", "without_identity", "incremental_location"} <= form or dag_id == "full_backup"


@pytest.mark.parametrize("dag_id", sorted(DAGS))
def test_every_field_is_read(probe: dict[str, Any], dag_id: str) -> None:
    asked = set(re.findall(r"params\.(\w+)", json.dumps(probe["dags"][dag_id]["tasks"])))
    assert asked == set(probe["dags"][dag_id]["params"]), "a field that nothing reads would be a promise that nobody keeps"


@pytest.mark.parametrize("dag_id", CHAIN_DAGS)
def test_protection_outlasts_the_interval(probe: dict[str, Any], dag_id: str) -> None:
    assert probe["dags"][dag_id]["params"]["protection"]["value"] == "7d"
    assert "interval" in probe["dags"][dag_id]["params"]["protection"]["schema"]["description_md"]


def test_every_form_field_explains_itself_and_accepts_its_default(probe: dict[str, Any]) -> None:
    for dag_id, dag in probe["dags"].items():
        for name, param in dag["params"].items():
            schema = param["schema"]
            assert schema["title"] and schema["section"], f"{dag_id}.{name}"
            assert param["description"] or schema["description_md"], f"{dag_id}.{name}"
            jsonschema.validate(param["value"], schema)


@pytest.mark.parametrize(
    ("dag_id", "field", "good", "bad"),
    [
        ("full_backup", "into", "s3://bucket/a/b?conn_id=my_s3", "s3://b/a?AWS_ACCESS_KEY_ID=x&AWS_SECRET_ACCESS_KEY=y"),
        ("full_backup", "into", "file:///var/backups", "/var/backups"),
        ("full_backup", "into", "nodelocal://self/x", "s3://user:password@bucket/x"),
        ("full_backup", "scope", "schema", "universe"),
        ("full_backup", "protection", "1h30m", "four hours"),
        ("full_backup", "rate_limit", 50_000_000, -1),
        ("full_backup", "names", ["shop", "crm"], [""]),
        ("restore", "subdir", "2026/11/22-143000.00", "../elsewhere"),
        ("validate_backup", "level", "checksums", "thorough"),
        ("incremental_backup", "full_every", "7d", "weekly"),
        ("incremental_backup", "full_every", "none", ""),
        ("incremental_backup", "without_identity", "skip", "guess"),
        ("incremental_backup", "on_broken_chain", "fail", "ignore"),
        ("incremental_backup", "incremental_location", None, "s3://b/x?AWS_SECRET_ACCESS_KEY=y"),
        ("revision_history_backup", "incremental_location", "s3://bucket/other?conn_id=s3", "/var/x"),
        ("compact_backups", "mode", "synthetic_full", "everything"),
        ("compact_backups", "up_to", None, 0),
        ("expire_backups", "keep_last", None, 0),
        ("expire_backups", "window", "30d", "a month"),
        ("expire_backups", "dry_run", False, "no"),
    ],
)
def test_form_refuses_what_cannot_be_meant(probe: dict[str, Any], dag_id: str, field: str, good: object, bad: object) -> None:
    schema = probe["dags"][dag_id]["params"][field]["schema"]
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)


def test_expiry_is_a_dry_run_by_default(probe: dict[str, Any]) -> None:
    assert probe["dags"]["expire_backups"]["params"]["dry_run"]["value"] is True


def test_examples_of_the_documentation_load(site: AirflowSite, tmp_path: Path) -> None:
    text = (PROJECT / "docs/airflow.md").read_text()
    examples = re.findall(r"<!-- executed by .*? -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    for number, example in enumerate(examples):
        (tmp_path / f"example_{number}.py").write_text(example)
    probe = json.loads(replace(site, dags=tmp_path).python("-m", "tests.kit.dag_probe").splitlines()[-1])
    assert probe["import_errors"] == {}
    assert set(probe["dags"]) == {"crm_backup", "crm_everywhere", "check_crm"}
    assert len(probe["dags"]["crm_everywhere"]["params"]["into"]["value"].splitlines()) == 2
    assert probe["dags"]["crm_backup"]["params"]["into"]["value"] == "nodelocal://self/backups/crm"
