"""Large objects as rows: a list of them, and their pages.

`pg_largeobject` and `pg_largeobject_metadata` are what PostgreSQL keeps them in; both are MVCC, and to read them needs no
privilege on the single object (https://www.postgresql.org/docs/18/catalog-pg-largeobject.html). A page holds up to a
quarter of a block; missing pages, and what a page lacks behind its data, read as zeros. An empty page says nothing but
where an object ends, which lo_truncate made it for: it is kept in the list, as `empty_end`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import literal, quote
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, claim_unit, record_rows
from spanvault.errors import AlreadyExists
from spanvault.model.schema import LARGE_OBJECT_LIST, LARGE_OBJECT_PAGES, Column, Table
from spanvault.model.sentences import few

_SHOWN = 5  # OIDs in a sentence
_WRITE = 0x20000  # INV_WRITE of libpq/libpq-fs.h

Listed = Mapping[str, Any]
"""A row of the list, by column."""


def _column(attnum: int, name: str, type_oid: int, type_name: str, base_type: str) -> Column:
    return Column(attnum=attnum, name=name, type_oid=type_oid, type_name=type_name, typmod=-1, base_type=base_type, type_kind="b")


_COLUMNS = {
    LARGE_OBJECT_PAGES: (
        _column(1, "loid", 26, "oid", "oid"),
        _column(2, "first_byte", 20, "bigint", "int8"),
        _column(3, "data", 17, "bytea", "bytea"),
    ),
    LARGE_OBJECT_LIST: (
        _column(1, "loid", 26, "oid", "oid"),
        _column(2, "owner", 25, "text", "text"),
        _column(3, "privileges", 25, "text", "text"),
        _column(4, "comment", 25, "text", "text"),
        _column(5, "labels", 25, "text", "text"),
        _column(6, "empty_end", 20, "bigint", "int8"),
    ),
}
_PAGE_BYTES = "(pg_catalog.current_setting('block_size')::int8 / 4)"  # LOBLKSIZE of storage/large_object.h
_PAGES = f"""SELECT p.loid, p.pageno * {_PAGE_BYTES} AS first_byte, p.data FROM pg_catalog.pg_largeobject p
WHERE p.data <> ''::bytea AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid = p.loid)"""
_LIST = f"""SELECT p.oid AS loid, (SELECT rolname::text FROM pg_catalog.pg_roles WHERE oid = p.lomowner) AS owner,
  CASE WHEN p.lomacl IS NOT NULL THEN
    (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(
       coalesce(e.rolname, ''), r.rolname, a.privilege_type, a.is_grantable)
       ORDER BY e.rolname, r.rolname, a.privilege_type COLLATE "C"), '[]')::text
     FROM pg_catalog.aclexplode(p.lomacl) a LEFT JOIN pg_catalog.pg_roles e ON e.oid = a.grantee
     LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantor) END AS privileges,
  (SELECT d.description FROM pg_catalog.pg_description d
   WHERE d.classoid = {LARGE_OBJECT_PAGES} AND d.objoid = p.oid AND d.objsubid = 0) AS comment,
  (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(s.provider, s.label) ORDER BY s.provider COLLATE "C")::text
   FROM pg_catalog.pg_seclabel s WHERE s.classoid = {LARGE_OBJECT_PAGES} AND s.objoid = p.oid) AS labels,
  (SELECT CASE WHEN o.data = ''::bytea THEN o.pageno * {_PAGE_BYTES} END FROM pg_catalog.pg_largeobject o
   WHERE o.loid = p.oid ORDER BY o.pageno DESC LIMIT 1) AS empty_end
FROM pg_catalog.pg_largeobject_metadata p WHERE true"""
_QUERIES = {LARGE_OBJECT_PAGES: _PAGES, LARGE_OBJECT_LIST: _LIST}


def as_large_objects(catalog: Table) -> Table:
    """One of the two catalogs as a table of a backup: read whole, with the columns that `large_object_rows` gives."""
    return catalog.model_copy(update={"columns": _COLUMNS[catalog.oid], "key": (), "capture": "exact", "attributes_version": ""})


def large_object_rows(oid: int, limits: Iterable[str]) -> str:
    """The query for the pages or the list, with more conditions on the catalog's `ctid`. The objects' pages come with the
    position of their first byte, as the size of pages is the server's; without those that are empty."""
    return _QUERIES[oid] + "".join(f" AND p.{limit}" for limit in limits)


