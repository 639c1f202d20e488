"""The steps of a restore as plain calls. Each can run alone in any process, again after any failure, and beside itself.

`plan_restore` fixes which backup LATEST means and which cut a time: give its plan's `request` to the other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

from spanvault.backup.execution import require_primary_at
from spanvault.collection.chain import OpenLocation, Resolved, resolve
from spanvault.collection.lookup import LATEST, forgotten_layer
from spanvault.collection.parts import check_parts
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.engine.own_places import require_own_places
from spanvault.errors import BadInput
from spanvault.model.cut import Cut, Lsn, layer_of_id
from spanvault.model.request import RestoreRequest
from spanvault.restore.abandon import abandon_restore as abandon
from spanvault.restore.finish import finish_restore as finish
from spanvault.restore.load import LoadSummary
from spanvault.restore.load import load_batch as load
from spanvault.restore.plan import RestorePlan, restore_id
from spanvault.restore.resume import begun_cut, begun_layers, begun_restores
from spanvault.restore.schema import restore_schema as make_schema
from spanvault.restore.work import Work, planned_work
from spanvault.statement.rules import check
from spanvault.storage.base import Storage


@translated("Planning the restore")
def plan_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> RestorePlan:
    """What the restore will do; notes say what does not stand at its cut. Reads the collection, and in the target which
    restores are unfinished; writes nothing anywhere.

    An unfinished restore of the same request is gone on with: at its own cut, also when newer layers were committed.
    Raises BadInput, NotFound or Refused with the reason why the backup cannot serve the request.
    """
    require_primary_at(cluster, request.options.execution_locality)
    require_own_places(context, request.collection)
    work = _work(context, cluster, request)
    for layer in work.resolved.layers:
        check_parts(layer.data, layer.manifest)
    plan = work.plan
    for note in (*plan.notes, *_forgotten(work, request)):
        context.progress.note(note)
    return plan


def _forgotten(work: Work, request: RestoreRequest) -> Iterator[str]:
    """A sentence if the newest state is asked for, and there was a newer one."""
    if request.as_of is None and request.subdir.upper() == LATEST:
        lost = forgotten_layer(work.storage, work.plan.subdir, work.manifest.number)
        if lost is not None:
            yield (
                f"The index remembers layer {lost[1]} of {lost[0]}, which is newer than what is restored, and its manifest is"
                " missing: find out who removed it."
            )


@translated("Planning the restore")
def plan_begun(context: Context, cluster: Cluster, plan: RestorePlan) -> RestorePlan:
    """The plan of a restore whose schema is made: from the layers that the target remembers, should the chain have been
    compacted since it was planned."""
    return plan if plan.layers == ("0-0",) else _work(context, cluster, plan.request).plan


@translated("Restoring the schema")
def restore_schema(context: Context, cluster: Cluster, request: RestoreRequest) -> None:
    """Make databases, roles and all objects that rows need. Raises AlreadyExists for what is in the way."""
    make_schema(_work(context, cluster, request))
    context.reached("restore.after_schema")


def load_batch(context: Context, cluster: Cluster, request: RestoreRequest, index: int) -> LoadSummary:
    """Load what is missing of a batch."""
    return batch_loader(context, cluster, request)(index)


@translated("Planning the restore")
def batch_loader(context: Context, cluster: Cluster, request: RestoreRequest) -> Callable[[int], LoadSummary]:
    """`load_batch` for a process that works on several: what the restore is of is read from the collection once. Its schema
    is made by now, so that the target remembers from which layers."""
    work = _work(context, cluster, request)

    @translated("Loading a batch")
    def load_one(index: int) -> LoadSummary:
        return load(work, index)

    return load_one


@translated("Finishing the restore")
def finish_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> int | None:
    """Indexes, constraints, sequences, materialized views, statistics, proof; then the restore is done. How many rows came
    in, or None where an earlier call has done it."""
    rows = finish(_work(context, cluster, request))
    context.reached("restore.after_finish")
    return rows


@translated("Taking back the restore")
def abandon_restore(context: Context, cluster: Cluster, request: RestoreRequest) -> None:
    """Take back what an unfinished restore made (on_failure = 'clean')."""
    abandon(_work(context, cluster, request))


def _work(context: Context, cluster: Cluster, request: RestoreRequest) -> Work:
    """The restore; of a chain's later layers at the cut and from the layers that an unfinished one of the same request
    reads."""
    check(request)
    opened = _locations(context, request)
    resolved = _pinned(context, request, opened)
    if resolved.manifest.number == 0:
        return _planned(context, cluster, request, resolved)
    # What the newest end cannot give must not keep an unfinished restore of an older one from going on.
    allowing = {"strict": False, "skip_unrestorable_tables": True}
    work = _planned(context, cluster, _with_options(request, allowing), resolved)
    begun = begun_restores(work)
    newest = request.as_of is None and layer_of_id(request.subdir) is None
    cut = begun_cut(work, begun, opened) if newest else None
    newer: tuple[str, ...] = ()
    if cut is not None:
        older = request.model_copy(update={"subdir": work.plan.subdir, "as_of": cut.lsn})
        resolved = _pinned(context, older, opened)
        newer = (f"An unfinished restore as of {cut} is gone on with; what was backed up later is left out.",)
    layers = begun_layers(work.storage, resolved, restore_id(resolved, request), begun, opened)
    work = _planned(context, cluster, request, layers)
    return replace(work, plan=work.plan.model_copy(update={"notes": (*newer, *work.plan.notes)}))


def _with_options(request: RestoreRequest, options: dict[str, bool]) -> RestoreRequest:
    return request.model_copy(update={"options": request.options.model_copy(update=options)})


def _planned(context: Context, cluster: Cluster, request: RestoreRequest, resolved: Resolved) -> Work:
    storage = context.storage(request.collection)
    return planned_work(storage, resolved, cluster, request, progress=context.progress, scratch=context.settings.scratch_dir)


def _pinned(context: Context, request: RestoreRequest, opened: OpenLocation) -> Resolved:
    """The cut that the request means, from the layers that its position alone gives: as every later step finds them."""
    storage = context.storage(request.collection)
    asked = resolve(storage, request.subdir, request.as_of, open_location=opened)
    context.keyring(request.collection).require(asked.manifest.subdir)
    if isinstance(request.as_of, Lsn):
        return asked
    if request.as_of is not None and not asked.inner and request.as_of != asked.cut.time:
        return _beside_end(storage, asked, request.as_of, opened)
    found = resolve(storage, asked.manifest.subdir, asked.cut.lsn, open_location=opened)
    return replace(found, cut=asked.cut)


def _beside_end(storage: Storage, asked: Resolved, moment: datetime, opened: OpenLocation) -> Resolved:
    """A time between a layer's end and the nearest commit inside a layer: all that the log tells is as at that end, and
    what was read there is not: it may have changed in between, without a commit that the log shows."""
    position = Lsn(asked.cut.lsn + (1 if asked.cut.time < moment else -1))
    try:
        found = resolve(storage, asked.manifest.subdir, position, open_location=opened)
    except BadInput:  # nothing at all happened in between
        return asked
    return replace(found, cut=Cut(lsn=position, time=moment))


def _locations(context: Context, request: RestoreRequest) -> OpenLocation:
    """Opens incremental locations: the one that the request names in place of what a manifest remembers without secrets."""
    opened = context.locations(request.collection)
    return lambda uri: opened(request.options.incremental_location or uri)
