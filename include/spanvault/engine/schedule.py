"""What a scheduled run has to do: a full, the layers that its chain lacks, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from spanvault.backup.prepare import own_plan
from spanvault.backup.prepare_layer import covered_by, require_past_end, require_whole
from spanvault.collection.chain import head, load_manifest
from spanvault.collection.lookup import complete_subdirs
from spanvault.collection.manifests import any_names
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.engine.protections import release_expired
from spanvault.engine.steps import as_full, new_plan, require_extendable, tell_full
from spanvault.errors import AlreadyCovered, BrokenChain, NotFound, Refused
from spanvault.model.cut import format_time, time_of_subdir
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.request import BackupRequest
from spanvault.statement.rules import check
from spanvault.storage.base import Storage

MAX_LAYERS = 500  # that one run writes: three weeks of hours

Missed = Callable[[datetime, datetime], Sequence[datetime]]


@translated("Planning the backup")
def plan_scheduled(
    context: Context,
    cluster: Cluster,
    request: BackupRequest,
    *,
    run_key: str,
    due: datetime,
    interval_end: datetime | None,
    missed: Missed,
    full_every: timedelta | None,
) -> Plan:
    """The plan of a run whose interval ends at `interval_end` (None: a manual run, up to now).

    A layer is planned for each interval end since the chain's end, so that runs may come late, in any order and twice, and
    the layers are the same. A full is planned where there is no chain that goes on, or the newest is older than
    `full_every`; but only by the run of the newest interval: an earlier one would give present data a past date, and makes
    the full that was missed of the chain.

    Raises AlreadyCovered when a layer for the interval is there, Refused when its time cannot be had any more, or when the
    places are such that no later run could add to the chain.
    """
    check(request.model_copy(update={"append": request.append or "LATEST"}))
    # Also where this run takes a full: the next one is to build upon it.
    require_extendable(request)
    storage = context.storage(request.into)
    found = own_plan(storage, run_key, due)
    if found is not None:
        return found
    release_expired(context, cluster)
    now = context.clock()
    timely = interval_end is None or not missed(interval_end, now)
    chain = _chain(storage, request)
    full = as_full(request)
    if chain is None or (timely and _is_old(chain, interval_end or now, full_every)):
        if not timely and interval_end is not None:
            raise Refused(f"{_never_covered(interval_end)} There is no full backup that reaches back to it.")
        if chain is not None and interval_end is not None and interval_end <= chain.end.time:
            require_past_end(cluster, chain, request)
            raise AlreadyCovered(covered_by(storage, chain, interval_end))
        return new_plan(context, cluster, full, run_key=run_key)
    layer = request.model_copy(update={"append": chain.subdir, "as_of": interval_end})
    if interval_end is None:
        return new_plan(context, cluster, layer, run_key=run_key)
    _require_reachable(storage, chain, interval_end)
    times = [*missed(chain.end.time, interval_end)][:MAX_LAYERS]
    if times and times[-1] > interval_end:
        times = [moment for moment in times if moment <= interval_end]
    if len(times) < MAX_LAYERS and interval_end not in times and interval_end > chain.end.time:
        times.append(interval_end)
    synthetic = not timely and _lacks_full(storage, chain, interval_end, full_every)
    try:
        return new_plan(context, cluster, layer, run_key=run_key, times=times or [interval_end], synthetic=synthetic)
    except BrokenChain as error:
        if not timely or request.options.on_broken_chain == "fail":
            raise
        tell_full(context, error)
        return new_plan(context, cluster, full, run_key=run_key)


def _chain(storage: Storage, request: BackupRequest) -> Manifest | None:
    """The newest layer of the newest chain, if it is of what the request names and can go on."""
    try:
        manifest, _ = head(storage, "LATEST")
        require_whole(storage, manifest)
    except NotFound:
        return None
    except BrokenChain:
        if request.options.on_broken_chain == "fail":
            raise
        return None
    return manifest if manifest.request.target == request.target else None


def _is_old(chain: Manifest, moment: datetime, full_every: timedelta | None) -> bool:
    return full_every is not None and moment - time_of_subdir(chain.subdir) >= full_every


def _lacks_full(storage: Storage, chain: Manifest, moment: datetime, full_every: timedelta | None) -> bool:
    """Whether a full was due by `moment`, and none was made of the chain since."""
    if not _is_old(chain, moment, full_every) or full_every is None:
        return False
    made = [number for first, number in any_names(storage, chain.subdir).compacted if first == 0]
    if not made:
        return True
    return moment - load_manifest(storage, chain.subdir, made[-1], 0).end.time >= full_every


def _require_reachable(storage: Storage, chain: Manifest, moment: datetime) -> None:
    """A time before the newest chain is covered by the one before it, or by none."""
    if moment > time_of_subdir(chain.subdir):
        return
    for subdir in complete_subdirs(storage):
        newest, _ = head(storage, subdir)
        if time_of_subdir(subdir) < moment <= newest.end.time:
            raise AlreadyCovered(covered_by(storage, newest, moment))
    raise Refused(f"{_never_covered(moment)} The newest chain begins at {format_time(time_of_subdir(chain.subdir))}.")


def _never_covered(moment: datetime) -> str:
    return f"A backup as of {format_time(moment)} cannot be had: what the source held then is gone."
