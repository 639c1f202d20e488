"""Loading a part of a table exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import qualified
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, claim_unit, record_rows
from spanvault.model.schema import Table


def load_unit(connection: Connection, restore_id: str, unit: str, table: Table, batches: Iterator[pa.RecordBatch]) -> int | None:
    """Append a unit's rows and the record that they are in, in one transaction; the number of rows, or None if an
    earlier try brought them in. `batches` is not touched then.

    Of an extension's configuration table the rows that the backup has all of are removed first: where CREATE EXTENSION
    made some of them, they were among those that were backed up, or the user had deleted them.

    After any exception, or a kill, neither the rows nor the record are there.
    """
    with translated(f"Loading {table.qualified}"), connection.transaction():
        if not claim_unit(connection, restore_id, unit):
            return None
        if table.extension is not None:
            _remove_configuration(connection, table)
        rows = copy_batches(connection, qualified(table.schema_name, table.name), table.data_columns, batches)
        record_rows(connection, restore_id, unit, rows)
    return rows


def _remove_configuration(connection: Connection, table: Table) -> None:
    name, condition = qualified(table.schema_name, table.name), table.extension.condition if table.extension else ""
    statement = f"DELETE FROM ONLY {name} WHERE ctid = ANY (ARRAY (SELECT ctid FROM ONLY {name} {condition}))"
    connection.execute(statement.encode())
