"""From a request for an incremental to a plan: the chain found and tested, the source protected, the ends fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from spanvault.backup.captured import query_of
from spanvault.backup.cuts import find_ends
from spanvault.backup.execution import require_nodes, require_readable_there
from spanvault.backup.plan import databases_of
from spanvault.backup.prepare import check_names, plan_database, redacted, require_possible
from spanvault.backup.protection import protection_length
from spanvault.collection.chain import head, load_manifest
from spanvault.collection.identity import read_collection
from spanvault.collection.manifests import any_names
from spanvault.collection.plans import create_plan, read_plan
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.continuity import SlotAhead
from spanvault.database.postgres.preflight import require
from spanvault.database.postgres.protect import Owner, check
from spanvault.database.postgres.server import identity, server_time
from spanvault.errors import AlreadyCovered, BadInput, BrokenChain, NotFound, Permanent, Refused
from spanvault.model.cut import format_time, time_of_subdir
from spanvault.model.manifest import Manifest, Plan, PlannedDatabase
from spanvault.model.places import Places
from spanvault.model.request import BackupRequest
from spanvault.model.units import parse_duration
from spanvault.statement.render import render_redacted
from spanvault.storage.base import Storage


def make_layer_plan(
    storage: Storage,
    cluster: Cluster,
    request: BackupRequest,
    *,
    run_key: str,
    clock: Callable[[], datetime],
    wait_seconds: float,
    times: Sequence[datetime] = (),
    synthetic: bool = False,
) -> Plan:
    """The plan of the layer, or layers, that follow the newest of the chain `request.append`, and end at `times`
    (ascending), or wherever the seal's snapshot is. `synthetic`: a full is to be made of the chain then.

    The chain is tested before anything is touched. Raises NotFound where there is no chain, BrokenChain when it cannot go
    on, AlreadyCovered when all `times` lie before its end, and what the plan of a full raises.
    """
    require_nodes(cluster, request)
    while True:
        parent, digest = head(storage, request.append or "LATEST")
        require_whole(storage, parent)
        require_same_places(parent, request)
        if times:
            require_past_end(cluster, parent, request)
        wanted = uncovered(storage, parent, request, times)
        try:
            databases = _databases(storage, cluster, request, parent, clock, wait_seconds)
            break
        except BrokenChain as error:
            if head(storage, parent.subdir)[1] == digest:
                raise explained(storage, parent, error) from None
            # Another run committed a layer meanwhile, and moved the slot on.
    with connect(cluster.primary, purpose="plan") as connection:
        source = identity(connection, cluster.name)
    skew = parse_duration(request.options.max_clock_skew)
    known = {entry.database.name for entry in parent.databases}
    protections = [planned.protection for planned in databases if planned.database.name in known]
    plan = Plan(
        kind="incremental",
        number=parent.number + 1,
        subdir=parent.subdir,
        run_key=run_key,
        parent_sha256=digest,
        ends=find_ends(cluster, protections, parent.end, wanted, skew) if wanted else (),
        synthetic=synthetic,
        planned_at=clock(),
        collection_id=parent.collection_id,
        request=redacted(request),
        request_text=render_redacted(request),
        source=source,
        databases=databases,
        batches=(),
    )
    if create_plan(storage, plan):
        return plan
    present = read_plan(storage, plan.subdir, plan.number, run_key)
    if present is None:
        raise Refused(f"The plan of this run in {plan.subdir} disappeared while it was made; start the run anew.")
    return present


def explained(storage: Storage, parent: Manifest, error: BrokenChain) -> BrokenChain:
    """The error; where a newer chain of the collection has moved the slot on, that is said."""
    if not isinstance(error, SlotAhead):
        return error
    try:
        newest, _ = head(storage, "LATEST")
    except Permanent:
        return error  # damaged, or of other keys: then nobody can tell
    if newest.subdir <= parent.subdir or newest.end.lsn < error.position:
        return error
    return BrokenChain(
        f"{error.before} was moved on by Spanvault for the newer chain {newest.subdir}, so the chain {parent.subdir} ends at"
        f" {parent.end.lsn}; back up INTO LATEST IN, which adds to the newer one."
    )


def chain_to_close(storage: Storage, cluster: Cluster, request: BackupRequest) -> str | None:
    """The newest chain, if it is of the same target and the log still tells what came since its end."""
    try:
        parent, _ = head(storage, "LATEST")
        if parent.request.target != request.target:
            return None
        require_whole(storage, parent)
        require_same_places(parent, request)
        for entry in parent.databases:
            with connect(cluster.primary, entry.database.name, purpose="plan") as connection:
                check(connection, entry, parent.end.lsn, parent.source, start=parent.start.lsn)
    except (NotFound, BrokenChain):
        return None
    return parent.subdir


def require_same_places(newest: Manifest, request: BackupRequest) -> None:
    """Raise BrokenChain if the chain has URIs for other localities than are given: it keeps them from its full on."""
    had, given = Places.parse(newest.request.into).localities, Places.parse(request.into).localities
    lost, new = [tier for tier in had if tier not in given], [tier for tier in given if tier not in had]
    if lost or new:
        changes = [f"there is none for {', '.join(lost)} any more"] if lost else []
        changes += [f"{', '.join(new)} is new"] if new else []
        raise BrokenChain(
            f"The backup {newest.subdir} has URIs for the localities {', '.join(had)}, and {', '.join(given)} were given:"
            f" {', and '.join(changes)}. A chain keeps its localities, so give the same or take a new full backup."
        )


def moved_places(newest: Manifest, request: BackupRequest) -> list[str]:
    """A sentence for each locality whose URI is another place than the chain's newest backup has."""
    before = dict(Places.parse(newest.request.into).others)
    return [
        f"The place of {tier} was {before[tier]} and is {uri} now: a restore finds the chain's earlier files only if they are"
        " moved there; if this was a slip, correct the URI."
        for tier, uri in Places.parse(request.into).others
        if tier in before and not (before[tier].contains(uri) and uri.contains(before[tier]))
    ]


