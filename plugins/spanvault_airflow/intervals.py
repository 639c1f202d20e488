"""The ends of a schedule's intervals, as Airflow itself computes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk.bases.timetable import BaseTimetable

MOST_ENDS = 2000
"""Ends that are listed at most: more than one run writes layers for."""


def interval_ends(timetable: BaseTimetable | Any, after: datetime, upto: datetime, *, known: datetime) -> Sequence[datetime]:
    """The ends (UTC, ascending) of the timetable's intervals in (after, upto], at most the oldest MOST_ENDS.

    Airflow's timetable answers, so a run sees the same intervals as the scheduler and a backfill do. `known` is the end of
    one interval: intervals of a fixed length have no hours of their own and are counted from it. A timetable without
    intervals (a trigger, a schedule by hand) has no ends. All times carry a zone.
    """
    # Airflow's own way from a DAG's timetable to one that can be asked: see its operator latest_only.
    from airflow.serialization.encoders import coerce_to_core_timetable

    schedule = coerce_to_core_timetable(timetable)
    earlier = deque((end for end in _back(schedule, known, after) if end <= upto), MOST_ENDS)
    ends = list(reversed(earlier))
    for end in _onward(schedule, known, upto):
        if len(ends) == MOST_ENDS:
            break
        if end > after:
            ends.append(end)
    return ends


def _back(schedule: Any, known: datetime, after: datetime) -> Iterator[datetime]:
    """The ends from `known` back to the first one after `after`."""
    interval = _interval_before(schedule, known)
    while interval is not None and after < interval.end and interval.start < interval.end:
        yield _plain(interval.end)
        interval = _interval_before(schedule, interval.start)


def _onward(schedule: Any, known: datetime, upto: datetime) -> Iterator[datetime]:
    """The ends after `known`, up to `upto`."""
    from airflow.timetables.base import TimeRestriction

    anything = TimeRestriction(earliest=None, latest=None, catchup=True)
    interval = _interval_before(schedule, known)
    while interval is not None and interval.start < interval.end:
        following = schedule.next_dagrun_info(last_automated_data_interval=interval, restriction=anything)
        interval = following.data_interval if following is not None else None
        if interval is None or interval.end > upto:
            return
        yield _plain(interval.end)


def _interval_before(schedule: Any, moment: datetime) -> Any:
    """The last interval that has ended by `moment`, as Airflow's DataInterval."""
    from airflow._shared.timezones.timezone import coerce_datetime

    return schedule.infer_manual_data_interval(run_after=coerce_datetime(moment))


def _plain(moment: datetime) -> datetime:
    """A datetime of the standard library: Airflow's own class writes itself in another way."""
    return datetime.fromtimestamp(moment.timestamp(), UTC)
