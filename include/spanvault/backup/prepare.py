"""From a request to a plan: the source examined and protected, spans and batches fixed, PLAN.json written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from psycopg import errors as pg_errors

from spanvault.backup.assign import assign
from spanvault.backup.captured import query_of
from spanvault.backup.exclusion import with_exclusions
from spanvault.backup.execution import require_nodes, require_readable_there
from spanvault.backup.not_used import read_elsewhere, why_not_used
from spanvault.backup.placement import table_localities
from spanvault.backup.plan import batches_of, databases_of, matches, select_tables, span_size, spans_of
from spanvault.backup.protection import protection_length
from spanvault.collection.chain import load_manifest
from spanvault.collection.commit import committed_run
from spanvault.collection.identity import claim_places, ensure_collection
from spanvault.collection.lookup import is_complete
from spanvault.collection.manifests import any_names
from spanvault.collection.plans import chain_subdirs, create_plan, read_plan
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.blockers import blockers
from spanvault.database.postgres.catalog import read_database, read_tables, read_views, types_version, user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.nodes import discover
from spanvault.database.postgres.preflight import require
from spanvault.database.postgres.protect import Owner, hold
from spanvault.database.postgres.publication import as_published
from spanvault.database.postgres.server import Connection, identity, mark_log, scalar
from spanvault.database.postgres.snapshot import limit_lock_waits
from spanvault.errors import Busy, Damaged, KeyMismatch, NotFound, Refused
from spanvault.model.cut import Lsn, subdir_of
from spanvault.model.manifest import CollectionDocument, Plan, PlannedDatabase, Protection, SourceIdentity
from spanvault.model.places import Places
from spanvault.model.request import BackupRequest
from spanvault.model.span import Batch
from spanvault.model.target import DatabaseTarget, SchemaTarget, TableTarget
from spanvault.statement.render import render_redacted
from spanvault.storage.base import Storage

CLOCK_SKEW = timedelta(minutes=5)
LOCK_WAIT_SECONDS = 60.0  # for locks on tables that are only looked at
_LOOK_BACK = 50  # chains searched for an unfinished run of the same request


def own_plan(storage: Storage, run_key: str, due: datetime) -> Plan | None:
    """The plan that an earlier try of this very run left, finished or not.

    A run is planned when it begins, never before it was due, so only the chains and layers since then are looked through;
    clocks of scheduler and worker may differ by CLOCK_SKEW.
    """
    earliest = due - CLOCK_SKEW
    for subdir in chain_subdirs(storage):
        try:
            plan = read_plan(storage, subdir)
            if plan is not None and plan.run_key == run_key:
                return plan
            if is_complete(storage, subdir) and (found := _own_layer_plan(storage, subdir, run_key, earliest)) is not None:
                return found
        except KeyMismatch:
            pass  # another's: this run would have the key
        if subdir < subdir_of(earliest) and is_complete(storage, subdir):
            return None  # layers of chains before the newest complete one were committed before its full
    return None


def _own_layer_plan(storage: Storage, subdir: str, run_key: str, earliest: datetime) -> Plan | None:
    """The run's plan of the layer that comes next, or of the first one that it committed; none that another run has made
    impossible."""
    names = any_names(storage, subdir)
    number = names.originals[-1]
    found = read_plan(storage, subdir, number + 1, run_key)
    while number > 0:
        manifest = load_manifest(storage, subdir, number)
        if manifest.committed_at < earliest:
            break
        if manifest.run_key == run_key:
            found = read_plan(storage, subdir, number, run_key) or found
        number -= 1
    if found is None or found.closes is not None:  # the layer before a full whose own plan was swept away
        return None
    return found if _is_open(storage, found, marked=bool(names.marked)) else None


def _is_open(storage: Storage, plan: Plan, *, marked: bool) -> bool:
    """Whether the plan's layers are its own run's or nobody's; nobody's cannot be any more behind a `marked` one."""
    for number in range(plan.number, plan.last_number + 1):
        committed = committed_run(storage, plan.subdir, number)
        if committed is None:
            return not marked
        if committed.run_key != plan.run_key:
            return False
    return True


def unfinished_plan(
    storage: Storage, cluster: Cluster, request: BackupRequest, note: Callable[[str], None] = lambda _: None
) -> Plan | None:
    """The newest plan of the same request that was not committed and whose source still holds what it needs. `note` is told
    of one that the given keys do not open."""
    wanted = request.digest()
    for count, subdir in enumerate(chain_subdirs(storage)):
        if count >= _LOOK_BACK:
            return None
        try:
            plan = read_plan(storage, subdir)
            if plan is None or plan.request.digest() != wanted or committed_run(storage, subdir, plan.number) is not None:
                continue
        except KeyMismatch:
            if not is_complete(storage, subdir):
                note(
                    f"The unfinished backup {subdir} has other keys, or none, so it is left alone and this is a new one; if it is"
                    " not to be finished with its own, `spanvault collection sweep --delete` removes it when it is a day old."
                )
            continue  # another's
        return plan if _still_protected(cluster, plan) else None
    return None


def _still_protected(cluster: Cluster, plan: Plan) -> bool:
    with connect(cluster.primary, purpose="plan") as connection:
        source = identity(connection, cluster.name)
        if (source.system_identifier, source.timeline) != (plan.source.system_identifier, plan.source.timeline):
            return False
        for planned in plan.databases:
            confirmed = scalar(
                connection,
                "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots"
                " WHERE slot_name = %s AND wal_status <> 'lost'",
                (planned.protection.slot,),
            )
            if confirmed is None or Lsn.parse(confirmed) > planned.protection.start:
                return False
    return True


def make_plan(
    storage: Storage,
    cluster: Cluster,
    request: BackupRequest,
    *,
    run_key: str,
    clock: Callable[[], datetime],
    wait_seconds: float,
    closes: str | None = None,
    places: Mapping[str, Storage] | None = None,
    note: Callable[[str], None] | None = None,
) -> Plan:
    """Examine and protect the source, then write PLAN.json under the first free time from now on. `closes` is the chain
    that the full follows, `places` are the storages of localities; `note` hears what is read elsewhere than it belongs.

    The protection is taken before the plan is written: a crash in between leaves one that expires by itself. What can be
    refused is refused before that. Raises what preflight finds, NotFound for a target that does not exist, Busy when open
    transactions do not end.
    """
    require_nodes(cluster, request)
    with connect(cluster.primary, purpose="plan") as connection:
        require(connection)
        source = identity(connection, cluster.name)
        names = databases_of(request.target, user_databases(query_of(connection)), cluster.primary.database)
    require_possible(cluster, request, names)
    collection = ensure_collection(storage, system_identifier=source.system_identifier, now=clock())
    claim_places(places or {}, collection)
    owner = Owner(collection_id=collection.id, collection=storage.display_uri, expires_at=clock() + protection_length(request))
    databases = tuple(plan_database(cluster, request, name, owner, wait_seconds) for name in names)
    check_names(request, cluster.primary.database, databases, cluster)
    require_readable_there(cluster, request, databases)
    planned_at = clock()
    batches = _batches(cluster, request, databases, note)
    draft = _draft(collection, source, request, run_key, planned_at, databases, batches).model_copy(update={"closes": closes})
    for subdir in _subdirs_from(planned_at):
        plan = draft.model_copy(update={"subdir": subdir})
        if create_plan(storage, plan):
            return plan
        if (present := _faster_try(storage, subdir, run_key)) is not None:
            return present
    raise Refused(f"The collection {storage.display_uri} holds too many backups of one second; try again.")


def _faster_try(storage: Storage, subdir: str, run_key: str) -> Plan | None:
    """The plan that another try of this run put there in the meantime."""
    try:
        present = read_plan(storage, subdir)
    except (KeyMismatch, Damaged):
        return None  # another's, or two others' who both withdraw
    return present if present is not None and present.run_key == run_key else None


def require_possible(cluster: Cluster, request: BackupRequest, names: Sequence[str]) -> tuple[PlannedDatabase, ...]:
    """Refuse what the tables as they are now rule out, while nothing is made yet, on the source or on storage. The databases
    as they were seen, not protected."""
    seen = tuple(_seen(cluster, request, name) for name in names)
    check_names(request, cluster.primary.database, seen, cluster)
    require_readable_there(cluster, request, seen)
    if request.append is None and len(cluster.endpoints) > 1:
        _batches(cluster, request, seen)
    return seen


def _seen(cluster: Cluster, request: BackupRequest, name: str) -> PlannedDatabase:
    """The database and its tables as they are now, not protected."""
    with _looking(cluster, name) as connection:
        query = query_of(connection)
        database = read_database(query)
        named = select_tables(request.target, name, cluster.primary.database, read_tables(query))
        tables = with_exclusions(query, cluster, name, named)
        nothing = Protection(database=name, slot="", publication="", publication_oid=0, publication_xmin=0, start=Lsn(0))
        return PlannedDatabase(
            database=database.model_copy(update={"tables": tables}), protection=nothing, types_version=types_version(query)
        )


@contextmanager
def _looking(cluster: Cluster, name: str) -> Iterator[Connection]:
    """A session for the catalogs. A table's size cannot be told while another transaction has it locked against everybody;
    raises Busy, naming who may have, when that lasts."""
    with connect(cluster.primary, name, purpose="plan") as connection:
        limit_lock_waits(connection, LOCK_WAIT_SECONDS)
        try:
            yield connection
        except pg_errors.LockNotAvailable:
            raise Busy(
                f"A table of database {name!r} stayed locked for {LOCK_WAIT_SECONDS:g} s, as by ALTER TABLE or TRUNCATE in an"
                f" open transaction: {blockers(connection)}. End it, or start the backup again later."
            ) from None


def plan_database(
    cluster: Cluster, request: BackupRequest, name: str, owner: Owner, wait_seconds: float, *, await_writers: bool = True
) -> PlannedDatabase:
    """The database, protected, and its tables. `await_writers` as of `hold`."""
    with _looking(cluster, name) as connection:
        query = query_of(connection)
        database = read_database(query)
        named = select_tables(request.target, name, cluster.primary.database, read_tables(query))
        tables = with_exclusions(query, cluster, name, named)
        protection = hold(connection, owner, name, database.oid, tables, wait_seconds, await_writers=await_writers)
        # Shapes are read again behind the wait: from here on every change is in the log.
        tables = with_exclusions(query, cluster, name, read_tables(query, [table.oid for table in tables]))
        tables = as_published(tables, protection)
        return PlannedDatabase(
            database=database.model_copy(update={"tables": tables}),
            protection=protection,
            types_version=types_version(query),
            ready=mark_log(connection) if len(cluster.endpoints) > 1 else None,
        )


def check_names(request: BackupRequest, connected: str, databases: Sequence[PlannedDatabase], cluster: Cluster) -> None:
    """Every schema and table that the target names must exist: a typing error must not make an empty backup."""
    target = request.target
    if isinstance(target, DatabaseTarget) or not isinstance(target, SchemaTarget | TableTarget):
        return
    for planned in databases:
        name = planned.database.name
        with connect(cluster.primary, name, purpose="plan") as connection:
            missing = _missing_names(connection, target, name, connected, planned)
        if missing:
            raise NotFound(f"Database {name!r} has no {', '.join(missing)}.")


def _missing_names(
    connection: Connection, target: SchemaTarget | TableTarget, name: str, connected: str, planned: PlannedDatabase
) -> list[str]:
    schemas = {row[0] for row in connection.execute("SELECT nspname FROM pg_catalog.pg_namespace")}
    if isinstance(target, SchemaTarget):
        return [
            f"schema {schema!r}" for database, schema in target.names if (database or connected) == name and schema not in schemas
        ]
    objects = [(table.schema_name, table.name) for table in planned.database.tables]
    objects += [(view.schema_name, view.name) for view in read_views(query_of(connection))]
    objects += [tuple(row) for row in connection.execute(_PARTITIONED_ROOTS)]
    patterns = [pattern for pattern in target.patterns if (pattern.database or connected) == name]
    return [
        f"table or view {str(pattern)!r}"
        for pattern in patterns
        if not any(matches(pattern, *entry) for entry in objects)
        and not (pattern.name is None and pattern.schema_name in schemas)
    ]


_PARTITIONED_ROOTS = (
    "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('p', 'f')"
)


def _draft(
    collection: CollectionDocument,
    source: SourceIdentity,
    request: BackupRequest,
    run_key: str,
    planned_at: datetime,
    databases: tuple[PlannedDatabase, ...],
    batches: tuple[Batch, ...],
) -> Plan:
    return Plan(
        subdir=subdir_of(planned_at),
        run_key=run_key,
        planned_at=planned_at,
        collection_id=collection.id,
        request=redacted(request),
        request_text=render_redacted(request),
        source=source,
        databases=databases,
        batches=batches,
    )


def _batches(
    cluster: Cluster,
    request: BackupRequest,
    databases: Sequence[PlannedDatabase],
    note: Callable[[str], None] | None = None,
) -> tuple[Batch, ...]:
    """The tables in spans and batches; of a cluster of several nodes each for one of them, as they are now. `note` hears
    which nodes cannot be used, and what is read elsewhere because of that."""
    span_bytes = span_size((planned.database for planned in databases), request.options.span_bytes)
    spans = [span for planned in databases for span in spans_of(planned.database, span_bytes)]
    several = len(databases) > 1
    names = {
        (planned.database.name, table.oid): f"{planned.database.name}.{table.qualified}" if several else table.qualified
        for planned in databases
        for table in planned.database.tables
    }
    states, options = discover(cluster), request.options
    if not states:
        return batches_of(spans, names, options.workers)
    localities, places = table_localities(cluster, databases), Places.parse(request.into)
    strict_places = places if options.strict else None
    batches = assign(
        spans,
        states,
        table_locality=localities,
        execution_locality=options.execution_locality,
        strict_places=strict_places,
        max_replay_lag=cluster.max_replay_lag,
        names=names,
        workers=options.workers,
    )
    if note is not None:
        reasons = why_not_used(
            states,
            execution_locality=options.execution_locality,
            strict_places=strict_places,
            max_replay_lag=cluster.max_replay_lag,
        )
        for sentence in read_elsewhere(batches, states, reasons, localities, names, places):
            note(sentence)
    return batches


def redacted(request: BackupRequest) -> BackupRequest:
    """The request as documents hold it: no secret in its URIs."""
    location = request.options.incremental_location
    shown = Places.parse(location).redacted() if location else None
    options = request.options.model_copy(update={"incremental_location": shown})
    return request.model_copy(update={"into": Places.parse(request.into).redacted(), "options": options})


def _subdirs_from(planned_at: datetime) -> list[str]:
    """The paths of `planned_at` and of the 99 hundredths of a second after it."""
    return [subdir_of(planned_at + timedelta(milliseconds=10 * step)) for step in range(100)]
