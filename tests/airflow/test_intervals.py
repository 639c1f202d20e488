"""The ends of missed intervals, against times written by hand; and what a run of each type stands for."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from tests.kit.airflow import AirflowSite

SCRIPT = """
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from airflow.sdk import CronDataIntervalTimetable, CronTriggerTimetable, DAG, DeltaDataIntervalTimetable
from airflow.sdk.api.datamodels._generated import DagRunType
from spanvault_airflow.intervals import MOST_ENDS, interval_ends
from spanvault_airflow.operators.base import interval_end
from spanvault_airflow.operators.compact import CompactBackupsOperator
from spanvault_airflow.operators.scheduled import full_interval

def ends(timetable, after, upto, known=None):
    found = interval_ends(timetable, *(datetime.fromisoformat(time) for time in (after, upto)),
        known=datetime.fromisoformat(known or upto))
    assert all(type(end) is datetime and end.tzinfo is UTC for end in found), found
    return [end.isoformat() for end in found]

def cron(expression, after, upto, zone="UTC", known=None):
    return ends(CronDataIntervalTimetable(expression, timezone=zone), after, upto, known)

def stands_for(run_type, end):
    run = SimpleNamespace(run_type=run_type, data_interval_end=datetime.fromisoformat(end) if end else None)
    moment = interval_end({"dag_run": run})
    return moment and moment.isoformat()

many = cron("* * * * *", "2026-11-01T00:00:00+00:00", "2026-11-22T10:00:00+00:00")
with DAG("nothing", schedule=None) as by_hand:
    pass