def make_large_objects(connection: Connection, objects: Sequence[Listed], *, grants: bool) -> None:
    """In the connection's transaction: make large objects without data, with their comments and labels, and with `grants`
    their owners and privileges.

    Raises AlreadyExists naming the OIDs that are taken, and what is missing for owners, grants and labels.
    """
    oids = [int(one["loid"]) for one in objects]
    with translated("Creating large objects"):
        taken = connection.execute(
            "SELECT oid::int8 FROM pg_catalog.pg_largeobject_metadata WHERE oid = ANY (%s::oid[]) ORDER BY oid", [oids]
        ).fetchall()
        if taken:
            raise AlreadyExists(
                f"The database {connection.info.dbname!r} has large objects with these OIDs already:"
                f" {few([str(row[0]) for row in taken], _SHOWN)}. Remove them (lo_unlink), or restore into a new database."
            )
        connection.execute("SELECT pg_catalog.lo_create(one) FROM unnest(%s::oid[]) AS one", [oids])
        for one in objects:
            if one["empty_end"] is not None:
                end = [one["loid"], _WRITE, one["empty_end"]]
                connection.execute("SELECT pg_catalog.lo_truncate64(pg_catalog.lo_open(%s::oid, %s), %s)", end)
        script = "".join(statement for one in objects for statement in _said_about(one, grants=grants))
        if script:
            connection.execute(script.encode())


def remove_large_objects(connection: Connection, oids: Sequence[int]) -> None:
    """In the connection's transaction: remove those that are there."""
    with translated("Removing large objects"):
        connection.execute(
            "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = ANY (%s::oid[])", [list(oids)]
        )


def load_pages(connection: Connection, restore_id: str, unit: str, table: Table, batches: Iterator[pa.RecordBatch]) -> int | None:
    """As `load_unit`, of pages: they are written into objects that are there."""
    with translated("Loading large objects"), connection.transaction():
        if not claim_unit(connection, restore_id, unit):
            return None
        connection.execute(
            "CREATE TEMP TABLE spanvault_pages (loid oid, first_byte int8, data bytea) ON COMMIT DROP;"
            "ALTER TABLE pg_temp.spanvault_pages ALTER data SET STORAGE MAIN"  # a page stays in its row, as in the catalog
        )
        rows = copy_batches(connection, "pg_temp.spanvault_pages", table.data_columns, batches)
        connection.execute("SELECT count(pg_catalog.lo_put(loid, first_byte, data)) FROM pg_temp.spanvault_pages")
        record_rows(connection, restore_id, unit, rows)
    return rows


def _said_about(one: Listed, *, grants: bool) -> Iterator[str]:
    name = f"LARGE OBJECT {int(one['loid'])}"
    if one["comment"] is not None:
        yield f"COMMENT ON {name} IS {literal(one['comment'])};"
    for provider, label in json.loads(one["labels"] or "[]"):
        yield f"SECURITY LABEL FOR {quote(provider)} ON {name} IS {literal(label)};"
    if grants:
        yield f"ALTER {name} OWNER TO {quote(one['owner'])};"
        if one["privileges"] is not None:
            yield f"REVOKE ALL ON {name} FROM {quote(one['owner'])};"
            yield from _granted(name, one["owner"], json.loads(one["privileges"]))


def _granted(name: str, owner: str, privileges: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The grants, each behind the one that allows its grantor to make it."""
    left, able = list(privileges), {(owner, "SELECT"), (owner, "UPDATE")}
    while left:
        ready = [one for one in left if (one[1], one[2]) in able] or left
        for grantee, grantor, privilege, grantable in ready:
            option = " WITH GRANT OPTION" if grantable else ""
            grant = f"GRANT {privilege} ON {name} TO {quote(grantee) if grantee else 'PUBLIC'}{option};"
            yield grant if grantor == owner else f"SET LOCAL ROLE {quote(grantor)};{grant}RESET ROLE;"
        able |= {(grantee, privilege) for grantee, _, privilege, grantable in ready if grantable}
        left = [one for one in left if one not in ready]
