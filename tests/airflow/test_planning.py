"""What the tasks of a chain hand to the engine, and what they make of a lost race; the engine is a double here.

The race itself is tested with the real engine; here each of its answers can be had at will.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from tests.kit.airflow import AirflowSite

SCRIPT = """
import hashlib, json, sys
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from airflow.sdk import CronDataIntervalTimetable, DAG
from spanvault.errors import AlreadyCovered, BrokenChain, Busy, Refused, SpanvaultError
from spanvault.model.request import BackupOptions, BackupRequest
from spanvault_airflow.moments import moment_of
from spanvault_airflow.operators import write_manifest as module
from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.expire import ExpireBackupsOperator
from spanvault_airflow.operators.plan import PlanBackupOperator
from spanvault_airflow.operators.restore import PlanRestoreOperator
from spanvault_airflow.operators.seal import SealOperator
from spanvault_airflow.operators.validate import ValidateBackupOperator

calls = []
def plan(number, batches=0):
    request = BackupRequest(append="LATEST", into="file:///c", options=BackupOptions(revision_history=True))
    return SimpleNamespace(subdir="2026/11/22-090000.00", number=number, last_number=number + 1, run_key="dag/run",
        parent_sha256=hashlib.sha256(b"parent").hexdigest(),
        kind="incremental", request=request,
        batches=[SimpleNamespace(index=index, label=f"batch {index}", nodes=()) for index in range(batches)])

schedule, steps, maintenance = (ModuleType(f"spanvault.engine.{name}") for name in ("schedule", "steps", "maintenance"))
commit, chain = (ModuleType(f"spanvault.collection.{name}") for name in ("commit", "chain"))
sys.modules.update({double.__name__: double for double in (schedule, steps, maintenance, commit, chain)})
chain.load_manifest_bytes = lambda storage, subdir, number: (None, b"another" if number in commit.moved else b"parent")
def committed_run(storage, subdir, number):
    return SimpleNamespace(run_key=commit.taken[number]) if number in commit.taken else None
commit.committed_run = committed_run
def plan_scheduled(context, cluster, request, *, run_key, due, interval_end, missed, full_every):
    calls.append(["plan_scheduled", request.append, request.options.revision_history, run_key, str(due), str(interval_end),
        [str(end) for end in missed(datetime(2026, 11, 22, 7, 22, tzinfo=UTC), datetime(2026, 11, 22, 9, 22, tzinfo=UTC))],
        str(full_every)])
    answer = schedule.answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer
schedule.plan_scheduled = plan_scheduled

def write_manifest(context, into, plan, seal):
    calls.append(["write_manifest", plan.number, seal])
    answer = steps.answers.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return SimpleNamespace(subdir=plan.subdir, number=answer, totals=SimpleNamespace(rows=1), end="now")
steps.write_manifest = write_manifest
steps.plan_backup = None
steps.export_batch = lambda context, cluster, into, plan, index: calls.append(["export_batch", plan.number, index])
def seal_backup(context, cluster, into, plan):
    calls.append(["seal_backup", plan.number])
    if steps.sealing:
        raise steps.sealing.pop(0)
    return f"seal of {plan.number}"
steps.seal_backup = seal_backup
one_node = SimpleNamespace(primary=SimpleNamespace(locality=""), queue_of=lambda locality: None)
SpanvaultOperator.cluster_named = staticmethod(lambda name: one_node)
SpanvaultOperator.stored_plan = staticmethod(lambda engine, handle: plan(handle["number"]))

class TI:
    def __init__(self):
        self.pushed = {}
    def xcom_push(self, key, value):
        self.pushed[key] = value

with DAG("chain", schedule=CronDataIntervalTimetable("22 * * * *", timezone="UTC")) as dag:
    pass

def context(run_type="scheduled"):
    end = datetime(2026, 11, 22, 9, 22, tzinfo=UTC)
    run = SimpleNamespace(dag_id="dag", run_id="run", run_type=run_type, data_interval_end=end, run_after=end)
    return {"dag_run": run, "dag": dag, "ti": TI()}

def outcome(operator, planned=(), committed=(), run_type="scheduled", taken=None, moved=(), sealing=()):
    calls.clear()
    schedule.answers, steps.answers, steps.sealing = list(planned), list(committed), list(sealing)
    commit.taken, commit.moved = taken or {}, moved
    given = context(run_type)
    try:
        result = operator.execute(given)
    except Exception as error:
        result = [type(error).__name__, str(error)]
    return {"result": result, "calls": list(calls), "pushed": given["ti"].pushed}

planner = PlanBackupOperator(task_id="plan", cluster="source", into="file:///c", append="LATEST", full_every="7d",
    options={"revision_history": True, "incremental_location": "None", "protection": "7d"})
