"""The DDL log: event triggers that write each change of a table's shape into a published table of the database.

Its rows arrive in the change log in the DDL's own transaction, at the right place among the changes of rows. A new table
with a key joins the publications in the transaction that makes it, so that the log has all its rows from birth (not a
`CREATE TABLE AS`, whose rows precede the trigger); a table that loses its identity leaves them likewise, so that the
application's UPDATEs go on. Whatever fails in the trigger never fails the application's DDL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from psycopg import errors as pg_errors

from spanvault.database.postgres.catalog import FULL_IS_UNUSABLE, NAMES_OBJECTS, TABLE_FIELDS, TABLE_SOURCE, Query, table_of
from spanvault.database.postgres.quoting import literal, quote
from spanvault.database.postgres.server import Connection, scalar
from spanvault.errors import BadInput, Refused
from spanvault.model.base import Value
from spanvault.model.cut import format_time
from spanvault.model.manifest import PublicationRow
from spanvault.model.schema import Table

SCHEMA: Final = "spanvault"
DDL_LOG: Final = f"{SCHEMA}.ddl_log"
KEPT_DAYS: Final = 30
_MARK: Final = "Spanvault: the DDL log"
_OUR_PUBLICATION: Final = "p.pubname ~ '^spanvault_[0-9a-f]{1,12}$' AND NOT p.puballtables"
# Without to_regclass, which wants rights on the schema.
_ITS_TABLE: Final = (
    "(SELECT c.oid, c.relowner FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE (n.nspname, c.relname, c.relkind) = ({literal(SCHEMA)}, 'ddl_log', 'r')) AS its_table"
)
_TRIGGERS: Final = ("spanvault_ddl_command_end", "spanvault_sql_drop")
_TAGS: Final = (
    "ALTER INDEX", "ALTER TABLE", "ALTER TYPE", "CREATE INDEX", "CREATE PUBLICATION", "CREATE SCHEMA", "CREATE TABLE",
    "CREATE TABLE AS", "SELECT INTO",
)  # fmt: skip

State = Literal["installed", "outdated", "incomplete", "absent"]

# A row of pg_attribute that this session sees, and whose transaction is in progress, is this transaction's own work. xmin
# has no epoch; own ones lie between the transaction's id and that of the last thing it wrote, the log's row itself.
_OWN_WORK = """(SELECT coalesce(pg_catalog.jsonb_agg(w.attnum), '[]') FROM (
        SELECT a.attnum, (top & ~4294967295::int8) | a.xmin::text::int8 AS writer
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = one.object AND a.attnum > 0) AS w
      WHERE CASE WHEN w.writer BETWEEN top AND (top & ~4294967295::int8) | own
                 THEN pg_catalog.pg_xact_status(w.writer::text::xid8) = 'in progress' END)"""

_BODY = f"""
DECLARE
  touched oid[];
  created oid[];
  one record;
  publication name;
  line int8;
  own int8;
  top int8 := pg_catalog.pg_current_xact_id()::text::int8;
