"""A real scheduler: runs triggered by REST, tasks killed, runs cleared and cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.model.manifest import Plan
from tests.kit.airflow import AirflowApi, AirflowMetadata
from tests.kit.servers import TestDatabase, fresh_database

pytestmark = pytest.mark.slow

TABLES = 10
Listing = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def source(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """Small tables that hardly compress, so that a rate limit makes their export last; together they are less than the
    share of a batch that `big` sets, so they are one batch."""
    with fresh_database(postgres, "sched") as database:
        database.execute(
            "create table big (id int primary key, filler text);"
            "insert into big select i, repeat('x', 1000) from generate_series(1, 24000) i"
        )
        for number in range(TABLES):
            database.execute(
                f"create table t{number:02d} (id int primary key, noise text);"
                f"insert into t{number:02d} select i, md5(random()::text) || md5(random()::text) from generate_series(1, 800) i"
            )
        yield database


@pytest.fixture(scope="module")
def api(
    airflow_metadata: AirflowMetadata,
    servers_folder: Path,
    source: TestDatabase,
    source_connection: Callable[[TestDatabase], dict[str, str]],
) -> Iterator[AirflowApi]:
    """A running Airflow with `full_backup` unpaused, and the scheduled run that unpausing makes out of the way."""
    site = airflow_metadata.site(servers_folder / "live", variables=source_connection(source))
    with site.running() as api:
        api.unpause("full_backup")
        runs = "/dags/full_backup/dagRuns"
        [scheduled] = api.wait_for(lambda: api.get(runs)["dag_runs"] or None)
        cancel(api, scheduled["dag_run_id"])
        api.wait_for_run("full_backup", scheduled["dag_run_id"])
        yield api


def cancel(api: AirflowApi, run_id: str) -> None:
    """What marking a run as failed in the UI does."""

    def cancelled() -> bool | None:
        # Airflow answers 500 when the scheduler writes the same rows at that moment.
        answer = api.client.patch(f"/dags/full_backup/dagRuns/{run_id}", json={"state": "failed"})
        return None if answer.is_server_error else bool(answer.raise_for_status())

    api.wait_for(cancelled)


def conf_of(into: Path, source: TestDatabase, **more: Any) -> dict[str, Any]:
    """A backup of the source's database into `into`."""
    return {"into": f"file://{into}", "scope": "database", "names": [source.name], **more}


def half_done(collection: Path, tasks: list[dict[str, Any]]) -> tuple[dict[str, Any], set[str]] | None:
    """A running export task of whose spans some have a receipt and some do not, with those that do."""
    plans = list(collection.glob("*/*/*/PLAN.json"))
    if not plans:
        return None
    plan = Plan.from_json(plans[0].read_bytes(), str(plans[0]))
    done = {file.stem for file in plans[0].parent.glob("000000/progress/*.json")}
    for task in tasks:
        if task["task_id"] == "export" and task["state"] == "running" and task["pid"]:
            spans = {span.id for span in plan.batches[task["map_index"]].spans}
            if spans & done and spans - done:
                return task, spans & done
    return None


def export_result(api: AirflowApi, run_id: str, map_index: int) -> dict[str, int]:
    """What a mapped export task returned."""
    path = f"/dags/full_backup/dagRuns/{run_id}/taskInstances/export/xcomEntries/return_value"
    found: dict[str, int] = api.get(path, map_index=map_index, deserialize="true")["value"]
    return found


def test_killed_export_is_retried_without_exporting_finished_spans_again(
    api: AirflowApi, source: TestDatabase, tmp_path: Path, listing: Listing
) -> None:
    collection = tmp_path / "collection"
    run_id = api.trigger("full_backup", conf_of(collection, source, rate_limit=400_000))
    task, finished = api.wait_for(lambda: half_done(collection, api.tasks("full_backup", run_id)))
    receipts = {span: next(collection.glob(f"*/*/*/000000/progress/{span}.json")).read_bytes() for span in finished}
    os.kill(task["pid"], signal.SIGKILL)

    assert api.wait_for_run("full_backup", run_id) == "success"
    tasks = api.tasks("full_backup", run_id)
    retried = next(one for one in tasks if one["task_id"] == "export" and one["map_index"] == task["map_index"])
    assert (retried["state"], retried["try_number"]) == ("success", 2)
    result = export_result(api, run_id, task["map_index"])
    assert result["skipped"] >= len(finished)
    for span, stored in receipts.items():
        assert next(collection.glob(f"*/*/*/000000/progress/{span}.json")).read_bytes() == stored
    labels = {one["rendered_map_index"] for one in tasks if one["task_id"] == "export"}
    assert any("public.t00" in label for label in labels)

    link = api.get(f"/dags/full_backup/dagRuns/{run_id}/taskInstances/write_manifest/links")
    assert link["extra_links"]["Manifest"].endswith("/chain/000000.json")

    before = listing(collection)
    clear = {"dag_run_id": run_id, "dry_run": False, "reset_dag_runs": True, "only_failed": False}
    api.post("/dags/full_backup/clearTaskInstances", clear)
    assert api.wait_for_run("full_backup", run_id) == "success"
    assert listing(collection) == before, "re-running a finished run must change nothing on storage"


