"""What a database holds, read from PostgreSQL's catalogs under the caller's snapshot.

Queries are plain SQL text so that both kinds of session (psycopg for planning, the COPY session for spans) can run them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spanvault.database.postgres.large_objects import as_large_objects
from spanvault.model.manifest import View
from spanvault.model.schema import (
    LARGE_OBJECT_LIST,
    LARGE_OBJECT_PAGES,
    Column,
    Database,
    ExtensionTable,
    SequenceValue,
    Table,
)
from spanvault.model.sentences import counted

Rows = Sequence[Sequence[Any]]
Query = Callable[[str], Rows]

# Schemas that are never the user's: the system's, where restores keep their progress, and the DDL log's.
_USER_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'spanvault_restore', 'spanvault')"
# Members of an extension come with CREATE EXTENSION.
_NOT_EXTENSION = (
    "NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass"
    " AND d.objid = c.oid AND d.deptype = 'e')"
)

# From version 18 on the server refuses UPDATE and DELETE of a published table whose replica identity holds a generated column
# that is not published, and REPLICA IDENTITY FULL holds them all. Virtual ones cannot be published, and to publish stored ones
# would be a setting of the whole publication, not of such tables. Earlier servers leave them out of the log and go on.
FULL_IS_UNUSABLE = """(c.relreplident = 'f' AND pg_catalog.current_setting('server_version_num')::int >= 180000
       AND EXISTS (SELECT FROM pg_catalog.pg_attribute g
                   WHERE g.attrelid = c.oid AND g.attnum > 0 AND NOT g.attisdropped AND g.attgenerated <> ''))"""

# The identity rule (which key UPDATE and DELETE carry in the log, and whether publishing is safe for the application):
# an index serves if it is valid, immediate, not an exclusion constraint's and holds no generated column. DEFAULT means
# the primary key, USING INDEX the chosen one; under FULL, where it can be used, any such unique index over not-null columns is
# the heal key.
_KEY = f"""
LEFT JOIN LATERAL (
  SELECT i.indkey::text AS attnums, i.indnkeyatts::int8 AS width
  FROM pg_catalog.pg_index i
  WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND i.indisunique AND NOT i.indisexclusion
    AND i.indpred IS NULL AND i.indexprs IS NULL
    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident
        WHEN 'f' THEN NOT {FULL_IS_UNUSABLE} ELSE false END
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid
                    AND k.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) AND (k.attgenerated <> '' OR NOT k.attnotnull))
  ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1) AS identity ON true
