"""The first step of a restore: databases, roles, and everything of the schema that rows need.

Nothing is made before it is known that nothing is in the way. Objects come in groups; a group and its record in the
target are committed together, so a repeated step goes on where the last one ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spanvault.database.postgres.archive import Entry, dumped_by, read_archive
from spanvault.database.postgres.roles import restore_roles
from spanvault.database.postgres.server import major_version, server_version, version_number
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import (
    SERVICE_DATABASES,
    Connection,
    Record,
    claim_unit,
    create_database,
    database_names,
    find_record,
    in_the_way,
    is_superuser,
    maintenance_connection,
    one_at_a_time,
    read_records,
    remember,
    role_names,
    run_all,
    tablespace_names,
)
from spanvault.errors import AlreadyExists, NotFound, Refused, Retryable
from spanvault.model.sentences import few
from spanvault.model.target import ClusterTarget
from spanvault.restore.decide import Decision, decide
from spanvault.restore.large_objects import restore_list
from spanvault.restore.late_checks import late_checks, without_late
from spanvault.restore.older_servers import known_words, of_subscription, prepare_public
from spanvault.restore.origin import SHOWN
from spanvault.restore.plan import DatabaseRestore
from spanvault.restore.resume import begun_cuts, remember_cuts, remember_layers
from spanvault.restore.role_names import missing_roles, without_roles
from spanvault.restore.table_sql import without
from spanvault.restore.tablespaces import database_tablespace, elsewhere, in_tablespace, usable_tablespace
from spanvault.restore.work import Work, is_finished, local_archive, local_object

GROUP = 250  # entries a transaction makes: far below what locks a server grants by default


def restore_schema(work: Work) -> None:
    """Make the databases, roles and pre-data objects of the plan.

    Raises AlreadyExists for what is in the way, NotFound for a missing target database, Refused for an older PostgreSQL
    than the backup's and for objects that another unfinished restore or a missing relation forbids.
    """
    if is_finished(work.records()):
        return
    with maintenance_connection(work.cluster.primary) as control:
        _check_version(work, control)
        names = database_names(control)
        for database in work.plan.databases:
            _check_database(work, database, names)
        if isinstance(work.plan.request.target, ClusterTarget):
            _check_cluster(work, names)
            _restore_roles(work, control)
        # Parts of several databases: nothing is made in the first before it is known that all can be.
        decided = {one.source: _decided(work, control, one) for one in work.plan.databases if not one.whole}
        for database in work.plan.databases:
            # Read first: a database that is made for a damaged archive would stay behind without a record.
            prepared = decided.get(database.source) or _decided(work, control, database)
            made = database.whole and database.target not in names and _create(work, control, database, prepared.entries)
            _make_objects(work, database, prepared, made=made)


@dataclass(frozen=True)
class _Prepared:
    """The entries of a database's archive, the version of the pg_dump that wrote it, and what is made of them; None if an
    earlier try has decided that."""

    entries: tuple[Entry, ...]
    writer: int
    decision: Decision | None


def _decided(work: Work, control: Connection, database: DatabaseRestore) -> _Prepared:
    with local_archive(work.storage, work.manifest, database.source, work.scratch) as archive:
        entries, writer = read_archive(archive, owners=work.plan.grants), dumped_by(archive)
    if database.target in database_names(control):
        with work.connect(database.target) as connection:
            if find_record(connection, work.plan.id) is not None:
                return _Prepared(entries, writer, None)
    decision = decide(work, control, database, entries)
    decision, notes = _as_far_as_possible(control, database, entries, decision)
    for note in (*decision.notes, *notes):
        work.progress.note(note)
    return _Prepared(entries, writer, decision)


def _as_far_as_possible(
    control: Connection, database: DatabaseRestore, entries: Sequence[Entry], decision: Decision
) -> tuple[Decision, tuple[str, ...]]:
    """Without subscriptions where the role may not make them; and what comes back, but not as it was."""
    chosen, notes = decision.entries, []
    subscriptions = [entry.name for entry in chosen if entry.kind == "SUBSCRIPTION"]
    if subscriptions and not is_superuser(control):
        notes.append(f"Left out, as only a superuser may make them as they were: subscriptions {few(subscriptions, SHOWN)}.")
        chosen = tuple(entry for entry in chosen if not of_subscription(entry))
    elif subscriptions:
        notes.append(
            f"Subscriptions come back disabled and connect to nothing: {few(subscriptions, SHOWN)}. Before one is enabled or"
            " dropped, see that the database that was backed up does not use its slot: ALTER SUBSCRIPTION ... SET (slot_name ="
            " NONE) lets go of it."
        )
    unlogged = [f"{one.schema}.{one.name}" for one in chosen if one.kind == "TABLE" and "CREATE UNLOGGED TABLE" in one.sql]
    if unlogged:
        notes.append(f"Restored empty, as backups have no rows of unlogged tables: {few(unlogged, SHOWN)}.")
    notes += elsewhere(database_tablespace(entries) if database.whole else None, chosen, tablespace_names(control))
    return Decision(chosen, decision.cuts, decision.notes), tuple(notes)


def _check_version(work: Work, control: Connection) -> None:
    """A newer pg_dump's schema may need what an older server does not have, and does not say so before it fails."""
    source, target = work.manifest.source.server_version, server_version(control)
    if major_version(source) > major_version(target):
        raise Refused(
            f"The backup {work.plan.subdir} is of PostgreSQL {source}, and the target is PostgreSQL {target}: restore it into"
            f" version {major_version(source)} or newer."
        )


