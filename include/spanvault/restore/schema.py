"""The first step of a restore: databases, roles, and everything of the schema that rows need.

Nothing is made before it is known that nothing is in the way. Objects come in groups; a group and its record in the
target are committed together, so a repeated step goes on where the last one ended.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from spanvault.database.postgres.archive import Entry, dump_now, read_archive
from spanvault.database.postgres.roles import restore_roles
from spanvault.database.postgres.server import major_version, server_version
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
    maintenance_connection,
    one_at_a_time,
    read_records,
    remember,
    run_all,
)
from spanvault.errors import AlreadyExists, NotFound, Refused
from spanvault.model.sentences import few
from spanvault.model.target import ClusterTarget
from spanvault.restore.large_objects import restore_list
from spanvault.restore.plan import DatabaseRestore, selection
from spanvault.restore.resume import remember_layers
from spanvault.restore.selective import RELATIONS, Need, about_database, is_part
from spanvault.restore.work import Work, is_finished, local_archive, local_object

GROUP = 250  # entries a transaction makes: far below what locks a server grants by default

_NAMED_LIKE_RELATIONS = RELATIONS | {"SEQUENCE"}
_KEPT_IF_THERE = frozenset({"SCHEMA", "EXTENSION"})


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
        for database in work.plan.databases:
            # Read first: a database that is made for a damaged archive would stay behind without a record.
            with local_archive(work.storage, work.manifest, database.source, work.scratch) as archive:
                entries = read_archive(archive, owners=work.plan.grants)
            made = database.whole and database.target not in names and _create(work, control, database)
            _make_objects(work, database, entries, made=made)


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
            for note in restore_roles(control, script.read_text(encoding="utf-8")):
                work.progress.note(note)


def _create(work: Work, control: Connection, database: DatabaseRestore) -> bool:
    like = work.source(database.source).database
    try:
        create_database(control, like, database.target, like.owner if work.plan.grants else None)
    except AlreadyExists:  # by another try of this step, just now
        return False
    return True


def _make_objects(work: Work, database: DatabaseRestore, entries: Sequence[Entry], *, made: bool) -> None:
    with work.connect(database.target) as connection, one_at_a_time(connection, work.plan.id):
        record = find_record(connection, work.plan.id) or _begin(work, database, connection, entries, made=made)
        if record.state != "loading":
            return
        by_id = {entry.id: entry for entry in entries}
        chosen = [by_id[number] for number in record.entries]
        connection.execute("SET check_function_bodies = off")
        for group in _groups(chosen):
            _make_group(work, connection, group)
        restore_list(work, database, connection)
        if work.plan.grants and database.source == database.target:
            with translated(f"Setting properties of the database {database.target!r}"):
                run_all(connection, [entry.sql for entry in about_database(entries)])


def _groups(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[first : first + GROUP] for first in range(0, len(entries), GROUP))


def _begin(work: Work, database: DatabaseRestore, connection: Connection, entries: Sequence[Entry], *, made: bool) -> Record:
    """Decide what is made here, once, and write it down."""
    chosen = selection(
        work.manifest, work.plan.request, database.source, entries, grants=work.plan.grants,
        connected_to=work.cluster.primary.database,
    )  # fmt: skip
    made_here = chosen.entries
    if not database.whole:
        present = present_in(work, database.target)
        made_here = without_present(chosen.entries, present, database.target)
        check_needs(chosen.needs, present, database.target)
    record = Record(
        id=work.plan.id,
        source=f"{work.plan.subdir} as of {work.plan.cut} ({database.source})",
        made_database=made,
        entries=tuple(entry.id for entry in made_here),
        state="loading",
    )
    with connection.transaction():
        remember(connection, record)
        remember_layers(connection, work.plan)
    return record


def present_in(work: Work, target: str) -> Mapping[tuple[str, str | None, str], Entry]:
    """What the target database has now, by what names it."""
    with tempfile.NamedTemporaryFile(prefix="spanvault-", suffix=".dump", dir=work.scratch) as local:
        dump_now(work.cluster.primary, target, Path(local.name))
        return {entry.identity: entry for entry in read_archive(Path(local.name), owners=work.plan.grants)}


def without_present(
    entries: Sequence[Entry], present: Mapping[tuple[str, str | None, str], Entry], target: str
) -> tuple[Entry, ...]:
    """The entries less those that the target has in the same form.

    Raises AlreadyExists for relations that are in the way, Refused for another object of the same name that differs.
    """
    relations = {(entry.schema, entry.name) for entry in present.values() if entry.kind in _NAMED_LIKE_RELATIONS}
    obstacles = [one.display for one in entries if one.kind in _NAMED_LIKE_RELATIONS and (one.schema, one.name) in relations]
    if obstacles:
        raise AlreadyExists(
            f"The database {target!r} has {few(obstacles, 3)} already. Drop or rename them, or restore into another database"
            " with into_db."
        )
    kept: set[int] = set()
    for entry in entries:
        there = present.get(entry.identity)
        if there is None or is_part(entry):
            continue
        if entry.kind not in _KEPT_IF_THERE and there.sql != entry.sql:
            raise Refused(
                f"The database {target!r} has another {entry.display} than the backup. Drop or rename it, or restore into"
                " another database with into_db."
            )
        kept.add(entry.id)
    return tuple(one for one in entries if one.id not in kept and not (is_part(one) and one.depends and kept >= set(one.depends)))


def check_needs(needs: Sequence[Need], present: Mapping[tuple[str, str | None, str], Entry], target: str) -> None:
    """Raises Refused for the first relation that something restored depends on and that is nowhere."""
    relations = {(entry.schema, entry.name) for entry in present.values() if entry.kind in RELATIONS}
    for need in needs:
        if (need.needed.schema, need.needed.name) not in relations:
            what = "The foreign key" if need.dependent.kind == "FK CONSTRAINT" else f"The {need.dependent.kind.lower()}"
            raise Refused(
                f"{what} {need.dependent.schema}.{need.dependent.name} needs {need.needed.display}, which is neither restored"
                f" nor in the database {target!r}. Name it in the RESTORE too; leaving out what lacks its counterpart"
                " (skip_missing_foreign_keys and its like) is not available."
            )


def _make_group(work: Work, connection: Connection, group: Sequence[Entry]) -> None:
    wanted = [entry for entry in group if entry.section == "pre-data"]
    if not wanted:
        return
    with connection.transaction():
        if claim_unit(connection, work.plan.id, f"schema:{wanted[0].id}"):
            for entry in wanted:
                with translated(f"Creating {entry.display}"):
                    run_all(connection, [entry.sql])
