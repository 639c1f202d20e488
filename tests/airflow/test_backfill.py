"""Missed intervals, backfilled by a real scheduler, against an event log that was written in the same transactions.

Hours cannot pass in a test, so the DAG that the builder makes here has intervals of seconds. One writer's transactions each
write a row of `event` and do to `account` what it says. So a restore is right if it has all events that had ended by then
and none that began later, and if its accounts are what those events, done again in Python, come to.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from spanvault.collection.manifests import parse_manifest
from spanvault.config.settings import Settings
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.restore_local import run_restore
from spanvault.model.manifest import Manifest
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.airflow import AirflowApi, AirflowMetadata
from tests.kit.servers import TestDatabase, drop_database, fresh_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # dozens of tasks, of some seconds each on a busy machine

DAG_ID = "seconds"
INTERVAL = timedelta(seconds=1)
MISSED, AT_ONCE = 5, 3
DAG_FILE = f"""
from datetime import timedelta
from airflow.sdk import DeltaDataIntervalTimetable
from airflow.sdk.api.datamodels._generated import DagRunType
from spanvault_airflow.builder import backup_dag, compact_dag

squeeze = compact_dag("squeeze", schedule=None, collection="seconds", description="Merge", doc_md="For a test.")
dag = backup_dag(
    "{DAG_ID}",
    kind="incremental",
    schedule=DeltaDataIntervalTimetable(timedelta(seconds={INTERVAL.total_seconds():g})),
    collection="seconds",
    description="Intervals of seconds",
    doc_md="For a test.",
)
# Else the scheduler adds a run each second. The attribute's own setter refuses a schedule without scheduled runs.
object.__setattr__(dag, "allowed_run_types", frozenset({{DagRunType.MANUAL, DagRunType.BACKFILL}}))
"""

State = dict[int, int]
Event = tuple[int, str, int, int]


@dataclass(frozen=True)
class Written:
    """A transaction: its event, and the client's clock before it began and after its commit was acknowledged."""

    event: Event
    began: datetime
    ended: datetime


class Writer:
    """One session whose transactions follow each other."""

    def __init__(self, database: TestDatabase) -> None:
        self._database = database
        self.written: list[Written] = []

    def write_until(self, moment: datetime) -> None:
        """Write until the clock shows `moment`."""
        with self._database.connect(autocommit=False) as session:
            while datetime.now(UTC) < moment:
                number = len(self.written) + 1
                # 97 and 31 are coprime, so accounts are made, moved and deleted in ever new orders.
                event = (number, ("add", "add", "add", "move", "add", "delete")[number % 6], number * 97 % 31, number)
                began = datetime.now(UTC)
                session.execute("insert into event values (%s, %s, %s, %s)", event)
                self._apply(session, event)
                session.commit()
                self.written.append(Written(event, began, datetime.now(UTC)))
                time.sleep(0.01)

    @staticmethod
    def _apply(session: psycopg.Connection[Any], event: Event) -> None:
        _, kind, account, amount = event
        if kind == "add":
            session.execute(
                "insert into account values (%s, %s) on conflict (id) do update set balance = account.balance + %s",
                (account, amount, amount),
            )
        elif kind == "move":
            session.execute("delete from account where id = %s", (account + 100,))
            session.execute("update account set id = id + 100 where id = %s", (account,))
        else:
            session.execute("delete from account where id in (%s, %s)", (account, account + 100))


def replayed(events: list[Event]) -> State:
    """What the events come to, without a database."""
    state: State = {}
    for _, kind, account, amount in events:
        if kind == "add":
            state[account] = state.get(account, 0) + amount
        elif kind == "move":
            state.pop(account + 100, None)
            if account in state:
                state[account + 100] = state.pop(account)
        else:
            state.pop(account, None)
            state.pop(account + 100, None)
    return state


