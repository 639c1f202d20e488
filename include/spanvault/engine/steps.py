"""The steps of a backup as plain calls. Each can run alone in any process, again after any failure, and beside itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from spanvault.backup.compact import Compaction
from spanvault.backup.export import BatchSummary
from spanvault.backup.export import export_batch as export
from spanvault.backup.finish import commit_seal
from spanvault.backup.prepare import make_plan, own_plan, redacted, unfinished_plan
from spanvault.backup.prepare_layer import chain_to_close, covered_by, make_layer_plan, moved_places
from spanvault.backup.protection import move_on, renew
from spanvault.backup.seal import seal
from spanvault.collection.chain import head, load_manifest, original_layers
from spanvault.collection.commit import committed_run
from spanvault.collection.identity import claim_places, read_collection
from spanvault.collection.lookup import latest
from spanvault.collection.readme import restore_command
from spanvault.collection.seals import read_seal
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.engine.protections import release_expired
from spanvault.errors import AlreadyCovered, BrokenChain, KeyMismatch, Refused
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.places import Places
from spanvault.model.request import BackupRequest
from spanvault.statement.rules import check
from spanvault.storage.base import Storage


@translated("Planning the backup")
def plan_backup(
    context: Context,
    cluster: Cluster,
    request: BackupRequest,
    *,
    run_key: str,
    due: datetime | None = None,
    adopt: bool = False,
) -> Plan:
    """The run's plan: the one that an earlier try left since the run was `due`, with `adopt` an unfinished one of the
    same request, or a new one, planned now.

    Protections on the cluster that have expired are released on the way. Raises BadInput for a request whose parts
    contradict each other.
    """
    check(request)
    storage = context.storage(request.into)
    context.progress.step("plan")
    found = own_plan(storage, run_key, due) if due is not None else None
    if found is None and adopt:
        found = unfinished_plan(storage, cluster, redacted(request), context.progress.note)
        if found is not None:
            context.progress.note(f"Continuing the unfinished backup {found.subdir}.")
    if found is not None:
        return found
    release_expired(context, cluster)
    times = (request.as_of,) if request.as_of is not None else ()
    return new_plan(context, cluster, request, run_key=run_key, times=times)


def new_plan(
    context: Context,
    cluster: Cluster,
    request: BackupRequest,
    *,
    run_key: str,
    times: Sequence[datetime] = (),
    synthetic: bool = False,
) -> Plan:
    """A plan made now: of a full, or of the layers that bring a chain up to each of `times`, or to now (`synthetic`: and of
    a full made of them).

    A chain that cannot go on is followed by a full, if the request allows and does not ask for a past time: present data
    never gets a past date.
    """
    storage, wait = context.storage(request.into), context.settings.wait_for_writers
    plan: Plan
    try:
        if request.append is None:
            plan = _new_full(context, cluster, request, run_key)
        else:
            require_extendable(request)
            if places := context.places(request.into):
                claim_places(places, read_collection(storage))
            plan = make_layer_plan(
                storage,
                cluster,
                request,
                run_key=run_key,
                clock=context.clock,
                wait_seconds=wait,
                times=times,
                synthetic=synthetic,
            )
            if places:
                for sentence in moved_places(load_manifest(storage, plan.subdir, plan.number - 1), request):
                    context.progress.note(sentence)
    except BrokenChain as error:
        if request.append is None or times or request.options.on_broken_chain == "fail":
            raise
        tell_full(context, error)
        plan = _new_full(context, cluster, as_full(request), run_key)
    context.reached("plan.after_plan")
    return plan


def require_extendable(request: BackupRequest) -> None:
    """Raise Refused if the layers of a chain could not be built upon in the places that the request names."""
    for place in (request.into, request.options.incremental_location):
        if place is not None:
            Places.parse(place).check_extendable()


def tell_full(context: Context, error: BrokenChain) -> None:
    """Say that a chain that cannot go on is followed by a full, and what that means."""
    context.progress.note(
        f"{error} A full backup is taken instead. It reads all tables and begins a new chain; if that is not meant, stop it now,"
        " or give on_broken_chain = 'fail', which refuses it."
    )


def as_full(request: BackupRequest) -> BackupRequest:
    """The request for a full of the same."""
    options = request.options.model_copy(update={"incremental_location": None})
    return request.model_copy(update={"append": None, "as_of": None, "options": options})


def _new_full(context: Context, cluster: Cluster, request: BackupRequest, run_key: str) -> Plan:
    context.keyring(request.into).prepare()
    storage = context.storage(request.into)
    return make_plan(
        storage,
        cluster,
        request,
        run_key=run_key,
        clock=context.clock,
        wait_seconds=context.settings.wait_for_writers,
        closes=_to_close(context, cluster, request),
        places=context.places(request.into),
        note=context.progress.note,
    )


def _to_close(context: Context, cluster: Cluster, request: BackupRequest) -> str | None:
    """The chain that the full follows, if the keys that are given open it; if not, that is said unmistakably: an option that
    was forgotten, or a slip in it, is found nowhere else."""
    try:
        subdir = chain_to_close(context.storage(request.into), cluster, request)
        if subdir is not None:
            context.keyring(request.into).require(subdir)
        return subdir
    except KeyMismatch as error:
        before = latest(context.storage(request.into))
        if not context.encryption.given:
            changed = f"This backup is NOT encrypted, and the one before, {before}, is: give its keys, unless that is meant."
        elif not context.keyring(request.into).is_encrypted(before):
            changed = f"This backup is encrypted, and the one before, {before}, does not appear to be."
        else:
            changed = f"This backup has other keys than the one before; make sure that they are right. {error}"
        context.progress.note(f"{changed} The backup before is not brought up to the beginning of this one.")
        return None


@translated("Exporting a batch")
def export_batch(context: Context, cluster: Cluster, into: str, plan: Plan, index: int) -> BatchSummary:
    """Export what is missing of a batch; nothing once the backup is committed."""
    run = context.run(cluster, into, plan)
    if committed_run(run.storage, plan.subdir, plan.number) is not None:
        return BatchSummary(index=index, spans=0, skipped=len(plan.batches[index].spans), rows=0, bytes=0)
    renew(cluster, plan, context.clock)
    return export(run, index)


def batch_exporter(context: Context, cluster: Cluster, into: str, plan: Plan) -> Callable[[int], BatchSummary]:
    """`export_batch` for a process that works on several."""
    return partial(export_batch, context, cluster, into, plan)


@translated("Sealing the backup")
def seal_backup(context: Context, cluster: Cluster, into: str, plan: Plan, location: str | None = None) -> str:
    """Fix the cut and heal; the key of the seal record, or an empty text once the backup is committed."""
    run = context.run(cluster, into, plan, location)
    if is_committed(run.storage, plan):
        return ""
    renew(cluster, plan, context.clock)
    return seal(run)


def is_committed(storage: Storage, plan: Plan) -> bool:
    """Whether the run has committed all that it planned."""
    committed = committed_run(storage, plan.subdir, plan.last_number)
    return committed is not None and committed.run_key == plan.run_key


def write_manifest(context: Context, into: str, plan: Plan, seal_key: str) -> Manifest:
    """Commit the backup; the manifest that counts."""
    storage = context.storage(into)
    manifest = committed_run(storage, plan.subdir, plan.last_number)
    if manifest is None or manifest.run_key != plan.run_key:
        context.progress.step("commit")
        try:
            manifest = commit_seal(storage, plan, read_seal(storage, seal_key), context.clock, context.reached)
        except Refused:
            _raise_if_covered(storage, plan)
            raise
        context.reached("commit.after_manifest")
        _tell(context, manifest)
    if plan.synthetic:
        make_synthetic_full(context, into, manifest)
    return manifest


def _raise_if_covered(storage: Storage, plan: Plan) -> None:
    """A run for a time that lost a race has nothing to do if the winner went as far."""
    newest, _ = head(storage, plan.subdir)
    if plan.ends and newest.end.time >= plan.ends[-1].due:
        raise AlreadyCovered(covered_by(storage, newest, plan.ends[-1].due)) from None


def _tell(context: Context, manifest: Manifest) -> None:
    for entry in manifest.databases:
        if entry.omitted:
            context.progress.note(f"Not backed up from {entry.database.name}: {', '.join(entry.omitted)}.")
    keys = context.encryption if context.encryption.given else None
    context.progress.note(f"To restore it: {restore_command(manifest, manifest.request.into, manifest.subdir, keys)}")


def make_synthetic_full(context: Context, into: str, manifest: Manifest) -> None:
    """Compact the chain up to this layer to a full as of its end."""
    storage = context.storage(into)
    layers = original_layers(storage, manifest.subdir, open_location=context.locations(into))[: manifest.number + 1]
    scratch, progress = context.settings.scratch_dir, context.progress
    Compaction(storage, layers, None, scratch=scratch, progress=progress, clock=context.clock).run()
    context.progress.note(f"A full as of {format_time(manifest.end.time)} was made of the layers 0 to {manifest.number}.")


@translated("Moving the protection on")
def advance_protection(context: Context, cluster: Cluster, manifest: Manifest) -> None:
    """Let the source forget what is now on storage, or the whole protection if it was asked for this backup only."""
    move_on(cluster, manifest, context.clock)
    context.reached("protection.after_advance")
