"""Two Celery workers in different localities: the rows of a locality are read and written by its own worker.

They share no disk: each has folders for temporary files of its own, and the collection is in a store.
"""

from __future__ import annotations

import fnmatch
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from spanvault.embedded.ports import LOOPBACK
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.airflow import AirflowApi, AirflowMetadata
from tests.kit.celery_workers import ValkeyServer, Worker, celery_settings, start_worker, wait_for_workers
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.standbys import PLACES, Nodes, running_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = {"orders_eu": 3000, "orders_us": 2000}
BUCKET = "celery"
QUEUES = {"eu": ("default", "spanvault_eu"), "us": ("spanvault_us",)}


def worker_in(region: str, folder: Path) -> Worker:
    """A worker with its own disk: what it keeps beside the collection is below the folder, and no SPANVAULT_EXTERNAL_IO_DIR is
    both's."""
    disk = folder / f"disk-{region}"
    own = {"SPANVAULT_LOCALITY": f"region={region},zone=a", "SPANVAULT_EXTERNAL_IO_DIR": str(disk / "extern")}
    for variable, name in (("SPANVAULT_SCRATCH_DIR", "scratch"), ("TMPDIR", "tmp"), ("HOME", "home")):
        (disk / name).mkdir(parents=True)
        own[variable] = str(disk / name)
    return Worker(f"worker-{region}", QUEUES[region], own)


