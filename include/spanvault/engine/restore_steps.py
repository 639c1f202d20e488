"""The steps of a restore as plain calls. Each can run alone in any process, again after any failure, and beside itself.

`plan_restore` fixes which backup LATEST means: give its plan's `request` to the other steps.
"""

from __future__ import annotations

from spanvault.collection.chain import resolve
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.model.request import RestoreRequest
from spanvault.restore.abandon import abandon_restore as abandon
from spanvault.restore.finish import finish_restore as finish
from spanvault.restore.load import LoadSummary
from spanvault.restore.load import load_batch as load
from spanvault.restore.plan import RestorePlan
from spanvault.restore.schema import restore_schema as make_schema
from spanvault.restore.work import Work, planned_work
from spanvault.statement.rules import check


def plan_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> RestorePlan:
    """What the restore will do. Reads the collection; writes nothing anywhere.

    Raises BadInput or NotFound with the reason why the backup cannot serve the request.
    """
    return _work(context, cluster, request).plan


@translated("Restoring the schema")
def restore_schema(context: Context, cluster: Cluster, request: RestoreRequest) -> None:
    """Make databases, roles and all objects that rows need. Raises AlreadyExists for what is in the way."""
    make_schema(_work(context, cluster, request))
    context.reached("restore.after_schema")


@translated("Loading a batch")
def load_batch(context: Context, cluster: Cluster, request: RestoreRequest, index: int) -> LoadSummary:
    """Load what is missing of a batch."""
    return load(_work(context, cluster, request), index)


@translated("Finishing the restore")
def finish_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> None:
    """Indexes, constraints, sequences, materialized views, statistics, proof; then the restore is done."""
    finish(_work(context, cluster, request))
    context.reached("restore.after_finish")


@translated("Taking back the restore")
def abandon_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> None:
    """Take back what an unfinished restore made (on_failure = 'clean')."""
    abandon(_work(context, cluster, request))


def _work(context: Context, cluster: Cluster, request: RestoreRequest) -> Work:
    check(request)
    storage = context.storage(request.collection)
    manifest = resolve(storage, request.subdir, request.as_of)[-1]
    return planned_work(storage, manifest, cluster, request, progress=context.progress, scratch=context.settings.scratch_dir)