@dataclass
class Site:
    """A running Airflow, a source with a full backup in the collection, its writer, and ends of intervals without layers: they
    lie close behind the full, as each one between would be a layer."""

    api: AirflowApi
    source: TestDatabase
    folder: Path
    writer: Writer
    ends: list[datetime] = field(default_factory=list)

    @property
    def conf(self) -> dict[str, Any]:
        """The form."""
        return {"into": f"file://{self.folder}", "scope": "database", "names": [self.source.name], "validate": "checksums"}

    def let_pass(self, intervals: int) -> list[datetime]:
        """The ends of the next intervals, from now on; their transactions are written, and the time has passed."""
        seconds = INTERVAL.total_seconds()
        begin = datetime.fromtimestamp(math.ceil(time.time() / seconds) * seconds, UTC)
        ends = [begin + INTERVAL * number for number in range(1, intervals + 1)]
        self.writer.write_until(ends[-1] + timedelta(milliseconds=300))
        return ends

    def backfill(self, ends: list[datetime], *, by_command: bool = False, **options: object) -> list[dict[str, Any]]:
        """Backfill the intervals; the runs, oldest interval first, when all have ended."""
        # Airflow has one backfill of a DAG at a time, and looks only each 30 s whether all its runs have ended.
        for one in self.api.get("/backfills", dag_id=DAG_ID)["backfills"]:
            if one["completed_at"] is None:
                self.api.client.put(f"/backfills/{one['id']}/cancel")
        assert all(one["completed_at"] for one in self.api.get("/backfills", dag_id=DAG_ID)["backfills"])
        first, last = (end - INTERVAL for end in (ends[0], ends[-1]))
        asked = {
            "dag_id": DAG_ID,
            "from_date": first.isoformat(),
            "to_date": last.isoformat(),
            "dag_run_conf": self.conf,
            "max_active_runs": 1,
            **options,
        }
        if by_command:
            self.api.site.command("backfill", "create", *as_options(asked))
        else:
            self.api.post("/backfills", asked)

        def ended() -> list[dict[str, Any]] | None:
            runs = self.api.get(f"/dags/{DAG_ID}/dagRuns", run_type="backfill", limit=100)["dag_runs"]
            mine = [run for run in runs if datetime.fromisoformat(run["data_interval_end"]) in ends]
            done = len(mine) == len(ends) and all(run["state"] in {"success", "failed"} for run in mine)
            return sorted(mine, key=lambda run: str(run["data_interval_end"])) if done else None

        return self.api.wait_for(ended, 240)

    def task_states(self, run: dict[str, Any]) -> dict[str, str]:
        """The state of each task of a run."""
        return {task["task_id"]: task["state"] for task in self.api.tasks(DAG_ID, run["dag_run_id"])}

    def manifests(self) -> list[Manifest]:
        """All original layers, by number."""
        found = []
        for file in sorted(self.folder.glob(f"*/*/*/chain/{'[0-9]' * 6}.json")):
            subdir = "/".join(file.parts[-5:-2])
            found.append(parse_manifest(file.read_bytes(), subdir, int(file.stem)))
        return found

    def layers(self) -> list[Manifest]:
        """The layers on top of the full: contiguous, and exactly one for each interval end since the full."""
        full, *layers = self.manifests()
        seconds = INTERVAL.total_seconds()
        first = math.floor(full.end.time.timestamp() / seconds) + 1
        assert [manifest.number for manifest in layers] == list(range(1, len(layers) + 1))
        assert [manifest.due for manifest in layers] == [
            datetime.fromtimestamp((first + number) * seconds, UTC) for number in range(len(layers))
        ]
        assert all(before.end == after.start for before, after in itertools.pairwise([full, *layers]))
        return layers

    def restored(self, moment: datetime) -> tuple[list[Event], State]:
        """Events and accounts of a restore as of `moment`."""
        name = f"{self.source.name}_restored"
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.source.name,)),
            collection=f"file://{self.folder}",
            as_of=moment,
            options=RestoreOptions(new_db_name=name, workers=1),
        )
        try:
            run_restore(Context(settings=Settings()), self.source.cluster, request, processes=False)
            database = TestDatabase(self.source.server, name)
            events = [
                (int(row[0]), str(row[1]), int(row[2]), int(row[3])) for row in database.execute("select * from event order by 1")
            ]
            return events, {int(row[0]): int(row[1]) for row in database.execute("select * from account")}
        finally:
            drop_database(self.source.server, name)

    def check(self, moment: datetime) -> None:
        """The restore as of `moment` is the source as it was then."""
        events, accounts = self.restored(moment)
        written = self.writer.written
        assert events == [entry.event for entry in written[: len(events)]], "not the first so many transactions"
        assert all(entry.began <= moment for entry in written[: len(events)]), "a later transaction is in"
        assert all(entry.ended > moment for entry in written[len(events) :]), "an earlier transaction is missing"
        assert accounts == replayed(events)