"""

_FIRST_USER_OID = 16384  # FirstNormalObjectId in PostgreSQL's transam.h
# Types whose values hold the OIDs of objects or roles and print their names.
_NAMING_TYPES = (
    "aclitem", "regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc",
    "regprocedure", "regrole", "regtype",
)  # fmt: skip
_NAMING = ", ".join(f"'pg_catalog.{name}', 'pg_catalog.{name}[]'" for name in _NAMING_TYPES)
# Whether any value of table `c` prints names, also inside arrays, domains, composite types and ranges. Other built-in types
# are left out at once: to look into each of them would make a listing of many tables slow.
NAMES_OBJECTS = f"""(WITH RECURSIVE used (oid) AS (
            SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND (a.atttypid >= {_FIRST_USER_OID} OR a.atttypid = ANY (ARRAY[{_NAMING}]::pg_catalog.regtype[]))
            UNION SELECT inside.oid FROM used JOIN pg_catalog.pg_type t ON t.oid = used.oid AND t.typtype <> 'p',
            LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype
                     UNION ALL SELECT f.atttypid FROM pg_catalog.pg_attribute f
                     WHERE f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped
                     UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r
                     WHERE t.typtype IN ('r', 'm') AND t.oid IN (r.rngtypid, r.rngmultitypid)) AS inside (oid)
            WHERE inside.oid <> 0)
        SELECT coalesce(pg_catalog.bool_or(used.oid = ANY (ARRAY[{_NAMING}]::pg_catalog.regtype[])), false) FROM used)"""

# What `table_of` makes a Table of, also inside the DDL log's trigger.
TABLE_FIELDS = f"""c.oid::int8, n.nspname, c.relname, c.relpersistence::text, c.relreplident::text, c.relispartition,
       c.relfilenode::int8,
       coalesce(pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int, 0)::int8,
       coalesce(pg_catalog.pg_table_size(c.oid), 0)::int8, greatest(c.reltuples, 0)::int8,
       identity.attnums, identity.width,
       (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
            a.attnum, a.attname, a.atttypid::int8, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod,
            t.typname, t.typtype, a.attcollation::int8, a.attnotnull, a.attgenerated,
            CASE WHEN a.atthasmissing THEN a.attmissingval::text END) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text,
       (SELECT pg_catalog.string_agg(a.attnum || ':' || a.xmin, ',' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
       (WITH RECURSIVE above (oid) AS (
            SELECT h.inhparent FROM pg_catalog.pg_inherits h WHERE h.inhrelid = c.oid
            UNION SELECT h.inhparent FROM above JOIN pg_catalog.pg_inherits h ON h.inhrelid = above.oid)
        SELECT pg_catalog.json_agg(pg_catalog.json_build_array(s.nspname, k.relname) ORDER BY s.nspname, k.relname)
        FROM above JOIN pg_catalog.pg_class k ON k.oid = above.oid
        JOIN pg_catalog.pg_namespace s ON s.oid = k.relnamespace)::text,
       {NAMES_OBJECTS}, {FULL_IS_UNUSABLE}"""
_NAMES_OBJECTS, _FULL_IS_UNUSABLE = 15, 16  # their places
TABLE_SOURCE = f"""pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
{_KEY}
WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u') AND {_USER_SCHEMA} AND {_NOT_EXTENSION}"""

# Configuration tables of extensions, wherever they are; and the catalogs of large objects, if there are any.
_CONFIGURED = """(SELECT x.extname::text AS name, x.extcondition[a.place] AS condition
  FROM pg_catalog.pg_extension x, unnest(x.extconfig) WITH ORDINALITY AS a (member, place)
  WHERE a.member = c.oid LIMIT 1)"""
_OTHER_SOURCE = f"""pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
{_KEY}
LEFT JOIN LATERAL {_CONFIGURED} AS configured ON true
WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u') AND (
  configured.name IS NOT NULL
  OR c.oid IN ({LARGE_OBJECT_PAGES}, {LARGE_OBJECT_LIST})
    AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata))"""
_REFERENCES = """(SELECT pg_catalog.array_agg(DISTINCT f.confrelid::int8) FROM pg_catalog.pg_constraint f
        WHERE f.contype = 'f' AND f.conrelid = c.oid AND f.confrelid <> c.oid
        AND EXISTS (SELECT FROM pg_catalog.pg_extension y WHERE f.confrelid = ANY (y.extconfig)))"""


def read_tables(query: Query, oids: Iterable[int] | None = None) -> tuple[Table, ...]:
    """All user tables with storage, extensions' configuration tables and large objects among them, or those of the given
    OIDs, ordered by name."""
    wanted = None if oids is None else set(oids)
    condition = "" if wanted is None else f"AND c.oid IN ({', '.join(map(str, sorted(wanted))) or '0'})"
    rows = query(f"SELECT {TABLE_FIELDS} FROM {TABLE_SOURCE} {condition} ORDER BY n.nspname, c.relname")
    own = [table_of(row) for row in rows]
    if wanted is not None and wanted <= {table.oid for table in own}:
        return tuple(own)
    others = query(
        f"SELECT {TABLE_FIELDS}, configured.name, configured.condition, {_REFERENCES} FROM {_OTHER_SOURCE} {condition}"
        " ORDER BY n.nspname, c.relname"
    )
    known = {table.oid for table in own}
    own += [_other(row) for row in others if row[0] not in known]
    return tuple(sorted(own, key=lambda table: (table.schema_name, table.name)))


def _other(row: Sequence[Any]) -> Table:
    """A row of TABLE_FIELDS and what makes the table an extension's, as a Table that is read whole."""
    *fields, extension, condition, references = row
    table = table_of(fields)
    if extension is None:
        return as_large_objects(table)
    configured = ExtensionTable(name=extension, condition=condition or "", references=tuple(sorted(references or ())))
    capture = "none" if table.persistence == "u" else "exact"
    return table.model_copy(update={"extension": configured, "capture": capture})


def table_of(row: Sequence[Any]) -> Table:
    """A row of TABLE_FIELDS as a Table."""
    columns = tuple(_column(fields) for fields in json.loads(row[12] or "[]"))
    key = tuple(int(attnum) for attnum in row[10].split()[: row[11]]) if row[10] else ()
    # A DDL log of an older version does not know.
    untold = any(len(row) > place and row[place] for place in (_NAMES_OBJECTS, _FULL_IS_UNUSABLE))
    return Table(
        oid=row[0],
        schema_name=row[1],
        name=row[2],
        columns=columns,
        key=key,
        replica_identity=row[4],
        capture=_capture(row[3], row[4], key, untold=untold),
        persistence=row[3],
        is_partition=row[5],
        filenode=row[6],
        pages=row[7],
        bytes=row[8],
        estimated_rows=row[9],
        attributes_version=row[13] or "",
        below=tuple((schema, name) for schema, name in json.loads(row[14] or "[]")),
    )


def _capture(persistence: str, identity: str, key: tuple[int, ...], *, untold: bool) -> Any:
    """`untold`: an identity that must not be published, or values whose text changes when an object that they name is
    renamed, without a change in the log."""
    if persistence == "u":
        return "none"
    if untold:
        return "exact"
    if key:
        return "log"
    return "count" if identity == "f" else "exact"


def _column(fields: Sequence[Any]) -> Column:
    return Column(
        attnum=fields[0],
        name=fields[1],
        type_oid=fields[2],
        type_name=fields[3],
        typmod=fields[4],
        base_type=fields[5],
        type_kind=fields[6],
        collation_oid=fields[7],
        not_null=fields[8],
        generated=fields[9],
        missing_value=fields[10],
    )


def read_database(query: Query) -> Database:
    """The current database's properties, without tables."""
    version = int(query("SELECT pg_catalog.current_setting('server_version_num')")[0][0])
    provider, locale = "d.datlocprovider::text", "NULL"
    if version < 150000:
        provider = "'c'"
    elif version < 170000:
        locale = "d.daticulocale"
    else:
        locale = "d.datlocale"
    row = query(
        f"""SELECT d.datname, d.oid::int8, pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
                   {provider}, {locale}, pg_catalog.pg_get_userbyid(d.datdba)
            FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"""
    )[0]
    return Database(
        name=row[0],
        oid=row[1],
        encoding=row[2],
        collate=row[3],
        ctype=row[4],
        locale_provider=row[5],
        locale=row[6],
        owner=row[7],
    )


def user_databases(query: Query) -> list[str]:
    """The names of all databases that people may use, templates left out, in order of name."""
    rows = query(
        "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2"
        " ORDER BY datname"
    )
    return [row[0] for row in rows]


def read_views(query: Query) -> tuple[View, ...]:
    """The views and materialized views of the current database."""
    rows = query(
        f"""SELECT n.nspname, c.relname, c.relkind = 'm', c.relispopulated
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('v', 'm') AND {_USER_SCHEMA} AND {_NOT_EXTENSION} ORDER BY 1, 2"""
    )
    return tuple(View(schema_name=row[0], name=row[1], materialized=row[2], populated=row[3]) for row in rows)


def read_sequences(query: Query) -> tuple[SequenceValue, ...]:
    """Every sequence's present value. Sequences are not transactional: read them after the cut, so that no value is
    too low."""
    rows = query(
        f"""SELECT n.nspname, c.relname,
                   pg_catalog.format('SELECT %L, %L, last_value::int8, is_called, %L FROM %I.%I',
                                     n.nspname, c.relname, coalesce(configured.name, ''), n.nspname, c.relname)
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN LATERAL {_CONFIGURED} AS configured ON true
            WHERE c.relkind = 'S' AND c.relpersistence <> 't'
              AND (configured.name IS NOT NULL OR ({_USER_SCHEMA} AND {_NOT_EXTENSION})) ORDER BY 1, 2"""
    )
    values: list[SequenceValue] = []
    for first in range(0, len(rows), 200):
        statement = " UNION ALL ".join(row[2] for row in rows[first : first + 200])
        values += [
            SequenceValue(schema_name=row[0], name=row[1], last_value=row[2], is_called=row[3], extension=row[4])
            for row in query(statement)
        ]
    return tuple(values)


def types_version(query: Query) -> str:
    """A digest of all enum labels and composite attributes: while it stays the same, the text of stored values of such types
    does, too. Domains add nothing: the type that one is made of never changes, and its constraints change no text."""
    row = query(
        """SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(piece, ',' ORDER BY piece), '')) FROM (
             SELECT 'e' || e.oid || ':' || e.enumlabel FROM pg_catalog.pg_enum e
             UNION ALL
             SELECT 'c' || a.attrelid || ':' || a.attnum || ':' || a.atttypid || ':' || a.atttypmod || ':' || a.attisdropped
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind = 'c'
             WHERE a.attnum > 0) AS pieces (piece)"""
    )[0]
    return str(row[0])


def omissions(query: Query, *, whole: bool) -> tuple[str, ...]:
    """What the current database holds and a backup of it does not, a phrase each. `whole`: the backup is of the whole
    database."""
    unlogged = query(
        f"""SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND c.relpersistence = 'u' AND {_USER_SCHEMA}"""
    )[0][0]
    hidden = query(
        """SELECT count(*) FROM pg_catalog.pg_subscription
           WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
             AND pg_catalog.current_setting('is_superuser') = 'off'"""
    )[0][0]
    found = [(unlogged, f"the rows of {counted(unlogged, 'unlogged table')} (definitions are kept)")]
    found.append((hidden, f"{counted(hidden, 'subscription')} (only a superuser may read them)"))
    if not whole:
        only = "(only a backup of the whole database has them)"
        objects = query("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")[0][0]
        extensions = query("SELECT count(*) FROM pg_catalog.pg_extension WHERE extconfig IS NOT NULL")[0][0]
        found += [
            (objects, f"{counted(objects, 'large object')} {only}"),
            (extensions, f"the configuration tables of {counted(extensions, 'extension')} {only}"),
        ]
    return tuple(phrase for count, phrase in found if count)
