"""Writing change files: what happened to the rows of one table, in the columns of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import ROW_MARKER, file_schema
from spanvault.columnar.write import DataFileWriter, text_batch_to_typed
from spanvault.database.postgres.pgoutput import EPOCH, Change, Value
from spanvault.database.postgres.tuple_columns import RawTuple, tuple_columns
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table
from spanvault.model.uri import DEFAULT_LOCALITY
from spanvault.storage.base import Storage

_LIST = pa.list_(pa.string())
CHANGE_FIELDS = (
    pa.field("_op", pa.string()),
    pa.field("_lsn", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_time", pa.timestamp("us", tz="UTC")),
    pa.field("_old_key", _LIST),
    pa.field("_unchanged", _LIST),
    pa.field("_source_key", _LIST),
)
_BATCH_ROWS = 10_000
# The log counts from 2000, Arrow from 1970.
_EPOCH_MICROSECONDS: Final = (EPOCH - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

T = TypeVar("T")

KeyText = Sequence[bytes | None]


class ChangeRow(NamedTuple):
    """One row of a change file: I, U, D or T with its place in the log, and the values of the table's data columns in
    attnum order, or the complete tuple that has just these. Keys are in key order, `unchanged` names columns as stored."""

    operation: str
    change: Change
    values: Sequence[Value] | RawTuple
    old_key: KeyText | None = None
    unchanged: Sequence[str] | None = None
    source_key: KeyText | None = None


class ChangeFiles:
    """Writes the change files of one layer and database below `<subdir>/<number>/data/` of a storage, at the URI of the
    locality `tier` if one is given."""

    def __init__(self, storage: Storage, subdir: str, number: int, database: str, tier: str | None = None) -> None:
        self._tier = tier
        self._storage = storage
        self._subdir = subdir
        self._number = number
        self._database = database
        self._sequence = 0

    def write(self, table: Table, rows: Sequence[ChangeRow]) -> DataFile:
        """Write a file; a later one of the same table holds later changes. A column of which a value has no typed form is
        written as text."""
        self._sequence += 1
        text_columns: frozenset[str] = frozenset()
        while True:
            try:
                return self._write(table, rows, text_columns)
            except _NotConvertibleError as error:
                text_columns |= error.columns

    def _write(self, table: Table, rows: Sequence[ChangeRow], text_columns: frozenset[str]) -> DataFile:
        schema = file_schema(table, text_columns)
        whole = pa.schema([*CHANGE_FIELDS, *schema])
        path = data_path(self._number, self._tier)
        with DataFileWriter(self._storage, object_key(self._subdir, path), whole) as writer:
            for batch in _batches(rows, table):
                typed, failed = text_batch_to_typed(batch.select([field.name for field in schema]), schema)
                if failed:
                    raise _NotConvertibleError(failed)
                arrays = [batch.column(field.name) for field in CHANGE_FIELDS] + typed.columns
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=whole))
        return DataFile(
            path=path,
            sha256=writer.sha256,
            bytes=writer.bytes,
            rows=writer.rows,
            database=self._database,
            table_oid=table.oid,
            role="change",
            sequence=self._sequence,
            locality=self._tier or DEFAULT_LOCALITY,
            text_columns=tuple(sorted(text_columns)),
        )


class _NotConvertibleError(Exception):
    """Values that a typed column cannot hold; ends the file being written."""

    def __init__(self, columns: Iterable[str]) -> None:
        super().__init__()
        self.columns = frozenset(columns)


def _batches(rows: Sequence[ChangeRow], table: Table) -> Iterator[pa.RecordBatch]:
    """The rows as batches of text columns behind the change fields."""
    names = [column.stored_as for column in table.data_columns] or [ROW_MARKER.name]
    iterator = iter(rows)
    while part := list(islice(iterator, _BATCH_ROWS)):
        columns = _columns(part, len(table.data_columns))
        yield pa.RecordBatch.from_arrays(
            _change_arrays(part) + (columns or [pa.nulls(len(part), pa.string())]),
            names=[field.name for field in CHANGE_FIELDS] + names,
        )


def _columns(rows: Sequence[ChangeRow], width: int) -> list[pa.Array]:
    """The rows' values as columns of text, in the rows' order."""
    raw = [place for place, row in enumerate(rows) if isinstance(row.values, RawTuple)]
    listed = [place for place, row in enumerate(rows) if not isinstance(row.values, RawTuple)]
    parts = []
    if raw:
        parts.append(tuple_columns([one for place in raw if isinstance(one := rows[place].values, RawTuple)], width))
    if listed and width:
        # Binary first: the bytes are UTF-8 by the session's client_encoding, so the cast only checks them.
        values = zip(*(rows[place].values for place in listed), strict=True)
        parts.append([pa.array(column, pa.binary()).cast(pa.string()) for column in values])
    if len(parts) < 2:
        return parts[0] if parts else []
    order = pa.array(np.argsort(np.array(raw + listed)))
    return [pa.concat_arrays([one, other]).take(order) for one, other in zip(*parts, strict=True)]


def _change_arrays(rows: Sequence[ChangeRow]) -> list[pa.Array]:
    changes, count = [row.change for row in rows], len(rows)
    times = np.fromiter((change.time for change in changes), np.int64, count) + _EPOCH_MICROSECONDS
    return [
        pa.array([row.operation for row in rows], pa.string()),
        pa.array(np.fromiter((change.lsn for change in changes), np.int64, count)),
        pa.array(np.fromiter((change.sequence for change in changes), np.int64, count)),
        pa.array(np.fromiter((change.xid for change in changes), np.int64, count)),
        pa.array(times).cast(pa.timestamp("us", tz="UTC")),
        _lists([row.old_key for row in rows], _texts),
        _lists([row.unchanged for row in rows], lambda names: names),
        _lists([row.source_key for row in rows], _texts),
    ]


def _lists(values: Sequence[T | None], texts: Callable[[T], Sequence[str | None]]) -> pa.Array:
    if all(value is None for value in values):
        return pa.nulls(len(values), _LIST)
    return pa.array([None if value is None else texts(value) for value in values], _LIST)


def _texts(key: KeyText) -> list[str | None]:
    return [None if part is None else part.decode() for part in key]
