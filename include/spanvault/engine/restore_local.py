"""Running a restore here and now, with worker processes instead of Airflow's tasks."""

from __future__ import annotations

from spanvault.config.clusters import Cluster
from spanvault.engine.context import Context
from spanvault.engine.here import require_here
from spanvault.engine.restore_steps import (
    abandon_restore,
    batch_loader,
    finish_restore,
    plan_begun,
    plan_restore,
    restore_schema,
)
from spanvault.engine.worker_pool import in_processes
from spanvault.engine.worker_template import begin_template
from spanvault.errors import SpanvaultError
from spanvault.model.request import RestoreRequest
from spanvault.model.result import Result
from spanvault.restore.load import LoadSummary
from spanvault.restore.plan import RestorePlan

RESTORE_COLUMNS = ("path", "status", "databases", "tables", "rows", "bytes")


def run_restore(
    context: Context, cluster: Cluster, request: RestoreRequest, *, dry_run: bool = False, processes: bool = True
) -> Result:
    """Restore from plan to end; one row that says what came back. An unfinished run of the same request is continued.

    With `dry_run` nothing is written: the row says what would come back. With `processes` batches are loaded by `workers`
    processes, else one after another in this one. A failure keeps what was restored, or with `on_failure = 'clean'`
    removes it.
    """
    require_here(context, request.options.execution_locality)
    context = context.unlocking(request.encryption)
    if processes and not dry_run:
        begin_template()
    plan = plan_restore(context, cluster, request)
    if dry_run:
        context.progress.note(f"Would be restored as of {plan.cut}, from {_layers(plan)} of {plan.subdir}.")
        return _result(plan, "planned", plan.rows)
    try:
        restore_schema(context, cluster, plan.request)
        plan = plan_begun(context, cluster, plan)
        _load(context, cluster, plan, processes=processes)
        rows = finish_restore(context, cluster, plan.request)
    except SpanvaultError:
        if request.options.on_failure == "clean":
            abandon_restore(context, cluster, plan.request)
            context.progress.note("The restore failed; what it made is removed.")
        raise
    return _result(plan, "succeeded", plan.rows if rows is None else rows)


def _layers(plan: RestorePlan) -> str:
    names = [first if first == number else f"{first}-{number}" for first, number in (one.split("-") for one in plan.layers)]
    return f"layer {names[0]}" if len(names) == 1 else f"layers {', '.join(names)}"


def _load(context: Context, cluster: Cluster, plan: RestorePlan, *, processes: bool) -> None:
    units = sum(len(batch.units) for batch in plan.batches)
    context.progress.step("load" if plan.loads else "verify", sum(batch.bytes for batch in plan.batches), units)
    if processes and len(plan.batches) > 1 and plan.request.options.workers > 1:
        _load_in_processes(context, cluster, plan)
    elif plan.batches:
        load_batch = batch_loader(context, cluster, plan.request)
        for batch in plan.batches:
            load_batch(batch.index)
    context.reached("restore.after_load")


def _load_in_processes(context: Context, cluster: Cluster, plan: RestorePlan) -> None:
    def done(index: int, summary: LoadSummary) -> None:
        batch = plan.batches[index]
        context.progress.advance(rows=summary.rows, bytes_=batch.bytes, units=len(batch.units))

    in_processes(context, plan.request.options.workers, batch_loader, (cluster, plan.request), len(plan.batches), done)


def _result(plan: RestorePlan, status: str, rows: int) -> Result:
    databases = ", ".join(database.target for database in plan.databases)
    tables = sum(len(database.tables) for database in plan.databases)
    rows, bytes_ = (rows, sum(batch.bytes for batch in plan.batches)) if plan.loads else (0, 0)
    return Result(columns=RESTORE_COLUMNS, rows=((plan.subdir, status, databases, tables, rows, bytes_),))
