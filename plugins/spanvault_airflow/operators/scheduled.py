"""Planning a layer for a schedule: which intervals the run has to cover follows from the DAG's own timetable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from spanvault_airflow.intervals import interval_ends
from spanvault_airflow.operators.base import due, interval_end, run_key

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context as EngineContext
    from spanvault.model.manifest import Plan
    from spanvault.model.request import BackupRequest


def plan_for_schedule(context: Context, engine: EngineContext, cluster: Cluster, request: BackupRequest, full_every: str) -> Plan:
    """The plan of this DAG run: its own of an earlier try, a full where the collection asks for one, else an incremental
    up to the end of the run's interval, with a layer for each earlier interval that nobody covered.

    `full_every` is a duration, or `none`. Raises AlreadyCovered, with the sentence that says by what, when there is
    nothing left to do; BadInput for a bad duration; what `spanvault.engine.schedule.plan_scheduled` raises.
    """
    from spanvault.engine.schedule import plan_scheduled

    end = interval_end(context)

    def missed(after: datetime, upto: datetime) -> Sequence[datetime]:
        return interval_ends(context["dag"].timetable, after, upto, known=end or upto)

    return plan_scheduled(
        engine,
        cluster,
        request,
        run_key=run_key(context),
        due=due(context),
        interval_end=end,
        missed=missed,
        full_every=full_interval(full_every),
    )


def overtaken(engine: EngineContext, into: str, plan: Plan) -> bool:
    """Whether this plan of an incremental cannot be carried out any more, because another run committed one of its layers
    or the layer before them is not the one it was planned on. What is on storage says so, whatever error it led to."""
    from spanvault.collection.chain import load_manifest_bytes
    from spanvault.collection.commit import committed_run

    if plan.kind != "incremental":
        return False
    storage = engine.storage(into)
    for number in range(plan.number, plan.last_number + 1):
        layer = committed_run(storage, plan.subdir, number)
        if layer is not None and layer.run_key != plan.run_key:
            return True
        if layer is None:
            break
    _, parent = load_manifest_bytes(storage, plan.subdir, plan.number - 1)
    return hashlib.sha256(parent).hexdigest() != plan.parent_sha256


def full_interval(text: str) -> timedelta | None:
    """After how long a new full is due; None for `none` or nothing. Raises BadInput."""
    from spanvault.model.units import parse_duration

    return None if text in {"", "none", "None"} else parse_duration(text)