BEGIN
  IF tg_event = 'sql_drop' THEN
    INSERT INTO {DDL_LOG} (tag, event, object_oid, identity)
    SELECT tg_tag, 'drop', d.objid, d.object_identity FROM pg_catalog.pg_event_trigger_dropped_objects() d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.object_type = 'table' AND NOT d.is_temporary;
    SELECT pg_catalog.array_agg(DISTINCT d.objid) INTO touched FROM pg_catalog.pg_event_trigger_dropped_objects() d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.object_type = 'table column';
    IF EXISTS (SELECT FROM pg_catalog.pg_event_trigger_dropped_objects() d
               WHERE d.object_type IN ('index', 'table constraint')) THEN
      SELECT touched || pg_catalog.array_agg(DISTINCT r.prrelid) INTO touched FROM pg_catalog.pg_publication_rel r
      JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE {_OUR_PUBLICATION};
    END IF;
  ELSIF tg_tag = 'CREATE PUBLICATION' THEN
    FOR publication IN
      SELECT p.pubname FROM pg_catalog.pg_event_trigger_ddl_commands() d JOIN pg_catalog.pg_publication p ON p.oid = d.objid
      WHERE d.classid = 'pg_catalog.pg_publication'::pg_catalog.regclass AND {_OUR_PUBLICATION}
    LOOP
      EXECUTE pg_catalog.format('ALTER PUBLICATION %I ADD TABLE ONLY {DDL_LOG}', publication);
    END LOOP;
    RETURN;
  ELSE
    WITH RECURSIVE named AS (
      SELECT coalesce(i.indrelid, typed.oid, d.objid) AS oid
      FROM pg_catalog.pg_event_trigger_ddl_commands() d
      LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = d.objid
      LEFT JOIN pg_catalog.pg_class o ON o.oid = d.objid AND o.relkind = 'c'
      LEFT JOIN pg_catalog.pg_class typed ON typed.reloftype = o.reltype
      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND NOT d.in_extension),
    family AS (
      SELECT oid FROM named UNION SELECT h.inhrelid FROM pg_catalog.pg_inherits h JOIN family f ON f.oid = h.inhparent)
    SELECT pg_catalog.array_agg(oid) INTO touched FROM family;
    SELECT pg_catalog.array_agg(d.objid) INTO created FROM pg_catalog.pg_event_trigger_ddl_commands() d
    WHERE d.command_tag = 'CREATE TABLE' AND d.object_type = 'table';
  END IF;
  FOR one IN
    SELECT c.oid AS object, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, c.relfilenode AS filenode,
           pg_catalog.jsonb_build_array({TABLE_FIELDS}) AS shape,
           identity.attnums IS NOT NULL AS keyed,
           identity.attnums IS NULL AND (c.relreplident <> 'f' OR {FULL_IS_UNUSABLE}) AS lost,
           c.oid = ANY (created) AND c.relpersistence = 'p' AND pg_catalog.pg_relation_size(c.oid) = 0 AS born,
           {NAMES_OBJECTS} AS names_objects
    FROM {TABLE_SOURCE} AND c.oid = ANY (touched)
  LOOP
    FOR publication IN
      SELECT p.pubname FROM pg_catalog.pg_publication p WHERE {_OUR_PUBLICATION} AND CASE
        WHEN one.born AND one.keyed AND NOT one.names_objects THEN true
        ELSE one.lost AND EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                                  WHERE r.prpubid = p.oid AND r.prrelid = one.object) END
    LOOP
      BEGIN
        EXECUTE pg_catalog.format('ALTER PUBLICATION %I %s TABLE ONLY %s', publication,
                                  CASE WHEN one.lost THEN 'DROP' ELSE 'ADD' END, one.name);
      EXCEPTION WHEN OTHERS THEN
        NULL;  -- a lock that others hold: the next backup reads the table whole
      END;
    END LOOP;
    INSERT INTO {DDL_LOG} (tag, event, object_oid, identity, filenode, shape, published)
    VALUES (tg_tag, CASE WHEN one.born THEN 'create' ELSE 'alter' END, one.object, one.name, one.filenode, one.shape,
            (SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(r.oid::int8, r.xmin::text::int8)), '[]')
             FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
             WHERE r.prrelid = one.object AND {_OUR_PUBLICATION}))
    RETURNING id, xmin::text::int8 INTO line, own;
    UPDATE {DDL_LOG} SET altered = {_OWN_WORK} WHERE id = line;
    IF line % 50 = 0 THEN
      DELETE FROM {DDL_LOG} WHERE id IN (
        SELECT old.id FROM {DDL_LOG} old
        WHERE old.logged_at < pg_catalog.clock_timestamp() - interval '{KEPT_DAYS} days'
        ORDER BY old.id LIMIT 1000 FOR UPDATE SKIP LOCKED);
    END IF;
  END LOOP;
EXCEPTION WHEN OTHERS THEN
  BEGIN
    INSERT INTO {DDL_LOG} (tag, event, object_oid, identity) VALUES (tg_tag, 'failed', 0, SQLERRM);
  EXCEPTION WHEN OTHERS THEN
    NULL;
  END;