def _check_database(work: Work, database: DatabaseRestore, names: set[str]) -> None:
    if database.target not in names:
        if not database.whole:
            raise NotFound(
                f"The database {database.target!r} does not exist on the target; create it, or name another with into_db."
            )
        return
    with work.connect(database.target) as connection:
        records = read_records(connection)
        others = [record for record in records if record.id != work.plan.id]
        if database.whole and others:
            raise Refused(
                f"The database {database.target!r} holds an unfinished restore of {others[0].source}; finish that one by"
                " running its statement again, or drop the database."
            )
        obstacles = in_the_way(connection) if database.whole and not records else []
        if obstacles:
            raise AlreadyExists(
                f"The database {database.target!r} is not empty: it has {few(obstacles, 3)}. Drop or rename it, or choose"
                " another name with new_db_name."
            )


def _check_cluster(work: Work, names: set[str]) -> None:
    others = names - {database.target for database in work.plan.databases} - SERVICE_DATABASES
    if others:
        raise AlreadyExists(
            f"A cluster can be restored only into a cluster without user databases, and this one has {few(sorted(others), 3)}."
            " Drop them, or restore single databases with RESTORE DATABASE."
        )


def _restore_roles(work: Work, control: Connection) -> None:
    if work.manifest.globals_dump is not None:
        with local_object(work.storage, work.manifest, work.manifest.globals_dump, work.scratch) as script:
            for note in restore_roles(control, script.read_bytes().decode("utf-8")):
                work.progress.note(note)


def _create(work: Work, control: Connection, database: DatabaseRestore, entries: Sequence[Entry]) -> bool:
    like = work.source(database.source).database
    tablespace = usable_tablespace(database_tablespace(entries), tablespace_names(control))
    try:
        owned = work.plan.grants and like.owner in role_names(control)
        create_database(control, like, database.target, like.owner if owned else None, tablespace)
    except AlreadyExists:  # by another try of this step, just now
        return False
    return True


def _make_objects(work: Work, database: DatabaseRestore, prepared: _Prepared, *, made: bool) -> None:
    with work.connect(database.target) as connection, one_at_a_time(connection, work.plan.id):
        roles = role_names(connection)
        by_id = {entry.id: _for_roles(entry, roles) for entry in prepared.entries}
        connection.execute("SET check_function_bodies = off")
        record = find_record(connection, work.plan.id) or _begin(work, database, connection, prepared, by_id, made=made)
        if record.state != "loading":
            return
        cuts = begun_cuts(connection, work.plan.id)
        for group in _groups(_as_made(work, [by_id[number] for number in record.entries], cuts)):
            _make_group(work, connection, group)
        restore_list(work, database, connection)


def _for_roles(entry: Entry, roles: Collection[str]) -> Entry:
    missing = missing_roles([entry], roles)
    return replace(entry, sql=without_roles(entry, missing)) if missing else entry


def _as_made(work: Work, entries: Sequence[Entry], cuts: Mapping[int, Collection[str]]) -> Sequence[Entry]:
    """The entries without what is cut out of them, and without the checks that come when the rows are there."""
    late = late_checks(entries, cuts) if work.plan.loads else ()
    kept = [replace(entry, sql=without_late(entry, late)) for entry in entries] if late else entries
    return [replace(entry, sql=without(entry.sql, cuts[entry.id])) if entry.id in cuts else entry for entry in kept]


def _groups(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[first : first + GROUP] for first in range(0, len(entries), GROUP))


def _begin(
    work: Work, database: DatabaseRestore, connection: Connection, prepared: _Prepared, by_id: Mapping[int, Entry], *, made: bool
) -> Record:
    """Write down what is made here, once. Of a part of a database the first group of objects is committed with it: what
    PostgreSQL refuses leaves nothing behind, unless it comes in a later group."""
    decision = prepared.decision
    if decision is None:
        raise Retryable(f"Another try of this restore into {database.target!r} has just ended; run the statement again.")
    record = Record(
        id=work.plan.id,
        source=f"{work.plan.subdir} as of {work.plan.cut} ({database.source})",
        made_database=made,
        entries=tuple(entry.id for entry in decision.entries),
        state="loading",
    )
    with connection.transaction():
        remember(connection, record)
        remember_layers(connection, work.plan)
        remember_cuts(connection, work.plan.id, decision.cuts)
        if database.whole and work.plan.grants:
            prepare_public(connection, prepared.writer)
        if not database.whole:
            made_here = [by_id[entry.id] for entry in decision.entries]
            first = next(_groups(_as_made(work, made_here, decision.cuts)), ())
            _make_group(work, connection, first)
    return record


def _make_group(work: Work, connection: Connection, group: Sequence[Entry]) -> None:
    wanted = [entry for entry in group if entry.section == "pre-data"]
    if not wanted:
        return
    with connection.transaction():
        if claim_unit(connection, work.plan.id, f"schema:{wanted[0].id}"):
            there, version = tablespace_names(connection), version_number(connection)
            for entry in wanted:
                with translated(f"Creating {entry.display}"):
                    run_all(connection, [known_words(entry.kind, in_tablespace(entry, there), version)])
