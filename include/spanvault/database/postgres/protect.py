"""Protection: the publication and the logical replication slot that keep a database's change log for a collection.

Publication first, then slot, then the wait for writers; only then may the first span be read (see `hold`). What a server
holds is `holdings`' to tell, whether the log of a chain is unbroken is `continuity`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from spanvault.database.postgres import publication as publications
from spanvault.database.postgres.blockers import wait_for_writers
from spanvault.database.postgres.continuity import check
from spanvault.database.postgres.ddl_log import may_publish
from spanvault.database.postgres.holdings import PREFIX, Held, held, names
from spanvault.database.postgres.publication import Owner, changed_tables, leave, mark
from spanvault.database.postgres.server import Connection, insert_lsn
from spanvault.database.postgres.slots import advance, drop_slot, ensure_slot, foreign, read_slot
from spanvault.model.manifest import Protection
from spanvault.model.schema import Table

__all__ = [
    "PREFIX",
    "Held",
    "Owner",
    "advance",
    "changed_tables",
    "check",
    "held",
    "hold",
    "leave",
    "mark",
    "names",
    "release",
]


def hold(
    connection: Connection,
    owner: Owner,
    database: str,
    database_oid: int,
    tables: Sequence[Table],
    wait_seconds: float,
    *,
    await_writers: bool = True,
) -> Protection:
    """Make or take over the protection of the connected database and return it with a safe start position; or, without
    `await_writers`, for whoever reads nothing but the log and what a later slot's snapshot shows.

    Idempotent. Every table of `tables` whose changes the log tells is in the publication afterwards. Others that were are
    left alone (an older chain may need them), but for those that lost their identity and those whose rows are excluded from
    backups: they leave at once. The DDL log is in
    it too, where there is one. A slot that the
    server has given up, or that outlived its publication, is made anew, as the log in between cannot be had, and so is a
    publication whose options somebody altered; a chain that is to go on is tested by `check` before this.

    Raises Busy when locks or writers do not yield in time, BadInput when the role may not publish a table, Refused when a
    slot of this name is somebody else's.
    """
    slot, publication = names(owner.collection_id, database_oid)
    logged = [table for table in tables if table.logged]
    state = read_slot(connection, slot)  # before the look at the publication, which is always made first
    if publications.usable(connection, publication):
        publications.publish(connection, publication, logged, {table.oid for table in tables if table.excluded})
    else:
        if state is not None and not foreign(connection, state):
            drop_slot(connection, slot)  # a slot must never be older than its publication
        publications.drop(connection, publication)
        publications.create(connection, publication, logged)
    if may_publish(connection):
        publications.publish_ddl_log(connection, publication)
    mark(connection, publication, owner)
    ensure_slot(connection, slot, wait_seconds)
    start = insert_lsn(connection)
    if await_writers:
        wait_for_writers(connection, wait_seconds)
    return publications.read(connection, database, slot, publication, start)


def release(connection: Connection, slot: str, publication: str) -> None:
    """Drop slot and publication if they exist; the slot first, so that no slot outlives its publication.

    Raises Busy while another session uses the slot.
    """
    drop_slot(connection, slot)
    publications.drop(connection, publication)
