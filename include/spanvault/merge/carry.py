"""Several layers' changes of one table carried over into one layer change by change, for compaction with revision history.

Segments stay apart: what a row lacks is meant as of its segment's start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from spanvault.columnar.types import file_schema
from spanvault.merge.changes import merged_schema, merged_text_columns
from spanvault.merge.history import TableLayer
from spanvault.merge.segments import ChangeFile, change_files, read_rows
from spanvault.merge.shapes import Projection, missing_scalar
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table

_PLACE: Final = ["_op", "_lsn", "_seq", "_xid", "_time"]
_KEYS: Final = ["_old_key", "_unchanged", "_source_key"]
_LIST: Final = pa.list_(pa.string())


def carried_segments(layers: Sequence[TableLayer], scratch: Path | None) -> Iterator[Iterator[pa.RecordBatch]]:
    """The segments of consecutive layers of one table, in order, in the last layer's shape and `merged_schema`. Each must
    be read to its end before the next is asked for. `_seq` goes on rising over all of them.

    Raises Damaged as `table_at` does.
    """
    carrier = _Carrier(layers, scratch)
    for _, files in itertools.groupby(change_files(layers), key=lambda file: file.segment):
        yield carrier.batches(list(files))


class _Carrier:
    def __init__(self, layers: Sequence[TableLayer], scratch: Path | None) -> None:
        self._table = layers[-1].table
        self._schema = merged_schema(layers)
        self._text_columns = merged_text_columns(layers)
        self._scratch = scratch
        self._layer: TableLayer | None = None
        self._base = self._newest = 0

    def batches(self, files: Sequence[ChangeFile]) -> Iterator[pa.RecordBatch]:
        for file in files:
            if file.layer is not self._layer:
                self._layer, self._base = file.layer, self._newest + 1
            projection = Projection(self._table, file.layer.table, self._text_columns)
            names = _renamed(file.layer.table, self._table)
            for batch in read_rows(file.layer, file.file, [*_PLACE, *projection.columns], self._scratch, optional=_KEYS):
                if batch.num_rows:
                    yield self._carried(batch, projection, names)

    def _carried(self, batch: pa.RecordBatch, projection: Projection, names: dict[str, str | None]) -> pa.RecordBatch:
        seq = pc.add(batch.column("_seq"), self._base)
        self._newest = max(self._newest, pc.max(seq).as_py())
        rows = projection.batch(batch.select(projection.columns))
        columns = {name: batch.column(name) for name in batch.schema.names if name in {*_PLACE, *_KEYS}}
        columns |= dict(zip(rows.schema.names, rows.columns, strict=True))
        columns["_seq"] = seq
        if "_unchanged" in columns and columns["_unchanged"].null_count < batch.num_rows:
            columns["_unchanged"], columns["_source_key"] = _open_values(columns, names)
        arrays = [
            columns[field.name] if field.name in columns else pa.nulls(batch.num_rows, field.type) for field in self._schema
        ]
        cast = [array.cast(field.type) for array, field in zip(arrays, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(cast, schema=self._schema)


def same_columns(one: Table, other: Table) -> bool:
    """Whether files of both shapes have the same columns under the same names."""
    return [(c.attnum, c.stored_as) for c in one.data_columns] == [(c.attnum, c.stored_as) for c in other.data_columns]


def reshaped_text_columns(layer: TableLayer, file: DataFile, table: Table) -> frozenset[str]:
    """The columns that `reshaped_rows` gives as text although their type has a typed form."""
    written = {column.attnum: column.stored_as for column in layer.table.data_columns}
    found = set()
    for column in table.data_columns:
        source = written.get(column.attnum)
        text = missing_scalar(column).type == pa.string() if source is None else source in file.text_columns
        if text:
            found.add(column.stored_as)
    return frozenset(found & {field.name for field in file_schema(table) if field.type != pa.string()})


def reshaped_rows(layer: TableLayer, file: DataFile, table: Table, scratch: Path | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file that holds rows of an earlier shape of `table`, as rows of `table`."""
    text_columns = reshaped_text_columns(layer, file, table)
    schema = file_schema(table, text_columns)
    projection = Projection(table, layer.table, text_columns)
    for batch in read_rows(layer, file, projection.columns, scratch):
        rows = projection.batch(batch)
        if not rows.num_columns:
            yield pa.RecordBatch.from_arrays([pa.nulls(batch.num_rows, field.type) for field in schema], schema=schema)
        else:
            cast = [array.cast(field.type) for array, field in zip(rows.columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(cast, schema=schema)


def _renamed(written: Table, given: Table) -> dict[str, str | None]:
    """The columns' stored names in one shape as those in the other; None for columns that were dropped."""
    now = {column.attnum: column.stored_as for column in given.data_columns}
    return {column.stored_as: now.get(column.attnum) for column in written.data_columns}


def _open_values(columns: dict[str, pa.Array], names: dict[str, str | None]) -> tuple[pa.Array, pa.Array]:
    """`_unchanged` by the new names and `_source_key`, both null where only columns were open that are gone."""
    unchanged: list[list[str] | None] = []
    for listed in columns["_unchanged"].to_pylist():
        kept = [name for name in (names.get(one) for one in listed or ()) if name is not None]
        unchanged.append(kept or None)
    sources = [key if open_ else None for key, open_ in zip(columns["_source_key"].to_pylist(), unchanged, strict=True)]
    return pa.array(unchanged, _LIST), pa.array(sources, _LIST)