def require_whole(storage: Storage, newest: Manifest) -> None:
    """Raise BrokenChain if a layer behind the newest valid one was found damaged: the chain cannot go on from before it."""
    marked = any_names(storage, newest.subdir).marked
    if marked:
        raise BrokenChain(
            f"The layer {marked[0]} of {newest.subdir} was found damaged, so the chain ends at {newest.end} and the next backup"
            " is a full one."
        )


def require_past_end(cluster: Cluster, newest: Manifest, request: BackupRequest) -> None:
    """Raise Refused if the chain ends at a time that the source's clock has not reached: until then every run would find its
    time covered, although nothing is."""
    with connect(cluster.primary, purpose="plan") as connection:
        clock = server_time(connection)
    if newest.end.time - clock > parse_duration(request.options.max_clock_skew):
        raise Refused(
            f"The chain {newest.subdir} ends at {newest.end}, which the source's clock ({format_time(clock)}) has not reached: it"
            " was wrong then, or is wrong now. Until that time nothing can be added up to a time; take a new full backup (BACKUP"
            " INTO without LATEST) once the clock is right."
        )


def uncovered(storage: Storage, parent: Manifest, request: BackupRequest, times: Sequence[datetime]) -> list[datetime]:
    """Those of `times` that the chain does not cover yet. Raises BadInput for a request of something else than the chain is
    of, Refused for a time before the chain, AlreadyCovered where no time is left."""
    if parent.request.target != request.target:
        raise BadInput(
            f"The chain {parent.subdir} is a backup of something else"
            f" ({load_manifest(storage, parent.subdir).request_text}); an incremental names the same targets as its full backup."
        )
    wanted = [moment for moment in times if moment > parent.end.time]
    if times and times[-1] < time_of_subdir(parent.subdir):
        raise Refused(
            f"A backup as of {format_time(times[-1])} cannot be had: the chain {parent.subdir} begins later, and what the source"
            " held before is gone."
        )
    if times and not wanted:
        raise AlreadyCovered(covered_by(storage, parent, times[-1]))
    return wanted


def covered_by(storage: Storage, newest: Manifest, moment: datetime) -> str:
    """The sentence that says which layer of the chain covers a time up to its end."""
    layer = newest
    while layer.number > 0 and layer.start.time >= moment:
        layer = load_manifest(storage, layer.subdir, layer.number - 1)
    what = f"the layer {layer.number} of {layer.subdir}" if layer.number else f"the full backup {layer.subdir}"
    return f"{format_time(moment)} is covered by {what}, which goes up to {format_time(layer.end.time)}; nothing was written."


def _databases(
    storage: Storage,
    cluster: Cluster,
    request: BackupRequest,
    parent: Manifest,
    clock: Callable[[], datetime],
    wait_seconds: float,
) -> tuple[PlannedDatabase, ...]:
    """The databases, protected; those of the chain are tested first, as protecting would make a missing slot anew."""
    with connect(cluster.primary, purpose="plan") as connection:
        require(connection)
        names = databases_of(request.target, user_databases(query_of(connection)), cluster.primary.database)
    for name in names:
        entry = parent.database(name)
        if entry is not None:
            with connect(cluster.primary, name, purpose="plan") as connection:
                check(connection, entry, parent.end.lsn, parent.source, start=parent.start.lsn)
    check_identities(request, require_possible(cluster, request, names))
    owner = Owner(
        collection_id=read_collection(storage).id,
        collection=storage.display_uri,
        expires_at=clock() + protection_length(request),
    )
    # A layer reads the log, and tables only under the snapshot of its seal's slot, which waits for the same writers.
    planned = [
        plan_database(cluster, request, name, owner, wait_seconds, await_writers=parent.database(name) is None) for name in names
    ]
    check_identities(request, planned)
    require_readable_there(cluster, request, planned)
    check_names(request, cluster.primary.database, planned, cluster)
    return tuple(
        one.model_copy(update={"protection": one.protection.model_copy(update={"start": parent.end.lsn})})
        if parent.database(one.database.name) is not None
        else one
        for one in planned
    )


def check_identities(request: BackupRequest, databases: Sequence[PlannedDatabase]) -> None:
    """Raise Refused for tables whose changes the log does not tell, if the request wants to fail at them."""
    if request.options.without_identity != "fail":
        return
    tables = [table for one in databases for table in one.database.tables if table.lacks_identity]
    if tables:
        keyed = "; `spanvault cluster preflight` names those that have a key and that the backup's role may not publish"
        raise Refused(
            f"The log does not tell the changes of {', '.join(table.qualified for table in tables)}: give them a primary key or"
            " REPLICA IDENTITY FULL (on PostgreSQL 18 not to a table with a generated column), or choose without_identity ="
            f" 'full' or 'skip'{keyed if any(table.key for table in tables) else ''}."
        )