print(json.dumps({
    "hourly": cron("22 * * * *", "2026-11-22T09:22:00+00:00", "2026-11-22T12:22:00+00:00"),
    "inside": cron("22 * * * *", "2026-11-22T09:22:00.000001+00:00", "2026-11-22T11:59:59+00:00"),
    "quarter": cron("*/15 * * * *", "2026-11-22T23:30:00+00:00", "2026-11-23T00:15:00+00:00"),
    "daily": cron("7 0 * * *", "2026-10-24T00:07:00+00:00", "2026-10-26T00:07:00+00:00"),
    "leap": cron("0 0 29 2 *", "2024-02-28T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
    "uneven": cron("0 6,22 * * 1-5", "2026-11-20T06:00:00+00:00", "2026-11-23T06:00:00+00:00"),
    "summer_time": cron("30 2 * * *", "2026-10-23T12:00:00+00:00", "2026-10-26T12:00:00+00:00", "Europe/Berlin"),
    "other_zone_asked": cron("22 * * * *", "2026-11-22T10:22:00+01:00", "2026-11-22T11:22:00+01:00"),
    "nothing": cron("22 * * * *", "2026-11-22T09:22:00+00:00", "2026-11-22T09:22:00+00:00"),
    "backwards": cron("22 * * * *", "2026-11-22T12:22:00+00:00", "2026-11-22T09:22:00+00:00"),
    "since": cron("22 * * * *", "2026-11-22T09:22:00+00:00", "2026-11-22T11:59:00+00:00", known="2026-11-22T09:22:00+00:00"),
    "not_yet": cron("22 * * * *", "2026-11-22T09:22:00+00:00", "2026-11-22T10:21:59+00:00", known="2026-11-22T09:22:00+00:00"),
    "around": cron("22 * * * *", "2026-11-22T07:22:00+00:00", "2026-11-22T10:30:00+00:00", known="2026-11-22T09:22:00+00:00"),
    "seconds_since": ends(DeltaDataIntervalTimetable(timedelta(seconds=4)),
        "2026-11-22T09:00:13+00:00", "2026-11-22T09:00:24+00:00", "2026-11-22T09:00:13+00:00"),
    "seconds_not_yet": ends(DeltaDataIntervalTimetable(timedelta(seconds=4)),
        "2026-11-22T09:00:13+00:00", "2026-11-22T09:00:16.9+00:00", "2026-11-22T09:00:13+00:00"),
    "seconds": ends(DeltaDataIntervalTimetable(timedelta(seconds=4)),
        "2026-11-22T09:00:01+00:00", "2026-11-22T09:00:13+00:00"),
    "trigger": ends(CronTriggerTimetable("22 * * * *", timezone="UTC"),
        "2026-11-22T09:00:00+00:00", "2026-11-22T12:30:00+00:00"),
    "by_hand": ends(by_hand.timetable, "2026-11-22T09:00:00+00:00", "2026-11-22T12:30:00+00:00"),
    "many": [len(many) == MOST_ENDS, many[0]],
    "scheduled": stands_for(DagRunType.SCHEDULED, "2026-11-22T10:22:00+01:00"),
    "backfill": stands_for(DagRunType.BACKFILL, "2026-11-22T09:22:00+00:00"),
    "manual": stands_for(DagRunType.MANUAL, "2026-11-22T09:22:00+00:00"),
    "without": stands_for(DagRunType.MANUAL, None),
    "full_every": [str(full_interval(text)) for text in ("7d", "1h30m", "none", "")],
    "up_to": [CompactBackupsOperator(task_id="c", collection="x", up_to=text).number() for text in ("", "None", None, "3", 4)],
}))
"""

EXPECTED = {
    "hourly": ["2026-11-22T10:22:00+00:00", "2026-11-22T11:22:00+00:00", "2026-11-22T12:22:00+00:00"],
    "inside": ["2026-11-22T10:22:00+00:00", "2026-11-22T11:22:00+00:00"],
    "quarter": ["2026-11-22T23:45:00+00:00", "2026-11-23T00:00:00+00:00", "2026-11-23T00:15:00+00:00"],
    "daily": ["2026-10-25T00:07:00+00:00", "2026-10-26T00:07:00+00:00"],
    "leap": ["2024-02-29T00:00:00+00:00", "2028-02-29T00:00:00+00:00"],
    "uneven": ["2026-11-20T22:00:00+00:00", "2026-11-23T06:00:00+00:00"],
    "other_zone_asked": ["2026-11-22T10:22:00+00:00"],
    "nothing": [],
    "backwards": [],
    "seconds": ["2026-11-22T09:00:05+00:00", "2026-11-22T09:00:09+00:00", "2026-11-22T09:00:13+00:00"],
    "since": ["2026-11-22T10:22:00+00:00", "2026-11-22T11:22:00+00:00"],
    "not_yet": [],
    "around": ["2026-11-22T08:22:00+00:00", "2026-11-22T09:22:00+00:00", "2026-11-22T10:22:00+00:00"],
    "seconds_since": ["2026-11-22T09:00:17+00:00", "2026-11-22T09:00:21+00:00"],
    "seconds_not_yet": [],
    "trigger": [],
    "by_hand": [],
    "many": [True, "2026-11-01T00:01:00+00:00"],
    "scheduled": "2026-11-22T09:22:00+00:00",
    "backfill": "2026-11-22T09:22:00+00:00",
    "manual": None,
    "without": None,
    "full_every": ["7 days, 0:00:00", "1:30:00", "None", "None"],
    "up_to": [None, None, None, 3, 4],
}


@pytest.fixture(scope="module")
def answer(site: AirflowSite) -> dict[str, Any]:
    """What the functions say in a process that has Airflow."""
    found: dict[str, Any] = json.loads(site.python("-c", textwrap.dedent(SCRIPT)).splitlines()[-1])
    return found


@pytest.mark.parametrize("case", sorted(EXPECTED))
def test_ends_and_intervals(answer: dict[str, Any], case: str) -> None:
    assert answer[case] == EXPECTED[case]


def test_one_end_a_night_when_clocks_change(answer: dict[str, Any]) -> None:
    """Berlin goes from UTC+2 to UTC+1 on the 25th at 03:00, so that night has 02:30 twice; the schedule takes one of them."""
    before, changed, after = answer["summer_time"]
    assert (before, after) == ("2026-10-24T00:30:00+00:00", "2026-10-26T01:30:00+00:00")
    assert changed in {"2026-10-25T00:30:00+00:00", "2026-10-25T01:30:00+00:00"}
