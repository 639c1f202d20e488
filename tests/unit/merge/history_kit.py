"""Histories of one table on a local storage: layers with base files and change files, as backups write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import file_schema
from spanvault.columnar.write import DataFileWriter
from spanvault.merge.history import TableHistory, TableLayer
from spanvault.merge.shapes import values_as_text
from spanvault.merge.table import table_at
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Column, Table
from spanvault.storage.local import LocalStorage

SUBDIR = "2026/11/22-143000.00"
NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)
LIST = pa.list_(pa.string())
SYSTEM_FIELDS = [
    pa.field("_op", pa.string()),
    pa.field("_lsn", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_time", pa.timestamp("us", tz="UTC")),
    pa.field("_old_key", LIST),
    pa.field("_unchanged", LIST),
    pa.field("_source_key", LIST),
]
OLD_SYSTEM_FIELDS = SYSTEM_FIELDS[:5]  # a full's change files never lack values, and need no more

Row = tuple[Any, ...]
Role = Literal["base", "change", "exact"]
TextRow = tuple[str | None, ...]


def column(attnum: int, name: str, type_name: str = "text", oid: int = 25, **more: Any) -> Column:
    """A column; text unless told otherwise."""
    whole = {"typmod": -1, "base_type": type_name, "type_kind": "b", **more}
    return Column(attnum=attnum, name=name, type_oid=oid, type_name=type_name, **whole)


def table(*columns: Column, key: tuple[int, ...] = (), capture: Literal["log", "count", "exact", "none"] = "log") -> Table:
    """public.t"""
    return Table(oid=16400, schema_name="public", name="t", columns=columns, key=key, capture=capture)


@dataclass(frozen=True)
class Change:
    """A row of a change file. `row` has the values of all data columns, or for D of a keyed table at least its key's;
    None for T. `lsn` is `seq` unless given."""

    operation: str
    seq: int
    row: Row | None = None
    unchanged: tuple[str, ...] = ()
    source: tuple[str, ...] | None = None
    lsn: int | None = None


@dataclass
class History:
    """Writes data files below `root`, layer by layer: `layer` begins one, `base` and `changes` add files to it."""

    root: Path
    table: Table
    parts: list[tuple[Table, list[DataFile]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts.append((self.table, []))

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.root, f"file://{self.root}")

    @property
    def files(self) -> list[DataFile]:
        """Those of the newest layer."""
        return self.parts[-1][1]

    def layer(self, shape: Table | None = None) -> None:
        """Begin the next layer, in the shape before unless one is given."""
        self.table = shape or self.table
        self.parts.append((self.table, []))

    def layers(self) -> tuple[TableLayer, ...]:
        return tuple(
            TableLayer(self.storage, SUBDIR, number, shape, tuple(files)) for number, (shape, files) in enumerate(self.parts)
        )

    def history(self, upto: int | None = None) -> TableHistory:
        return TableHistory(self.table, self.layers(), None if upto is None else Lsn(upto))

    def base(self, rows: Sequence[Row], *, text: Sequence[str] = (), role: Role = "base") -> None:
        """A file of whole rows."""
        schema = file_schema(self.table, frozenset(text))
        self.write([stored(self.table, row, schema) for row in rows], schema, role, text, sequence=0)

    def changes(self, changes: Sequence[Change], *, text: Sequence[str] = (), old: bool = False, part: bool = False) -> None:
        """A segment; with `part`, more of the segment before. `old`: without the columns for missing values."""
        data = file_schema(self.table, frozenset(text))
        schema = pa.schema([*(OLD_SYSTEM_FIELDS if old else SYSTEM_FIELDS), *data])
        rows = [self._change_row(change, data, old=old) for change in changes]
        sequence = len([file for file in self.files if file.role == "change"])
        self.write(rows, schema, "change", text, sequence=sequence - part)

    def _change_row(self, change: Change, data: pa.Schema, *, old: bool) -> dict[str, Any]:
        lsn = change.seq if change.lsn is None else change.lsn
        row: dict[str, Any] = {"_op": change.operation, "_lsn": lsn, "_seq": change.seq, "_xid": change.seq, "_time": NOW}
        if not old:
            row |= {"_old_key": None, "_unchanged": list(change.unchanged) or None}
            row["_source_key"] = None if change.source is None else list(change.source)
        if change.row is None:
            return row | dict.fromkeys(data.names)
        values = stored(self.table, change.row, data)
        if change.operation == "D" and self.table.capture != "count":
            keys = {key.stored_as for key in self.table.key_columns}
            values = {name: value if name in keys else None for name, value in values.items()}
        return row | {name: None if name in change.unchanged else value for name, value in values.items()}

    def write(self, rows: list[dict[str, Any]], schema: pa.Schema, role: Role, text: Sequence[str], sequence: int) -> None:
        path = data_path(len(self.parts) - 1)
        with DataFileWriter(self.storage, object_key(SUBDIR, path), schema) as writer:
            for first in range(0, len(rows), 3):  # several batches, so that row numbers across them matter
                writer.write_batch(pa.RecordBatch.from_pylist(rows[first : first + 3], schema=schema))
        self.add(path, writer, role, text, sequence)

    def add(self, path: str, writer: DataFileWriter, role: Role, text: Iterable[str] = (), sequence: int = 0) -> None:
        """Put a file that was written on the newest layer's list."""
        self.files.append(
            DataFile(
                path=path,
                sha256=writer.sha256,
                bytes=writer.bytes,
                rows=writer.rows,
                database="shop",
                table_oid=self.table.oid,
                role=role,
                span=f"span-{len(self.files):03d}" if role == "base" else None,
                sequence=sequence,
                text_columns=tuple(text),
            )
        )

    def state(self, upto: int | None = None) -> Counter[TextRow]:
        """Every row as text with how often it came."""
        return state_of(self.history(upto))


def state_of(history: TableHistory) -> Counter[TextRow]:
    """Every row as text with how often it came."""
    names = [one.stored_as for one in history.table.data_columns]
    found: Counter[TextRow] = Counter()
    for batch in table_at(history, None):
        assert batch.schema.names == names
        columns = [values_as_text(one).to_pylist() for one in batch.columns]
        found.update(zip(*columns, strict=True) if columns else [()] * batch.num_rows)
    return found


def stored(of: Table, row: Row, schema: pa.Schema) -> dict[str, Any]:
    """The values of a row by stored name, as text where the file has text."""
    values: dict[str, Any] = {} if of.data_columns else {"_row": None}
    for one, value in zip(of.data_columns, row, strict=True):
        is_text = pa.types.is_string(schema.field(one.stored_as).type)
        values[one.stored_as] = str(value) if is_text and value is not None else value
    return values


def expected(rows: Iterable[Row]) -> Counter[TextRow]:
    """The rows as text with how often they come."""
    return Counter(tuple(None if value is None else str(value) for value in row) for row in rows)
