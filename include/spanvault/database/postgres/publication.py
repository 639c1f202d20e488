"""The publication of a collection in one database: which tables are in the change log, and whose it is.

Tables are published by name with ONLY and only where `catalog` found that their changes can be told: publishing a table
without usable identity would make the application's UPDATEs fail.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime

from psycopg import errors as pg_errors
from psycopg import sql

from spanvault.database.postgres.blockers import blockers
from spanvault.database.postgres.catalog import read_tables
from spanvault.database.postgres.ddl_log import DDL_LOG
from spanvault.database.postgres.server import Connection, scalar
from spanvault.errors import BadInput, Busy, Refused
from spanvault.model.base import Value
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Protection, PublicationRow
from spanvault.model.schema import Table

_LOCK_TIMEOUT = "5s"

# Row filters and column lists came with version 15; older servers have no such columns.
_WHOLE = "(to_jsonb(r) ->> 'prqual') IS NULL AND (to_jsonb(r) ->> 'prattrs') IS NULL"


class Owner(Value):
    """Who holds a protection and until when (None: until it is released); kept as the publication's comment, so that any
    session can see it. `run_key` is the run that gave the last sign of life, at `seen_at`."""

    collection_id: str
    collection: str
    expires_at: datetime | None
    run_key: str | None = None
    seen_at: datetime | None = None


def parse_owner(comment: str | None) -> Owner | None:
    """The owner that a publication's comment names, or None if it is not in our form."""
    try:
        return Owner.model_validate(json.loads(comment or ""))
    except ValueError:
        return None


def mark(connection: Connection, publication: str, owner: Owner) -> None:
    """Write the owner and end of a protection, also as a sign of life.

    An end that is later, written by another run of the same collection, stays: a single backup with a short protection
    must not take the log away from a schedule. Raises Busy.
    """
    present = parse_owner(
        scalar(
            connection,
            "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication WHERE pubname = %s",
            (publication,),
        )
    )
    if present is not None and present.collection_id == owner.collection_id:
        owner = owner.model_copy(update={"expires_at": _later(present.expires_at, owner.expires_at)})
    # With a DDL log a transaction that makes a table holds a lock on the publication until it ends.
    statement = sql.SQL("COMMENT ON PUBLICATION {} IS {}")
    _under_lock(connection, statement.format(sql.Identifier(publication), sql.Literal(owner.model_dump_json())))


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else max(one, other)


# All four operations, by leaf table: what anything less leaves out is missing from the log.
_WHOLLY = "p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND NOT p.pubviaroot AND NOT p.puballtables"


def usable(connection: Connection, publication: str) -> bool:
    """Whether the connected database has the publication, and it publishes as ours do."""
    statement = f"SELECT 1 FROM pg_catalog.pg_publication p WHERE p.pubname = %s AND {_WHOLLY}"
    return bool(scalar(connection, statement, (publication,)))


def drop(connection: Connection, publication: str) -> None:
    """Drop the publication if it exists."""
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))


def create(connection: Connection, publication: str, tables: Sequence[Table]) -> None:
    """Create the publication with those of the tables that the role may publish; if another run is faster, they join it.
    Raises Busy, and BadInput with the script for an administrator."""
    own = publishable(connection, tables)
    try:
        _under_lock(connection, _creation(publication, [table for table in tables if table.oid in own]))
    except pg_errors.DuplicateObject:
        publish(connection, publication, tables)
    except BadInput as error:
        role = sql.SQL("ALTER PUBLICATION {} OWNER TO {}").format(
            sql.Identifier(publication), sql.Identifier(connection.info.user)
        )
        script = "; ".join(text.as_string(connection) for text in (_creation(publication, tables), role))
        raise BadInput(f"{error} Or let an administrator run in {connection.info.dbname}: {script};") from None


def publishable(connection: Connection, tables: Sequence[Table]) -> set[int]:
    """The OIDs of those tables that the role may publish: its own, and those of roles that it is a member of."""
    rows = connection.execute(
        "SELECT oid::int8 FROM pg_catalog.pg_class WHERE oid = ANY (%s::oid[]) AND pg_catalog.pg_has_role(relowner, 'usage')",
        ([table.oid for table in tables],),
    )
    return {int(row[0]) for row in rows}


def as_published(tables: Sequence[Table], protection: Protection, others: Collection[int] = ()) -> tuple[Table, ...]:
    """The tables; those that are neither in the publication nor among the OIDs `others`, so that the log does not tell their
    changes, as tables without identity."""
    published = {row.table_oid for row in protection.rows} | set(others)
    return tuple(
        table if not table.logged or table.oid in published else table.model_copy(update={"capture": "exact"}) for table in tables
    )


