"""Protection: the publication and the logical replication slot that keep a database's change log for a collection.

Publication first, then slot, then the wait for writers; only then may the first span be read (see `hold`). Tables are
published by name with ONLY and only where `catalog` found a usable key: publishing a table without one would make the
application's UPDATEs fail.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import errors as pg_errors
from psycopg import sql

from spanvault.database.postgres.blockers import blockers, wait_for_writers
from spanvault.database.postgres.server import Connection, insert_lsn, scalar
from spanvault.errors import BadInput, BrokenChain, Busy, Refused
from spanvault.model.base import Value
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Protection, PublicationRow
from spanvault.model.schema import Table

PREFIX = "spanvault_"
_LOCK_TIMEOUT = "5s"


class Owner(Value):
    """Who holds a protection and until when; kept as the publication's comment, so that any session can see it."""

    collection_id: str
    collection: str
    expires_at: datetime | None


def names(collection_id: str, database_oid: int) -> tuple[str, str]:
    """(slot, publication). Slot names are unique in the whole cluster, so the database's OID is part of theirs."""
    return f"{PREFIX}{collection_id[:12]}_{database_oid}", f"{PREFIX}{collection_id[:12]}"


def hold(
    connection: Connection, owner: Owner, database: str, database_oid: int, tables: Sequence[Table], wait_seconds: float
) -> Protection:
    """Make or take over the protection of the connected database and return it with a safe start position.

    Idempotent. Every table of `tables` with capture `log` is in the publication afterwards; others that were are left
    alone (an older chain may need them). Raises Busy when locks or writers do not yield in time, BrokenChain when the
    slot exists and has been invalidated, BadInput when the role may not publish a table.
    """
    slot, publication = names(owner.collection_id, database_oid)
    _ensure_publication(connection, publication, [table for table in tables if table.capture == "log"])
    mark(connection, publication, owner)
    _ensure_slot(connection, slot, publication, wait_seconds)
    start = insert_lsn(connection)
    wait_for_writers(connection, wait_seconds)
    return _read(connection, database, slot, publication, start)


def mark(connection: Connection, publication: str, owner: Owner) -> None:
    """Write the owner and end of a protection, also as a sign of life."""
    connection.execute(
        sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(publication), sql.Literal(owner.model_dump_json()))
    )


def _ensure_publication(connection: Connection, publication: str, tables: Sequence[Table]) -> None:
    published = {
        row[0]
        for row in connection.execute(
            "SELECT r.prrelid::int8 FROM pg_catalog.pg_publication_rel r"
            " JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %s",
            (publication,),
        )
    }
    missing = [table for table in tables if table.oid not in published]
    exists = scalar(connection, "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = %s", (publication,))
    listed = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(table.schema_name, table.name)) for table in missing)
    name = sql.Identifier(publication)
    if not exists:
        options = sql.SQL("WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)")
        for_tables = sql.SQL("FOR TABLE ") + listed if missing else sql.SQL("")
        _under_lock(connection, sql.SQL("CREATE PUBLICATION {} {} {}").format(name, for_tables, options))
    elif missing:
        _under_lock(connection, sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, listed))


def _under_lock(connection: Connection, statement: sql.Composed, tries: int = 6) -> None:
    """Run DDL with a short lock timeout, so that it never queues the application up behind itself."""
    for left in reversed(range(tries)):
        try:
            with connection.transaction():
                connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))
                connection.execute(statement)
            return
        except pg_errors.LockNotAvailable:
            if not left:
                raise Busy(
                    "A table could not join the publication because others hold a lock on it (VACUUM, ANALYZE, CREATE INDEX"
                    f" CONCURRENTLY or DDL); open writers: {blockers(connection)}. Start the backup again later."
                ) from None
            time.sleep(1)
        except pg_errors.InsufficientPrivilege as error:
            raise BadInput(
                f"The backup's role may not publish the tables: {error.diag.message_primary}. "
                "Make it a member of every table's owner, or run as a superuser; "
                "`spanvault cluster preflight` prints the exact GRANTs."
            ) from None


def _ensure_slot(connection: Connection, slot: str, publication: str, wait_seconds: float) -> None:
    row = connection.execute(
        "SELECT wal_status, plugin, database = pg_catalog.current_database(), confirmed_flush_lsn IS NOT NULL"
        " FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
        (slot,),
    ).fetchone()
    if row is None:
        _create_slot(connection, slot, wait_seconds)
        return
    if row[1] != "pgoutput" or not row[2]:
        raise Refused(f"The replication slot {slot!r} is not Spanvault's (plugin {row[1]}); drop or rename it.")
    if row[0] == "lost" or not row[3]:
        raise BrokenChain(
            f"The replication slot {slot!r} was invalidated by the server: its change log is gone. "
            f"Release it with `spanvault protection release {slot}`; the next backup makes a new one and is a full."
        )


