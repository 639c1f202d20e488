"""The ends of a schedule's intervals, as Airflow itself computes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.bases.timetable import BaseTimetable

MOST_ENDS = 2000
"""Ends that are listed at most. A schedule that slept longer gets one layer for all that is before the newest ones."""


def interval_ends(timetable: BaseTimetable | Any, after: datetime, upto: datetime) -> Sequence[datetime]:
    """The ends (UTC, ascending) of the timetable's intervals in (after, upto], at most the newest MOST_ENDS.

    Airflow's timetable answers, so a run sees the same intervals as the scheduler and a backfill do. Intervals of a fixed
    length have no hours of their own: they are counted back from `upto`, the end of the run's own interval. A timetable
    without intervals (a trigger, a schedule by hand) has no ends. Both times carry a zone.
    """
    # The only place where a schedule becomes times: airflow.providers.standard.operators.latest_only does it this way.
    from airflow._shared.timezones.timezone import coerce_datetime
    from airflow.serialization.encoders import coerce_to_core_timetable

    schedule = coerce_to_core_timetable(timetable)
    ends: list[datetime] = []
    moment = upto
    while len(ends) < MOST_ENDS:
        interval = schedule.infer_manual_data_interval(run_after=coerce_datetime(moment))
        if interval is None or interval.start >= interval.end or interval.end <= after:
            break
        ends.append(_plain(interval.end))
        moment = interval.start
    return ends[::-1]


def _plain(moment: datetime) -> datetime:
    """A datetime of the standard library: Airflow's own class writes itself in another way."""
    return datetime.fromtimestamp(moment.timestamp(), UTC)
