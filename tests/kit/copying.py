"""Tables of a test through the product's own way out of and into PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from spanvault.columnar.read import read_batches, verified_file
from spanvault.database.postgres.connect import connect, connection_parameters
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.copy_out import CopySession, WrittenFile, export_query
from spanvault.database.postgres.quoting import quote
from spanvault.model.schema import Column, Table
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from tests.kit.servers import TestDatabase


def table_shape(database: TestDatabase, name: str) -> Table:
    """The table `public.name` as far as values go."""
    with connect(database.endpoint) as connection:
        rows = connection.execute(
            """select attnum, attname, atttypid, format_type(atttypid, atttypmod), atttypmod, typname, typtype, attgenerated
            from pg_attribute join pg_type t on t.oid = atttypid
            where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum""",
            [f"public.{quote(name)}"],
        ).fetchall()
    names = ("attnum", "name", "type_oid", "type_name", "typmod", "base_type", "type_kind", "generated")
    columns = tuple(Column(**dict(zip(names, row, strict=True))) for row in rows)
    return Table(oid=1, schema_name="public", name=name, columns=columns, capture="log")


def export(database: TestDatabase, table: Table, storage: Storage, key: str = "data") -> WrittenFile:
    """Write all rows of `table` under `key`, in a transaction as a span has it."""
    columns = ", ".join(quote(column.name) for column in table.data_columns)
    relation = f"public.{quote(table.name)}"
    with CopySession(connection_parameters(database.endpoint)) as session:
        session.execute("begin isolation level repeatable read read only")
        session.execute(f"lock table only {relation} in access share mode")
        written = export_query(session, f"select {columns} from only {relation}", table, storage, key)
        session.execute("commit")
    return written


def local_storage(folder: Path) -> Storage:
    """A Storage below `folder`."""
    return LocalStorage(folder, f"file://{folder}")


def round_trip(database: TestDatabase, folder: Path, name: str = "source", key: tuple[int, ...] = ()) -> WrittenFile:
    """Export `name`, with these attnums for its key, into `folder`, load it into `copy`, and require that nothing differs."""
    table, storage = table_shape(database, name).model_copy(update={"key": key}), local_storage(folder)
    written = export(database, table, storage)
    database.execute(f"drop table if exists copy; create table copy (like {quote(name)} including generated)")
    with (
        connect(database.endpoint, autocommit=False) as connection,
        verified_file(storage, "data", sha256=written.sha256, size=written.bytes) as file,
    ):
        loaded = copy_batches(connection, "public.copy", table.data_columns, read_batches(file))
    assert loaded == written.rows == database.execute(f"select count(*) from {quote(name)}")[0][0]
    for one, other in ((quote(name), "copy"), ("copy", quote(name))):
        assert database.execute(f"select x::text from {one} x except all select x::text from {other} x") == []
    return written