def test_bad_name_fails_at_once_with_one_sentence(api: AirflowApi, source: TestDatabase, tmp_path: Path) -> None:
    conf = conf_of(tmp_path / "collection", source) | {"names": ["no_such_database"]}
    run_id = api.trigger("full_backup", conf)
    assert api.wait_for_run("full_backup", run_id) == "failed"
    plan = next(task for task in api.tasks("full_backup", run_id) if task["task_id"] == "plan")
    assert (plan["state"], plan["try_number"]) == ("failed", 1)
    log = api.task_log("full_backup", run_id, "plan")
    assert "no_such_database" in log
    assert "not-to-be-seen" not in log


def test_cancelled_run_leaves_no_process_and_ends_failed(api: AirflowApi, source: TestDatabase, tmp_path: Path) -> None:
    collection = tmp_path / "collection"
    run_id = api.trigger("full_backup", conf_of(collection, source, rate_limit=100_000))
    task, _ = api.wait_for(lambda: half_done(collection, api.tasks("full_backup", run_id)))
    runner = psutil.Process(task["pid"])
    cancel(api, run_id)
    api.wait_for(lambda: None if runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE else True, 60)
    assert api.state("full_backup", run_id) == "failed"
    assert not list(collection.glob("*/*/*/chain/*")), "a cancelled run must not commit"
    sessions = "select count(*) from pg_stat_activity where application_name like 'spanvault%%' and datname = %s"
    api.wait_for(lambda: True if source.execute(sessions, [source.name]) == [(0,)] else None, 60)


def test_restore_goes_before_a_backup_that_waited_longer(api: AirflowApi, source: TestDatabase, tmp_path: Path) -> None:
    api.unpause("restore")
    pool_slots(api, 0)
    try:
        backup = api.trigger("full_backup", conf_of(tmp_path / "collection", source))
        restore = api.trigger(
            "restore", {"collection": f"file://{tmp_path}/nothing", "scope": "database", "names": [source.name]}
        )
        first = (("full_backup", backup), ("restore", restore))
        for dag_id, run_id in first:
            api.wait_for(lambda run=(dag_id, run_id): plan_of(api, *run)["state"] == "scheduled" or None)  # type: ignore[misc]
    finally:
        pool_slots(api, 1)
    try:
        for dag_id, run_id in first:
            api.wait_for(lambda run=(dag_id, run_id): plan_of(api, *run)["end_date"])  # type: ignore[misc]
        begun = {dag_id: plan_of(api, dag_id, run_id)["start_date"] for dag_id, run_id in first}
        assert begun["restore"] < begun["full_backup"]
    finally:
        pool_slots(api, 128)
        cancel(api, backup)


def pool_slots(api: AirflowApi, slots: int) -> None:
    """How many tasks of Airflow's default pool may run at a time from now on."""
    pool = {"pool": "default_pool", "slots": slots}
    api.client.patch("/pools/default_pool", params={"update_mask": "slots"}, json=pool).raise_for_status()


def plan_of(api: AirflowApi, dag_id: str, run_id: str) -> dict[str, Any]:
    """The run's first task; nothing has happened to it while the scheduler has not seen the run."""
    return next(task for task in api.tasks(dag_id, run_id) if task["task_id"] == "plan")


@pytest.mark.parametrize(
    "wrong",
    [
        {"into": "s3://bucket/x?AWS_ACCESS_KEY_ID=AKIA&AWS_SECRET_ACCESS_KEY=dont-store-me"},
        {"scope": "everything"},
        {"rate_limit": "fast"},
    ],
)
def test_form_is_validated_before_a_run_exists(api: AirflowApi, wrong: dict[str, Any]) -> None:
    answer: httpx.Response = api.client.post("/dags/full_backup/dagRuns", json={"conf": wrong, "logical_date": None})
    assert answer.status_code in {400, 422}
    assert next(iter(wrong)) in answer.text