@dataclass
class Site:
    """A running Airflow with both workers, the source: a primary in eu and standbys in eu and us; and the store."""

    api: AirflowApi
    source: TestDatabase
    nodes: Nodes
    store: SeaweedServer

    def run(self, dag_id: str, **conf: Any) -> tuple[str, list[dict[str, Any]], str]:
        """Trigger a DAG and wait: the run's state, its task instances and its id."""
        run_id = self.api.trigger(dag_id, {"scope": "database", "names": [self.source.name], **conf})
        state = self.api.wait_for_run(dag_id, run_id, timeout=300)
        return state, self.api.tasks(dag_id, run_id), run_id

    def objects(self, folder: str) -> dict[str, bytes]:
        """What the store has below the folder, by name from there on."""
        with closing(self.store.client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{folder}/")
            names = [found["Key"] for page in pages for found in page.get("Contents", [])]
            return {name.removeprefix(f"{folder}/"): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}


def connection(server: PostgresServer) -> str:
    fields = {"conn_type": "postgres", "host": LOOPBACK, "port": server.port, "login": server.SUPERUSER, "schema": "postgres"}
    return json.dumps(fields)


def store_connection(store: SeaweedServer) -> str:
    extra = {"endpoint_url": store.endpoint, "region_name": store.REGION}
    return json.dumps({"conn_type": "aws", "login": store.access_key, "password": store.secret_key, "extra": extra})


def clusters_yaml(nodes: Nodes) -> str:
    cluster = {
        "nodes": [
            {"name": server.name, "conn_id": f"node_{server.name}", "locality": PLACES[server.name]} for server in nodes.servers
        ],
        "placement": [{"tables": f"*.public.*_{region}", "locality": f"region={region}"} for region in ("eu", "us")],
        "queues": [{"locality": f"region={region}", "queue": f"spanvault_{region}"} for region in ("eu", "us")],
    }
    return yaml.safe_dump({"clusters": {"shop": cluster}})


@pytest.fixture(scope="module")
def site(airflow_metadata: AirflowMetadata, seaweed: SeaweedServer, servers_folder: Path) -> Iterator[Site]:
    seaweed.create_bucket(BUCKET)
    with ExitStack() as stack:
        nodes = stack.enter_context(running_nodes(servers_folder / "nodes"))
        redis = stack.enter_context(ValkeyServer(servers_folder / "redis"))
        source = stack.enter_context(fresh_database(nodes.primary, "orders"))
        for table, rows in ROWS.items():
            source.execute(
                f"create table {table} (id int primary key, place text);"
                f"insert into {table} select i, '{table}' from generate_series(1, {rows}) i"
            )
        nodes.caught_up()
        clusters = servers_folder / "clusters.yaml"
        clusters.write_text(clusters_yaml(nodes))
        home = airflow_metadata.site(servers_folder / "celery")
        home.variables = {
            "SPANVAULT_CLUSTERS_FILE": str(clusters),
            **{f"AIRFLOW_CONN_NODE_{server.name.upper()}": connection(server) for server in nodes.servers},
            **celery_settings(redis, home),
            "AIRFLOW_CONN_STORE": store_connection(seaweed),
        }
        workers = {}
        for worker in (worker_in(region, servers_folder) for region in QUEUES):
            workers[worker.name] = start_worker(home, worker)
            stack.callback(workers[worker.name].kill)
        api = stack.enter_context(home.running())
        wait_for_workers(home, api, workers)
        for dag_id in ("locality_aware_backup", "locality_aware_backup__spanvault_us", "restore__spanvault_eu"):
            api.wait_for(lambda dag_id=dag_id: api.client.get(f"/dags/{dag_id}").is_success or None)  # type: ignore[misc]
            api.unpause(dag_id)
        yield Site(api, source, nodes, seaweed)


def places(folder: str) -> str:
    """A default place and one for each region, as the form takes them."""
    regions = [f"s3://{BUCKET}/{folder}/{region}?conn_id=store&COCKROACH_LOCALITY=region%3D{region}" for region in QUEUES]
    return "\n".join([f"s3://{BUCKET}/{folder}/default?conn_id=store&COCKROACH_LOCALITY=default", *regions])


def hosts(tasks: list[dict[str, Any]]) -> dict[str, set[tuple[str, str]]]:
    """Each task's state, with the worker that had it."""
    found: dict[str, set[tuple[str, str]]] = {}
    for task in tasks:
        found.setdefault(task["task_id"], set()).add((task["state"], task["hostname"]))
    return found


def rows_by_place(objects: dict[str, bytes], region: str) -> dict[str, int]:
    """The rows of the data files below a region's URI, by the text that they hold; each file's path names the region."""
    counts: dict[str, int] = {}
    for name, data in objects.items():
        if name.startswith(f"{region}/") and "/data/" in name and name.endswith(".parquet"):
            assert f"/data/region={region}/" in name
            for place in pq.read_table(io.BytesIO(data)).column("place").to_pylist():
                counts[place] = counts.get(place, 0) + 1
    return counts


def test_rows_of_a_locality_go_through_its_own_worker_to_its_own_place(site: Site) -> None:
    into = places("own")
    state, tasks, _ = site.run("locality_aware_backup", into=into)
    assert state == "success", site.api.last_words()
    ran = hosts(tasks)
    assert ran["export_spanvault_eu"] == {("success", "worker-eu")}
    assert ran["export_spanvault_us"] == {("success", "worker-us")}
    assert {state for state, _ in ran["export"]} == {"skipped"}
    assert ran["seal"] == ran["write_manifest"] == {("success", "worker-eu")}
    objects = site.objects("own")
    assert rows_by_place(objects, "eu") == {"orders_eu": ROWS["orders_eu"]}
    assert rows_by_place(objects, "us") == {"orders_us": ROWS["orders_us"]}
    assert not fnmatch.filter(objects, "default/*/data/*.parquet")
    assert len(fnmatch.filter(objects, "*/000000/BACKUP_PART_*.json")) == 2

    site.source.execute("update orders_us set place = place where id <= 10")
    state, tasks, _ = site.run("locality_aware_backup", into=into)
    assert state == "success", site.api.last_words()
    assert {state for name in ("export", "export_spanvault_eu", "export_spanvault_us") for state, _ in hosts(tasks)[name]} == {
        "skipped"
    }, "a layer of changes has no batches; it is sealed all the same"
    chain = fnmatch.filter(site.objects("own"), "default/*/chain/*.json")
    assert sorted(name.split("/")[-1] for name in chain) == ["000000.json", "000001.json"]

    restored = f"{site.source.name}_restored"
    try:
        conf = {"collection": into, "new_db_name": restored}
        state, tasks, _ = site.run("restore__spanvault_eu", **conf)
        assert state == "success", site.api.last_words()
        assert {worker for task in hosts(tasks).values() for _, worker in task} == {"worker-eu"}
        target = TestDatabase(site.nodes.primary, restored)
        assert {table: target.execute(f"select count(*) from {table}")[0][0] for table in ROWS} == ROWS
    finally:
        drop_database(site.nodes.primary, restored)


def test_a_run_for_one_locality_is_done_there_and_nowhere_else(site: Site) -> None:
    state, tasks, _ = site.run("locality_aware_backup__spanvault_us", into=places("us"))
    assert state == "success", site.api.last_words()
    assert {worker for task in hosts(tasks).values() for _, worker in task} == {"worker-us"}
    objects = site.objects("us")
    assert rows_by_place(objects, "us") == ROWS
    assert rows_by_place(objects, "eu") == {}


def test_a_worker_elsewhere_refuses_the_run(site: Site) -> None:
    state, tasks, run_id = site.run("locality_aware_backup", into=places("elsewhere"), execution_locality="region=us")
    assert state == "failed"
    plan = next(task for task in tasks if task["task_id"] == "plan")
    assert (plan["state"], plan["try_number"], plan["hostname"]) == ("failed", 1, "worker-eu")
    log = site.api.task_log("locality_aware_backup", run_id, "plan")
    assert "does not match this worker, whose SPANVAULT_LOCALITY is region=eu,zone=a; send the run's tasks to a queue" in log
    assert site.objects("elsewhere") == {}