leaky = PlanBackupOperator(task_id="leaky", cluster="source", into="file:///c", append="LATEST",
    options={"incremental_location": "s3://b/x?AWS_ACCESS_KEY_ID=a&AWS_SECRET_ACCESS_KEY=hidden"})
handle = {"into": "file:///c", "subdir": "2026/11/22-090000.00", "number": 3, "run_key": "dag/run", "kind": "incremental"}
committer = module.WriteManifestOperator(task_id="commit", cluster="source", plan=handle, seal="seal of 3", full_every="7d")
sealer = SealOperator(task_id="seal", cluster="source", plan=handle)
lost = Refused("Layer 3 is another's.")
covered = AlreadyCovered("Covered by layer 4.")

checked = []
maintenance.validate_backup = lambda engine, uri, subdir, *, level, number=None: checked.append([subdir, level, number]) or subdir
ValidateBackupOperator(task_id="whole", collection="file:///c", subdir="LATEST", level="checksums").execute({})
ValidateBackupOperator(task_id="new", collection="file:///c", subdir="ignored",
    layer={"subdir": "a", "first": 3, "number": 5}).execute({})

def decided(*decisions):
    rows = [{"path": path, "decision": decision, "reason": f"{path} is {decision}."} for path, decision in decisions]
    maintenance.expire_backups = lambda engine, uri, *, keep_last, window, dry_run: SimpleNamespace(dicts=lambda: rows)
    return outcome(ExpireBackupsOperator(task_id="expire", collection="file:///c", keep_last=1, delete=True))["result"]

present = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
def moment(text):
    try:
        return str(moment_of(text, present))
    except SpanvaultError as error:
        return f"{type(error).__name__} {error}"

restorer = PlanRestoreOperator(task_id="restore", cluster="c", collection="file:///c", as_of="-10m", options={"strict": "True"})
print(json.dumps({
    "planned": outcome(planner, [plan(3, batches=2)]),
    "nothing_to_export": outcome(planner, [plan(3)])["result"],
    "by_hand": outcome(planner, [plan(3)], run_type="manual")["calls"],
    "covered": outcome(planner, [covered]),
    "busy": outcome(planner, [Busy("Another run plans.")])["result"],
    "leaky": outcome(leaky, [plan(3)])["result"],
    "won": outcome(committer, [], [5]),
    "overtaken": outcome(committer, [plan(4, batches=1)], [lost, 4], taken={3: "other"}),
    "overtaken_later": outcome(committer, [plan(5)], [lost, 5], taken={3: "dag/run", 4: "other"})["pushed"],
    "overtaken_and_covered": outcome(committer, [covered], [lost], taken={3: "other"})["result"],
    "overtaken_always": outcome(committer, [plan(3)] * 3, [lost] * 3, taken={3: "other"})["result"],
    "refused": outcome(committer, [], [Refused("Not yours.")], taken={3: "dag/run"})["result"],
    "seal_overtaken": outcome(sealer, taken={3: "other"}, sealing=[BrokenChain("The slot is ahead.")])["result"],
    "seal_moved": outcome(sealer, moved=(2,), sealing=[AlreadyCovered("Layer 2 is another.")])["result"],
    "seal_busy": outcome(sealer, taken={4: "dag/run"}, sealing=[Busy("Locked.")])["result"],
    "seal_broken": outcome(sealer, sealing=[BrokenChain("The slot is ahead.")])["result"],
    "seal": outcome(sealer)["result"],
    "expired": decided(("a", "expire"), ("b", "locked"), ("c", "keep")),
    "not_expired": decided(("a", "expire"), ("b", "failed"), ("c", "failed")),
    "checked": checked,
    "moments": {text: moment(text) for text in (
        "", "None", "-10m", "2026-11-22 09:00:00+01:00", "2026-11-22 09:00", "16/B374D848", "yesterday", "2026-11-22 10:00:01+00",
        "-soon", "x/y")},
    "restore": [str(restorer.request(present).as_of), restorer.request(present).options.strict],
}))
"""


@pytest.fixture(scope="module")
def answer(site: AirflowSite) -> dict[str, Any]:
    """What the operators do in a process that has Airflow."""
    found: dict[str, Any] = json.loads(site.python("-c", textwrap.dedent(SCRIPT)).splitlines()[-1])
    return found


SUBDIR = "2026/11/22-090000.00"
ASKED = [
    "plan_scheduled",
    "LATEST",
    True,
    "dag/run",
    "2026-11-22 09:22:00+00:00",
    "2026-11-22 09:22:00+00:00",
    ["2026-11-22 08:22:00+00:00", "2026-11-22 09:22:00+00:00"],
    "7 days, 0:00:00",
]


def test_run_of_a_chain_hands_its_interval_and_schedule_to_the_engine(answer: dict[str, Any]) -> None:
    assert answer["planned"]["calls"] == [ASKED]
    assert answer["planned"]["result"] == [{"index": 0, "label": "batch 0"}, {"index": 1, "label": "batch 1"}]
    handle = {"into": "file:///c", "subdir": SUBDIR, "number": 3, "run_key": "dag/run", "kind": "incremental"}
    assert answer["planned"]["pushed"] == {"plan": handle}


def test_run_by_hand_ends_now_whatever_interval_airflow_writes_on_it(answer: dict[str, Any]) -> None:
    [call] = answer["by_hand"]
    assert call[5] == "None"


def test_plan_without_batches_still_maps_one(answer: dict[str, Any]) -> None:
    assert answer["nothing_to_export"] == [{"index": -1, "label": "nothing to do"}]


def test_covered_interval_skips_with_the_sentence(answer: dict[str, Any]) -> None:
    assert answer["covered"]["result"] == ["AirflowSkipException", "Covered by layer 4."]
    assert answer["covered"]["pushed"] == {}
    assert answer["busy"] == ["AirflowException", "Another run plans."], "a passing trouble is retried, not skipped"


def test_secret_in_an_incremental_location_is_refused(answer: dict[str, Any]) -> None:
    kind, sentence = answer["leaky"]
    assert kind == "AirflowFailException"
    assert "hidden" not in sentence


def test_commit_names_all_new_layers(answer: dict[str, Any]) -> None:
    """A run that covers missed intervals commits several: here 3 to 5."""
    assert answer["won"]["calls"] == [["write_manifest", 3, "seal of 3"]]
    assert answer["won"]["pushed"]["layer"] == {"subdir": SUBDIR, "first": 3, "number": 5}


def test_overtaken_run_plans_anew_and_commits_on_top(answer: dict[str, Any]) -> None:
    assert answer["overtaken"]["calls"] == [
        ["write_manifest", 3, "seal of 3"],
        ASKED,
        ["export_batch", 4, 0],
        ["seal_backup", 4],
        ["write_manifest", 4, "seal of 4"],
    ]
    assert answer["overtaken"]["pushed"]["layer"] == {"subdir": SUBDIR, "first": 4, "number": 4}
    assert answer["overtaken"]["result"] == SUBDIR


def test_overtaken_run_whose_interval_is_covered_is_skipped(answer: dict[str, Any]) -> None:
    assert answer["overtaken_and_covered"] == ["AirflowSkipException", "Covered by layer 4."]


def test_run_that_is_overtaken_each_time_is_tried_again(answer: dict[str, Any]) -> None:
    kind, sentence = answer["overtaken_always"]
    assert kind == "AirflowException"
    assert "faster" in sentence


def test_overtaken_is_what_storage_says(answer: dict[str, Any]) -> None:
    """Any of the run's layers may be the lost one; and a refusal for another reason stays one."""
    assert answer["overtaken_later"]["layer"]["first"] == 5
    assert answer["refused"] == ["AirflowFailException", "Not yours."]