def as_options(asked: dict[str, object]) -> Iterator[str]:
    """A backfill's fields as options of `airflow backfill create`."""
    for name, value in asked.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="module")
def place(
    airflow_metadata: AirflowMetadata,
    servers_folder: Path,
    postgres: PostgresServer,
    source_connection: Callable[[TestDatabase], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Airflow with the DAG of seconds, and the full backup that its first run took."""
    dags = tmp_path_factory.mktemp("dags")
    (dags / "seconds.py").write_text(DAG_FILE)
    with fresh_database(postgres, "missed") as source:
        source.execute(
            "create table account (id int primary key, balance bigint not null);"
            "create table event (number int primary key, kind text, account int, amount int)"
        )
        site = airflow_metadata.site(servers_folder / "missed", variables=source_connection(source), dags=dags)
        with site.running() as api:
            found = Site(api, source, tmp_path_factory.mktemp("missed") / "collection", Writer(source))
            found.writer.write_until(datetime.now(UTC) + timedelta(seconds=0.5))
            api.unpause(DAG_ID)
            run_id = api.trigger(DAG_ID, found.conf)
            assert api.wait_for_run(DAG_ID, run_id) == "success", found.task_states({"dag_run_id": run_id})
            [full] = found.manifests()
            assert full.kind == "full", "the first run of an empty collection takes a full"
            found.ends = found.let_pass(MISSED + AT_ONCE)
            yield found


def test_missed_intervals_newest_first(place: Site) -> None:
    """The newest run comes first and writes a layer for each end; the others are skipped, and say by what."""
    ends = place.ends[:MISSED]
    runs = place.backfill(ends, by_command=True, run_backwards=True)
    states = [place.task_states(run) for run in runs]
    assert [run["state"] for run in runs] == ["success"] * MISSED, states
    assert set(states[-1].values()) == {"success"}
    for run, tasks in zip(runs[:-1], states[:-1], strict=True):
        assert set(tasks.values()) == {"skipped"}
        assert "layer" in place.api.task_log(DAG_ID, run["dag_run_id"], "plan")

    assert place.layers()[-1].due == ends[-1]
    for end in ends:
        place.check(end)


def test_runs_at_once_give_the_same_layers(place: Site) -> None:
    """Three backfill runs at a time want the same layers; each interval ends up with exactly one."""
    ends = place.ends[MISSED:]
    runs = place.backfill(ends, max_active_runs=3)
    assert [run["state"] for run in runs] == ["success"] * AT_ONCE, [place.task_states(run) for run in runs]
    assert place.layers()[-1].due == ends[-1]
    for end in ends:
        place.check(end)


def test_backfill_of_what_is_done_changes_nothing(place: Site, listing: Callable[[Path], dict[str, str]]) -> None:
    """Reprocessing completed runs finds each run's own layers, or that others cover it."""
    before = listing(place.folder)
    ends = [manifest.due for manifest in place.layers()[-2:] if manifest.due is not None]
    runs = place.backfill(ends, reprocess_behavior="completed")
    assert [run["state"] for run in runs] == ["success", "success"]
    assert listing(place.folder) == before


def test_synthetic_full_of_all_layers_restores_the_last_end(place: Site) -> None:
    """The merged layer is another file of the chain, and a restore reads it instead of the others."""
    last = place.layers()[-1]
    place.api.unpause("squeeze")
    run_id = place.api.trigger("squeeze", {"collection": place.conf["into"], "mode": "synthetic_full"})
    assert place.api.wait_for_run("squeeze", run_id) == "success", place.api.task_log("squeeze", run_id, "compact")
    [merged] = place.folder.glob(f"*/*/*/chain/000000-{last.number:06}.json")
    for file in place.folder.glob("*/*/*/00000[1-9]/data/*.parquet"):
        file.unlink()
    assert merged.exists()
    assert last.due is not None
    place.check(last.due)
