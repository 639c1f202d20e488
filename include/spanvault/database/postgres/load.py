"""Loading a part of a table exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import qualified
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, claim_unit, record_rows
from spanvault.model.schema import Table

# A hash of an enum is one of its OID, which is another in every database: so are hashes of what may hold an enum.
_SPREAD_ANEW = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = pg_catalog.pg_partition_root(%s::regclass) AND EXISTS (
  SELECT FROM pg_catalog.pg_partition_ancestors(%s::regclass) AS above (oid)
  JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = above.oid AND p.partstrat = 'h'
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = ANY (p.partattrs::int2[])
  LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  WHERE p.partexprs IS NOT NULL OR t.typtype <> 'b' OR t.typelem <> 0 AND t.typlen = -1)
"""


def spread_anew(connection: Connection, schema: str, name: str) -> str | None:
    """The partitioned table (quoted, qualified) that a partition's rows must come in through, as they may belong to another
    of its partitions here than there; None where they stay."""
    partition = qualified(schema, name)
    found = connection.execute(_SPREAD_ANEW, [partition, partition]).fetchone()
    return str(found[0]) if found else None


def load_unit(connection: Connection, restore_id: str, unit: str, table: Table, batches: Iterator[pa.RecordBatch]) -> int | None:
    """Append a unit's rows and the record that they are in, in one transaction; the number of rows, or None if an
    earlier try brought them in. `batches` is not touched then.

    Rows of hash partitions come in through the partitioned table where the hash is of this database alone. Of an extension's
    configuration table the rows that the backup has all of are removed first: where CREATE EXTENSION made some of them, they
    were among those that were backed up, or the user had deleted them.

    After any exception, or a kill, neither the rows nor the record are there.
    """
    with translated(f"Loading {table.qualified}"), connection.transaction():
        if not claim_unit(connection, restore_id, unit):
            return None
        if table.extension is not None:
            _remove_configuration(connection, table)
        through = spread_anew(connection, table.schema_name, table.name) if table.is_partition else None
        into = through or qualified(table.schema_name, table.name)
        rows = copy_batches(connection, into, table.data_columns, batches)
        record_rows(connection, restore_id, unit, rows)
    return rows


def _remove_configuration(connection: Connection, table: Table) -> None:
    name, condition = qualified(table.schema_name, table.name), table.extension.condition if table.extension else ""
    statement = f"DELETE FROM ONLY {name} WHERE ctid = ANY (ARRAY (SELECT ctid FROM ONLY {name} {condition}))"
    connection.execute(statement.encode())