def test_seal_of_an_overtaken_run_leaves_it_to_the_commit(answer: dict[str, Any]) -> None:
    """The winner may have moved the slot on already, which looks like a broken chain."""
    assert answer["seal_overtaken"] == ""
    assert answer["seal_moved"] == "", "nothing says that the interval is covered, so the run must not be skipped"
    assert answer["seal_busy"] == ["AirflowException", "Locked."]
    assert answer["seal_broken"] == ["AirflowFailException", "The slot is ahead."]
    assert answer["seal"] == "seal of 3"


def test_validation_looks_at_the_new_layers_only(answer: dict[str, Any]) -> None:
    new = [["a", "check_files", number] for number in (3, 4, 5)]
    assert answer["checked"] == [["LATEST", "checksums", None], *new]


def test_times_of_the_restore_form(answer: dict[str, Any]) -> None:
    moments = answer["moments"]
    assert (moments[""], moments["None"]) == ("None", "None")
    assert moments["-10m"] == "2026-11-22 09:50:00+00:00"
    assert moments["2026-11-22 09:00:00+01:00"] == "2026-11-22 08:00:00+00:00"
    assert moments["2026-11-22 09:00"] == "2026-11-22 09:00:00+00:00"
    assert moments["16/B374D848"] == "16/B374D848"
    for wrong in ("yesterday", "-soon", "x/y"):
        assert moments[wrong].startswith("BadInput")
        assert wrong in moments[wrong]
    assert "future" in moments["2026-11-22 10:00:01+00"]
    assert answer["restore"] == ["2026-11-22 09:50:00+00:00", True]


def test_expiry_fails_when_something_could_not_be_deleted(answer: dict[str, Any]) -> None:
    assert answer["expired"] == ["a"]
    assert answer["not_expired"] == ["AirflowFailException", "b is failed. c is failed."]
