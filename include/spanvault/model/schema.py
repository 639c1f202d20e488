"""What a backup knows about databases, tables and columns at a cut.

Tables are tracked by OID and columns by attnum: both survive renames, and a column that is dropped and added again
under the same name gets a new attnum.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from typing import Literal

from pydantic import Field

from spanvault.model.base import Value
from spanvault.model.cut import Lsn

# Columns of change files. A user's column of such a name is stored with one more underscore in front.
SYSTEM_COLUMNS = frozenset({"_op", "_lsn", "_seq", "_xid", "_time", "_old_key", "_unchanged", "_source_key"})


# The catalogs that hold large objects: their OIDs never change (src/include/catalog/pg_largeobject*.h).
LARGE_OBJECT_PAGES = 2613
LARGE_OBJECT_LIST = 2995


def stored_name(column_name: str) -> str:
    """A column's name in data files: its own, unless that is one of SYSTEM_COLUMNS after leading underscores."""
    if "_" + column_name.lstrip("_") in SYSTEM_COLUMNS and column_name.startswith("_"):
        return "_" + column_name
    return column_name


class Column(Value):
    """One live column.

    `type_name` is format_type()'s text, such as `numeric(12,2)`; `base_type` is pg_type.typname, such as `numeric`
    (of a domain: of the domain itself), `type_kind` pg_type.typtype (b base, c composite, d domain, e enum, r range,
    m multirange, p pseudo). `generated` is `s` stored, `v` virtual or empty; generated columns are computed again by a
    restore and never stored in data files.
    """

    attnum: int
    name: str
    type_oid: int
    type_name: str
    typmod: int
    base_type: str
    type_kind: str
    collation_oid: int = 0
    not_null: bool = False
    generated: Literal["", "s", "v"] = ""
    missing_value: str | None = None

    @property
    def stored_as(self) -> str:
        """The name in data files."""
        return stored_name(self.name)

    @property
    def missing_text(self) -> str | None:
        """The text of the value that rows have which are older than the column (pg_attribute.attmissingval)."""
        text = self.missing_value
        if text is None or text == "{NULL}":
            return None
        inner = text[1:-1]
        return re.sub(r"\\(.)", r"\1", inner[1:-1], flags=re.DOTALL) if inner.startswith('"') else inner


class ExtensionTable(Value):
    """What makes a table an extension's configuration table (pg_extension_config_dump): the extension's name, the condition
    that says which rows are the user's (SQL from WHERE on; empty: all), and the OIDs of the extensions' configuration tables
    that its foreign keys refer to, which are loaded before it."""

    name: str
    condition: str = ""
    references: tuple[int, ...] = ()


class Table(Value):
    """One table with storage of its own (ordinary tables and leaf partitions; never a partitioned root).

    `key` holds the attnums of the heal key (empty: none). `capture` says how its rows reach a backup: `log` for fuzzy
    slices healed by the change log, `count` for one read under the seal's snapshot whose later changes are counted row by
    row (REPLICA IDENTITY FULL without a key), `exact` for one read under the seal's snapshot each time, `none` for schema
    only.
    `attributes_version` changes with every change to a column's catalog entry, also one that was changed back.
    `below` are the tables, as (schema, name), that it is a partition of or inherits from, over all levels: who names one of
    them means its rows too.
    `excluded`: by the will of its owner its rows are in no backup, so that `capture` is `none`.
    `extension` is set of an extension's configuration table, which CREATE EXTENSION makes.

    Large objects are two tables as well, both `exact`: `pg_largeobject` and `pg_largeobject_metadata`, with columns of ours
    (database/postgres/large_objects.py). A database without large objects has neither.
    """

    oid: int
    schema_name: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[int, ...] = ()
    replica_identity: Literal["d", "n", "f", "i"] = "d"
    capture: Literal["log", "count", "exact", "none"]
    persistence: Literal["p", "u"] = "p"
    is_partition: bool = False
    below: tuple[tuple[str, str], ...] = ()
    filenode: int = 0
    pages: int = 0
    bytes: int = 0
    estimated_rows: int = 0
    attributes_version: str = ""
    excluded: bool = False
    extension: ExtensionTable | None = None

    @property
    def of_large_objects(self) -> bool:
        """Whether the rows are large objects, or pages of them."""
        return self.oid in {LARGE_OBJECT_PAGES, LARGE_OBJECT_LIST}

    @property
    def whole_only(self) -> bool:
        """Whether only backups and restores of whole databases have the rows."""
        return self.of_large_objects or self.extension is not None

    @property
    def lacks_identity(self) -> bool:
        """Whether the log would tell the changes if only the table had a key."""
        return self.capture == "exact" and not self.whole_only

    @property
    def qualified(self) -> str:
        """`schema.name` for people (not quoted for SQL)."""
        return f"{self.schema_name}.{self.name}"

    @property
    def data_columns(self) -> tuple[Column, ...]:
        """The columns that data files hold, in attnum order: all but generated ones."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The heal key's columns, in key order."""
        by_attnum = {column.attnum: column for column in self.columns}
        return tuple(by_attnum[attnum] for attnum in self.key)

    @property
    def logged(self) -> bool:
        """Whether the table's changes are in the change log."""
        return self.capture in {"log", "count"}

    def fingerprint(self) -> str:
        """A digest of the shape: columns, types, key and identity; equal shapes read and write alike. The table's own
        name is no part of it: tables are tracked by OID."""
        shape = [(c.attnum, c.name, c.type_oid, c.typmod, c.collation_oid, c.generated) for c in self.columns]
        text = repr((shape, self.key, self.replica_identity, self.attributes_version))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class Database(Value):
    """A database and what is needed to create it again."""

    name: str
    oid: int
    encoding: str
    collate: str
    ctype: str
    locale_provider: str = "c"
    locale: str | None = None
    owner: str
    tables: tuple[Table, ...] = Field(default=())

    def table(self, oid: int) -> Table | None:
        """The table of that OID, or None."""
        return _by_oid(self.tables).get(oid)


_indexes: deque[tuple[tuple[Table, ...], dict[int, Table]]] = deque(maxlen=64)


def _by_oid(tables: tuple[Table, ...]) -> dict[int, Table]:
    """The tables by OID, found for each of thousands of spans. Kept outside the value, which is copied with whatever it
    has: told by the tuple's identity."""
    for known, index in tuple(_indexes):
        if known is tables:
            return index
    index = {table.oid: table for table in tables}
    _indexes.append((tables, index))
    return index


class SequenceValue(Value):
    """A sequence's state, read after the cut was fixed: never lower than at the cut. `extension` names the extension whose
    configuration it is, if any."""

    schema_name: str
    name: str
    last_value: int
    is_called: bool
    extension: str = ""


class Fingerprint(Value):
    """PostgreSQL's own count(*) and sum(hashtextextended(row::text, 0)) of a table, read at `lsn`."""

    rows: int
    hash: str
    lsn: Lsn