END
"""

_VERSION: Final = hashlib.sha256(_BODY.encode()).hexdigest()[:16]

REMOVE_SCRIPT: Final = (
    "".join(f"DROP EVENT TRIGGER IF EXISTS {name};\n" for name in _TRIGGERS) + f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE;\n"
)
INSTALL_SCRIPT: Final = f"""BEGIN;
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
COMMENT ON SCHEMA {SCHEMA} IS {literal(_MARK)};
CREATE TABLE IF NOT EXISTS {DDL_LOG} (
  id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  logged_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
  tag text NOT NULL,
  event text NOT NULL,
  object_oid oid NOT NULL,
  identity text NOT NULL,
  filenode oid,
  shape jsonb,
  altered jsonb,
  published jsonb
);
CREATE OR REPLACE FUNCTION {SCHEMA}.log_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $log_ddl${_BODY}$log_ddl$;
COMMENT ON FUNCTION {SCHEMA}.log_ddl() IS {literal(_VERSION)};
DROP EVENT TRIGGER IF EXISTS {_TRIGGERS[0]};
DROP EVENT TRIGGER IF EXISTS {_TRIGGERS[1]};
CREATE EVENT TRIGGER {_TRIGGERS[0]} ON ddl_command_end WHEN TAG IN ({", ".join(literal(tag) for tag in _TAGS)})
  EXECUTE FUNCTION {SCHEMA}.log_ddl();
CREATE EVENT TRIGGER {_TRIGGERS[1]} ON sql_drop EXECUTE FUNCTION {SCHEMA}.log_ddl();
ALTER EVENT TRIGGER {_TRIGGERS[0]} ENABLE ALWAYS;
ALTER EVENT TRIGGER {_TRIGGERS[1]} ENABLE ALWAYS;
DO $join$
DECLARE publication name;
BEGIN
  FOR publication IN SELECT p.pubname FROM pg_catalog.pg_publication p WHERE {_OUR_PUBLICATION} AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_publication_rel r
    WHERE r.prpubid = p.oid AND r.prrelid = '{DDL_LOG}'::pg_catalog.regclass)
  LOOP
    EXECUTE pg_catalog.format('ALTER PUBLICATION %I ADD TABLE ONLY {DDL_LOG}', publication);
  END LOOP;
END
$join$;
COMMIT;
"""


class DdlLogStatus(Value):
    """The DDL log of one database. `outdated`: made by another version, install it anew; `incomplete`: a part is missing
    or switched off. `published` counts the publications of Spanvault's that carry it, of `publications`."""

    database: str
    state: State
    rows: int = 0
    newest: datetime | None = None
    published: int = 0
    publications: int = 0


@dataclass(frozen=True)
class DdlRow:
    """One row of the log: a table's shape right behind a DDL command. `altered` are the attnums whose catalog entries the
    transaction wrote; `published` the table's entries in Spanvault's publications, as (OID, xmin)."""

    id: int
    event: str
    shape: Table
    altered: frozenset[int]
    published: frozenset[tuple[int, int]]

    def published_as(self, row: PublicationRow) -> bool:
        """Whether the table was in a publication by this very entry."""
        return (row.oid, row.xmin) in self.published


def install(connection: Connection) -> None:
    """Make the DDL log in the connected database, or bring it up to this version. Idempotent.

    Raises BadInput, with the script for an administrator, when the role may not make event triggers; Refused when the
    schema's name is taken.
    """
    _check_schema(connection)
    _run(connection, INSTALL_SCRIPT, "install")


def remove(connection: Connection) -> None:
    """Drop the DDL log of the connected database; none is no error, and a schema of that name of somebody else's stays.

    Raises BadInput, with the script for an administrator, when the role may not.
    """
    if _schema_mark(connection) not in {None, _MARK}:
        return
    _run(connection, REMOVE_SCRIPT, "remove")