def _create_slot(connection: Connection, slot: str, wait_seconds: float) -> None:
    try:
        with connection.transaction():
            milliseconds = max(1, int(wait_seconds * 1000))
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(milliseconds)))
            connection.execute("SELECT pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    except pg_errors.LockNotAvailable:
        raise Busy(
            f"The replication slot could not be created because transactions stayed open: {blockers(connection)}. "
            "End them, or start the backup again later."
        ) from None
    except pg_errors.DuplicateObject:
        return
    except pg_errors.ConfigurationLimitExceeded:
        raise BadInput(
            "The server has no free replication slot; raise max_replication_slots (a restart), "
            "or release one with `spanvault protection release`."
        ) from None
    except (pg_errors.ObjectNotInPrerequisiteState, pg_errors.InsufficientPrivilege) as error:
        raise BadInput(
            f"The replication slot cannot be created: {error.diag.message_primary}; `spanvault cluster preflight` prints the fix."
        ) from None


def _read(connection: Connection, database: str, slot: str, publication: str, start: Lsn) -> Protection:
    row = connection.execute(
        "SELECT p.oid::int8, p.xmin::text::int8 FROM pg_catalog.pg_publication p WHERE p.pubname = %s"
        " AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND NOT p.pubviaroot AND NOT p.puballtables",
        (publication,),
    ).fetchone()
    if row is None:
        raise Refused(
            f"The publication {publication!r} was altered by somebody: it must publish all four operations by leaf table. "
            "Release the protection with `spanvault protection release` and take a new full backup."
        )
    rows = connection.execute(
        "SELECT prrelid::int8, oid::int8, xmin::text::int8 FROM pg_catalog.pg_publication_rel"
        " WHERE prpubid = %s AND prqual IS NULL AND prattrs IS NULL ORDER BY 1",
        (row[0],),
    ).fetchall()
    return Protection(
        database=database,
        slot=slot,
        publication=publication,
        publication_oid=row[0],
        publication_xmin=row[1],
        rows=tuple(PublicationRow(table_oid=entry[0], oid=entry[1], xmin=entry[2]) for entry in rows),
        start=start,
    )


def changed_tables(connection: Connection, protection: Protection) -> set[int] | None:
    """The tables whose place in the publication is not what `protection` remembers: their changes may be missing from
    the log. None: the publication itself was changed or made anew, so every table's may be."""
    try:
        present = _read(connection, protection.database, protection.slot, protection.publication, protection.start)
    except Refused:
        return None
    if (present.publication_oid, present.publication_xmin) != (protection.publication_oid, protection.publication_xmin):
        return None
    return {row.table_oid for row in set(protection.rows) ^ set(present.rows)}


def advance(connection: Connection, slot: str, to: Lsn) -> bool:
    """Move the slot to `to`, never backwards; False if there is none any more.

    Durable at the server's next checkpoint: it may lag after a crash, and must never be ahead of what is committed in the
    collection.
    """
    confirmed = scalar(
        connection, "SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = %s", (slot,)
    )
    if confirmed is None:
        return False
    if Lsn.parse(confirmed) >= to:
        return True
    try:
        connection.execute("SELECT pg_catalog.pg_replication_slot_advance(%s, %s::pg_lsn)", (slot, str(to)))
    except pg_errors.ObjectInUse:
        raise Busy(f"The replication slot {slot!r} is in use by another session; try again shortly.") from None
    return True


def release(connection: Connection, slot: str, publication: str) -> None:
    """Drop slot and publication if they exist; the slot first, so that no slot outlives its publication.

    Raises Busy while another session uses the slot.
    """
    try:
        connection.execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
            (slot,),
        )
    except pg_errors.ObjectInUse:
        raise Busy(f"The replication slot {slot!r} is in use by another session; try again shortly.") from None
    except pg_errors.UndefinedObject:
        pass
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))


class Held(Value):
    """A protection as found on a server. `retained_bytes`: log kept on its account; `headroom_bytes`: what may still be
    written before the server invalidates it (None: no limit is set)."""

    slot: str
    database: str
    publication: str | None
    owner: Owner | None
    active: bool
    status: str | None
    retained_bytes: int | None
    headroom_bytes: int | None
    confirmed: Lsn | None


def held(connection: Connection) -> list[Held]:
    """All protections of the connected database, and the slots of other databases (without publication and owner)."""
    owners: dict[str, Owner | None] = {}
    for name, comment in connection.execute(
        "SELECT pubname, pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication"
        " WHERE pubname LIKE 'spanvault\\_%'"
    ):
        owners[name] = _parse_owner(comment)
    rows = connection.execute(
        "SELECT slot_name, database, active, wal_status, safe_wal_size, confirmed_flush_lsn::text,"
        " (pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn))::int8,"
        " database = pg_catalog.current_database()"
        " FROM pg_catalog.pg_replication_slots WHERE slot_name LIKE 'spanvault\\_%' AND NOT temporary ORDER BY 1"
    ).fetchall()
    return [_held(row, owners) for row in rows]


def _held(row: Sequence[Any], owners: dict[str, Owner | None]) -> Held:
    publication = row[0].rpartition("_")[0] if row[7] else None
    known = publication in owners if publication else False
    return Held(
        slot=row[0],
        database=row[1],
        publication=publication if known else None,
        owner=owners.get(publication) if publication else None,
        active=row[2],
        status=row[3],
        headroom_bytes=row[4],
        confirmed=Lsn.parse(row[5]) if row[5] else None,
        retained_bytes=row[6],
    )


def _parse_owner(comment: str | None) -> Owner | None:
    try:
        return Owner.model_validate(json.loads(comment or ""))
    except ValueError:
        return None
