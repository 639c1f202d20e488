"""The list of large objects: made in a target before their pages are loaded, and taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spanvault.database.postgres.large_objects import Listed, make_large_objects, remove_large_objects
from spanvault.database.postgres.target import Connection, claim_unit, forget_unit, record_rows, units_done
from spanvault.merge.table import TableState, units_of
from spanvault.model.schema import LARGE_OBJECT_LIST
from spanvault.restore.origin import AtCut
from spanvault.restore.plan import DatabaseRestore
from spanvault.restore.sources import table_histories
from spanvault.restore.work import Work

GROUP = 250  # objects a transaction makes: comments, labels and grants lock each of them


def restore_list(work: Work, database: DatabaseRestore, connection: Connection) -> None:
    """Make the large objects of the cut, without data; those that an earlier try made stay as they are.

    Raises AlreadyExists naming OIDs that are taken, Damaged when the stored list is not what was written.
    """
    for unit, objects in _groups(work, database):
        with connection.transaction():
            if claim_unit(connection, work.plan.id, unit):
                make_large_objects(connection, objects, grants=work.plan.grants)
                record_rows(connection, work.plan.id, unit, len(objects))


def remove_listed(work: Work, database: DatabaseRestore, connection: Connection) -> None:
    """Remove the large objects that this restore made. Harmless to repeat."""
    done = units_done(connection, work.plan.id)
    if not any(unit.startswith(_prefix(database)) for unit in done):
        return
    for unit, objects in _groups(work, database):
        if unit in done:
            with connection.transaction():
                remove_large_objects(connection, [int(one["loid"]) for one in objects])
                forget_unit(connection, work.plan.id, unit)


def _prefix(database: DatabaseRestore) -> str:
    return f"{database.source}:{LARGE_OBJECT_LIST}:"


def _groups(work: Work, database: DatabaseRestore) -> Iterator[tuple[str, Sequence[Listed]]]:
    """(name of the unit, objects), the same in every try."""
    key = (database.source, LARGE_OBJECT_LIST)
    if LARGE_OBJECT_LIST not in database.tables:
        return
    history = table_histories(work.storage, work.resolved, {key: AtCut(work.resolved).origins[key]})[key]
    with TableState(history, work.scratch) as state:
        for unit in units_of(history):
            number = 0
            for batch in state.batches(unit):
                for first in range(0, batch.num_rows, GROUP):
                    yield f"{_prefix(database)}{unit.id}:{number}", batch.slice(first, GROUP).to_pylist()
                    number += 1
