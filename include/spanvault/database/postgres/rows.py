"""The rows of a table that belong to a backup, as SQL: what is stored, and what is counted and hashed."""

from __future__ import annotations

from spanvault.database.postgres.fingerprint import fingerprint_sql, query_fingerprint_sql
from spanvault.database.postgres.large_objects import large_object_rows
from spanvault.database.postgres.quoting import qualified, quote
from spanvault.model.schema import Table


def select_slice(table: Table, first_page: int = 0, end_page: int | None = None) -> str:
    """The query for a slice of the table's own rows: heap pages `first_page <= page < end_page`."""
    limits = []
    if first_page:
        limits.append(f"ctid >= '({first_page},0)'")
    if end_page is not None:
        limits.append(f"ctid < '({end_page},0)'")
    if table.of_large_objects:
        return large_object_rows(table.oid, limits)
    columns = ", ".join(quote(column.name) for column in table.data_columns)
    query = f"SELECT {columns} FROM ONLY {qualified(table.schema_name, table.name)}"
    if table.extension is not None:
        return f"{query} {table.extension.condition}".rstrip()
    return query + (" WHERE " + " AND ".join(limits) if limits else "")


def rows_fingerprint_sql(table: Table) -> str:
    """A query for (rows, hash) of the rows that a backup has of the table. The same rows give the same answer on any server
    with the same version."""
    return query_fingerprint_sql(select_slice(table)) if table.whole_only else fingerprint_sql(table.schema_name, table.name)