def adding_script(publication: str, tables: Sequence[Table]) -> str:
    """What an administrator runs to let these tables join the publication."""
    return _addition(publication, tables).as_string(None) + ";"


def publish(connection: Connection, publication: str, tables: Sequence[Table], excluded: Collection[int] = ()) -> None:
    """Let those of these tables join the publication that the role may publish; those that are in it already, whole, whoever
    let them in, stay as they are.

    Tables that lost their identity leave it at once, whoever published them: they make the application's UPDATEs fail. So do
    those of the OIDs `excluded`, whose changes nobody wants.
    One that somebody published in part (a row filter, a column list) joins anew. Raises Busy, BadInput.
    """
    found = {
        int(oid): bool(whole)
        for oid, whole in connection.execute(
            f"SELECT r.prrelid::int8, {_WHOLE} FROM pg_catalog.pg_publication_rel r"
            " JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %s",
            (publication,),
        )
    }
    present = read_tables(lambda text: connection.execute(text.encode()).fetchall(), found)
    leaving = [table for table in present if not table.logged or not found[table.oid] or table.oid in excluded]
    leave(connection, publication, leaving)
    stay = {table.oid for table in present} - {table.oid for table in leaving}
    joining = [table for table in tables if table.oid not in stay]
    own = publishable(connection, joining)
    if own:
        _under_lock(connection, _addition(publication, [table for table in joining if table.oid in own]))


def publish_ddl_log(connection: Connection, publication: str) -> None:
    """Let the table of the DDL log, which must be there, join the publication. Raises Busy, BadInput."""
    statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}")
    with suppress(pg_errors.DuplicateObject):
        _under_lock(connection, statement.format(sql.Identifier(publication), sql.SQL(DDL_LOG)))


def leave(connection: Connection, publication: str, tables: Sequence[Table]) -> None:
    """Take these tables out of the publication; one that is not in it, or is dropped, is no error. Raises Busy, BadInput."""
    for table in tables:
        try:
            _under_lock(
                connection,
                sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(sql.Identifier(publication), _listed([table])),
            )
        except (pg_errors.UndefinedObject, pg_errors.UndefinedTable):
            continue


def _creation(publication: str, tables: Sequence[Table]) -> sql.Composed:
    listed = sql.SQL("FOR TABLE {} ").format(_listed(tables)) if tables else sql.SQL("")
    options = sql.SQL("WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)")
    return sql.SQL("CREATE PUBLICATION {} {}{}").format(sql.Identifier(publication), listed, options)


def _addition(publication: str, tables: Sequence[Table]) -> sql.Composed:
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(publication), _listed(tables))


def _listed(tables: Sequence[Table]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(table.schema_name, table.name)) for table in tables)


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
                    "A table could not join or leave the publication, or this be marked, because others hold a lock on it"
                    f" (VACUUM, ANALYZE, CREATE INDEX CONCURRENTLY or DDL); open writers: {blockers(connection)}. Start the"
                    " backup again later."
                ) from None
            time.sleep(1)
        except pg_errors.InsufficientPrivilege as error:
            raise BadInput(
                f"The backup's role may not make or alter the publication: {error.diag.message_primary}. Let it own the"
                " publication, or grant it CREATE on the database; `spanvault cluster preflight` prints the statements."
            ) from None


def read(connection: Connection, database: str, slot: str, publication: str, start: Lsn) -> Protection:
    """The publication's identity as a manifest remembers it.

    Raises Refused when it is missing or does not publish all four operations by leaf table.
    """
    row = connection.execute(
        f"SELECT p.oid::int8, p.xmin::text::int8 FROM pg_catalog.pg_publication p WHERE p.pubname = %s AND {_WHOLLY}",
        (publication,),
    ).fetchone()
    if row is None:
        raise Refused(
            f"The publication {publication!r} was altered by somebody: it must publish all four operations by leaf table. "
            "Release the protection with `spanvault protection release` and take a new full backup."
        )
    rows = connection.execute(
        "SELECT r.prrelid::int8, r.oid::int8, r.xmin::text::int8 FROM pg_catalog.pg_publication_rel r"
        f" WHERE r.prpubid = %s AND {_WHOLE} ORDER BY 1",
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
        present = read(connection, protection.database, protection.slot, protection.publication, protection.start)
    except Refused:
        return None
    if (present.publication_oid, present.publication_xmin) != (protection.publication_oid, protection.publication_xmin):
        return None
    return {row.table_oid for row in set(protection.rows) ^ set(present.rows)}