def _run(connection: Connection, script: str, verb: str) -> None:
    try:
        with connection.transaction():
            connection.execute(script.removeprefix("BEGIN;\n").removesuffix("COMMIT;\n").encode())
    except pg_errors.InsufficientPrivilege as error:
        role, database = scalar(connection, "SELECT current_user"), connection.info.dbname
        raise BadInput(
            f"The role {role} may not {verb} the DDL log in database {database!r} ({error.diag.message_primary}); let an"
            f" administrator run this there:\n{script}"
        ) from None


def _check_schema(connection: Connection) -> None:
    """The trigger writes with its maker's rights, so it must not write into what somebody else has prepared."""
    if _schema_mark(connection) not in {None, _MARK}:
        raise Refused(
            f"The database {connection.info.dbname!r} has a schema {quote(SCHEMA)} that is not Spanvault's; rename it first."
        )


def _schema_mark(connection: Connection) -> str | None:
    """The comment on the schema, empty if it has none; None if there is no such schema."""
    mark: str | None = scalar(
        connection,
        "SELECT coalesce(pg_catalog.obj_description(oid, 'pg_namespace'), '') FROM pg_catalog.pg_namespace WHERE nspname = %s",
        (SCHEMA,),
    )
    return mark


def status(connection: Connection) -> DdlLogStatus:
    """What the connected database has of the DDL log."""
    database = connection.info.dbname
    triggers = connection.execute(
        "SELECT evtenabled::text FROM pg_catalog.pg_event_trigger WHERE evtname = ANY (%s)", (list(_TRIGGERS),)
    ).fetchall()
    version = scalar(
        connection,
        "SELECT pg_catalog.obj_description(p.oid, 'pg_proc') FROM pg_catalog.pg_proc p"
        " JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE (n.nspname, p.proname) = (%s, 'log_ddl')",
        (SCHEMA,),
    )
    if table_oid(lambda text: connection.execute(text.encode()).fetchall()) is None:
        return DdlLogStatus(database=database, state="incomplete" if triggers else "absent")
    rows, newest = connection.execute(f"SELECT count(*), max(logged_at) FROM {DDL_LOG}".encode()).fetchone() or (0, None)
    publications, published = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid"
        f" AND r.prrelid = (SELECT oid FROM {_ITS_TABLE}))) FROM pg_catalog.pg_publication p WHERE {_OUR_PUBLICATION}"
    ).fetchone() or (0, 0)
    state: State = "installed" if version == _VERSION else "outdated"
    if version is None or [row[0] for row in triggers] != ["A"] * len(_TRIGGERS):
        state = "incomplete"
    return DdlLogStatus(database=database, state=state, rows=rows, newest=newest, published=published, publications=publications)


def may_publish(connection: Connection) -> bool:
    """Whether there is a DDL log and this role may add it to its publications. Where it may not, the log's own trigger
    did, when the publication was made."""
    return bool(
        scalar(
            connection,
            f"SELECT pg_catalog.pg_has_role(relowner, 'usage') FROM {_ITS_TABLE}",
        )
    )


def table_oid(query: Query) -> int | None:
    """The OID of the DDL log's table, or None."""
    rows = query(f"SELECT oid::int8 FROM {_ITS_TABLE}")
    return rows[0][0] if rows else None


def read_rows(query: Query, oids: Collection[int], after: datetime) -> tuple[DdlRow, ...]:
    """What the log says of the shapes of these tables since `after`, in the order of the commands on each table."""
    if not oids:
        return ()
    rows = query(
        f"SELECT id::int8, event, shape::text, altered::text, published::text FROM {DDL_LOG} WHERE shape IS NOT NULL"
        f" AND object_oid IN ({', '.join(str(oid) for oid in oids)}) AND logged_at > {literal(format_time(after))}::timestamptz"
        " ORDER BY id"
    )
    return tuple(_row(row) for row in rows)


def _row(row: Sequence[Any]) -> DdlRow:
    return DdlRow(
        id=row[0],
        event=row[1],
        shape=table_of(json.loads(row[2])),
        altered=frozenset(json.loads(row[3])),
        published=frozenset((oid, xmin) for oid, xmin in json.loads(row[4])),
    )
