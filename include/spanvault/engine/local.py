"""Running a backup here and now, with worker processes instead of Airflow's tasks."""

from __future__ import annotations

import uuid

from spanvault.backup.export import BatchSummary
from spanvault.config.clusters import Cluster
from spanvault.engine.context import Context
from spanvault.engine.here import require_here
from spanvault.engine.sound import check_written
from spanvault.engine.steps import advance_protection, batch_exporter, export_batch, plan_backup, seal_backup, write_manifest
from spanvault.engine.worker_pool import in_processes
from spanvault.engine.worker_template import begin_template
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.request import BackupRequest


def run_backup(context: Context, cluster: Cluster, request: BackupRequest, *, processes: bool = True) -> Manifest:
    """Take a backup from plan to commit, and see that its files are there. An unfinished run of the same request is continued.

    With `processes` batches are exported by `workers` processes, else one after another in this one.
    """
    require_here(context, request.options.execution_locality)
    context = context.unlocking(request.encryption, "new" if request.append is None else "open")
    if processes and request.append is None:
        begin_template()
    plan = plan_backup(context, cluster, request, run_key=str(uuid.uuid4()), adopt=True)
    total = sum(batch.estimated_bytes for batch in plan.batches)
    if plan.batches:
        context.progress.step("export", total_bytes=total, total_units=sum(len(batch.spans) for batch in plan.batches))
    if processes and len(plan.batches) > 1 and request.options.workers > 1:
        _export_in_processes(context, cluster, request, plan)
    else:
        for batch in plan.batches:
            export_batch(context, cluster, request.into, plan, batch.index)
    context.reached("export.all")
    seal_key = seal_backup(context, cluster, request.into, plan, request.options.incremental_location)
    manifest = write_manifest(context, request.into, plan, seal_key)
    # Once the source has forgotten its log, a file that got lost on its way can be had from nowhere.
    numbers = range(plan.number, manifest.number + 1)
    check_written(context, request.into, manifest.subdir, numbers, request.options.incremental_location)
    advance_protection(context, cluster, manifest)
    return manifest


def _export_in_processes(context: Context, cluster: Cluster, request: BackupRequest, plan: Plan) -> None:
    def done(index: int, summary: BatchSummary) -> None:
        batch = plan.batches[index]
        for sentence in summary.told:
            context.progress.note(sentence)
        context.progress.advance(rows=summary.rows, bytes_=batch.estimated_bytes, units=len(batch.spans))

    in_processes(context, request.options.workers, batch_exporter, (cluster, request.into, plan), len(plan.batches), done)
