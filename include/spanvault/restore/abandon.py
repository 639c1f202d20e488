"""Taking back what an unfinished restore made."""

from __future__ import annotations

from spanvault.database.postgres.archive import drop_statements, read_archive
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import (
    Connection,
    Record,
    database_names,
    drop_database,
    drop_subscriptions,
    end_sessions,
    find_record,
    forget,
    maintenance_connection,
    run_all,
)
from spanvault.restore.large_objects import remove_listed
from spanvault.restore.plan import DatabaseRestore
from spanvault.restore.work import Work, local_archive


def abandon_restore(work: Work) -> None:
    """Remove the databases and objects that this restore made, and nothing else. Roles stay. Harmless to repeat."""
    with maintenance_connection(work.cluster.primary) as control:
        names = database_names(control)
        for database in work.plan.databases:
            if database.target in names:
                _abandon(work, database, control)


def _abandon(work: Work, database: DatabaseRestore, control: Connection) -> None:
    with work.connect(database.target) as connection:
        record = find_record(connection, work.plan.id)
        if record is None:
            return
        end_sessions(connection, work.finishing)
        end_sessions(connection, work.purpose)
        _drop_subscriptions(work, database, connection, record)
        if not record.made_database:
            remove_listed(work, database, connection)
            _drop_objects(work, database, connection, record)
            forget(connection, work.plan.id)
    if record.made_database and control.info.dbname != database.target:
        drop_database(control, database.target)


def _drop_subscriptions(work: Work, database: DatabaseRestore, connection: Connection, record: Record) -> None:
    """First, and apart: DROP SUBSCRIPTION would drop the publisher's slot, and DROP DATABASE is refused while there is one."""
    if database.whole:
        with local_archive(work.storage, work.manifest, database.source, work.scratch) as archive:
            made = {entry.name for entry in read_archive(archive) if entry.kind == "SUBSCRIPTION" and entry.id in record.entries}
        drop_subscriptions(connection, sorted(made))


def _drop_objects(work: Work, database: DatabaseRestore, connection: Connection, record: Record) -> None:
    with local_archive(work.storage, work.manifest, database.source, work.scratch) as archive:
        by_id = {entry.id: entry for entry in read_archive(archive)}
        script = drop_statements(archive, [by_id[number] for number in record.entries], work.scratch)
    with translated(f"Removing what was restored into {database.target!r}"), connection.transaction():
        run_all(connection, [script])
