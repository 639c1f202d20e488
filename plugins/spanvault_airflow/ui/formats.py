"""How the pages write times, sizes, counts and links to runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from urllib.parse import quote

_DAG_ID = re.compile(r"[\w.-]{1,250}", re.ASCII)
_STEPS = ((timedelta(days=2), "d", 86400), (timedelta(hours=2), "h", 3600), (timedelta(minutes=2), "min", 60))
_MINUS = "\N{MINUS SIGN}"
_CHART = (720, 96, 4)  # width, height and margin of a chart, in its own units


def moment(time: datetime) -> str:
    """`2026-11-22 14:30:00`, in UTC as everything here, with the fraction of the second where there is one."""
    return f"{time:%Y-%m-%d %H:%M:%S}" + (f".{time:%f}" if time.microsecond else "")


def age(time: datetime, now: datetime) -> str:
    """How long ago, roughly: `3 h ago`."""
    passed = now - time
    if passed < timedelta(seconds=-5):
        return "in the future"
    for least, unit, seconds in _STEPS:
        if passed >= least:
            return f"{passed // timedelta(seconds=seconds)} {unit} ago"
    return f"{max(passed // timedelta(seconds=1), 0)} s ago"


def lasted(start: datetime, end: datetime) -> str:
    """How long something took: `2 min 05 s`."""
    seconds = max((end - start) // timedelta(seconds=1), 0)
    hours, rest = divmod(seconds, 3600)
    if hours:
        return f"{hours} h {rest // 60:02d} min"
    return f"{rest // 60} min {rest % 60:02d} s" if rest >= 60 else f"{rest} s"


def size(amount: int) -> str:
    """`1.4 GB`: powers of 1000, as disks and bills count."""
    value = float(amount)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} PB"


def count(number: int) -> str:
    """`1,234,567`."""
    return f"{number:,}"


def change(now: int, before: int | None) -> str:
    """`+120`, `-3` with a true minus sign, `=`, or nothing if there is no layer before."""
    if before is None:
        return ""
    return "=" if now == before else f"{'+' if now > before else _MINUS}{abs(now - before):,}"


def plural(number: int, one: str, many: str = "") -> str:
    """`1 chain`, `3 chains`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def run_of(run_key: str) -> tuple[str, str] | None:
    """The DAG and the run id of a run that Airflow made, None for one of the command line."""
    dag_id, slash, run_id = run_key.partition("/")
    return (dag_id, run_id) if slash and run_id and _DAG_ID.fullmatch(dag_id) else None


def run_path(run_key: str) -> str | None:
    """The path of the run's page in Airflow's UI, below Airflow's own address."""
    run = run_of(run_key)
    return f"/dags/{quote(run[0], safe='')}/runs/{quote(run[1], safe='')}" if run else None


def line(values: Sequence[int]) -> str:
    """The points of a chart's line through `values`, from left to right, the axis beginning at 0."""
    width, height, margin = _CHART
    most, steps = max((*values, 1)), max(len(values) - 1, 1)
    points = (
        (margin + (width - 2 * margin) * index / steps, height - margin - (height - 2 * margin) * value / most)
        for index, value in enumerate(values)
    )
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
