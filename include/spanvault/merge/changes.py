"""Several layers' changes of one table as the changes of one layer, for compaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spanvault.columnar.types import file_schema
from spanvault.merge.history import TableLayer
from spanvault.merge.holes import Holes
from spanvault.merge.index import ChangeIndex, build_index
from spanvault.merge.scratch_database import temporary_database
from spanvault.merge.segments import ChangeFile, change_files, read_rows, windows
from spanvault.merge.shapes import Projection, missing_scalar
from spanvault.merge.sources import find_values
from spanvault.model.schema import Table

_LIST: Final = pa.list_(pa.string())
_PLACE: Final = (
    pa.field("_op", pa.string()),
    pa.field("_lsn", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_time", pa.timestamp("us", tz="UTC")),
)
_KEYS: Final = (pa.field("_old_key", _LIST), pa.field("_unchanged", _LIST), pa.field("_source_key", _LIST))
_PLACE_NAMES: Final = [field.name for field in _PLACE]


def merged_text_columns(layers: Sequence[TableLayer]) -> frozenset[str]:
    """The columns (stored names in the last layer's shape) that `merged_changes` gives as text although their type has a
    typed form: those of which any file has text, or whose missing value does not convert."""
    table = layers[-1].table
    found = set()
    for file in change_files(layers):
        written = {column.attnum: column.stored_as for column in file.layer.table.data_columns}
        for column in table.data_columns:
            source = written.get(column.attnum)
            text = missing_scalar(column).type == pa.string() if source is None else source in file.file.text_columns
            if text:
                found.add(column.stored_as)
    typed = {field.name for field in file_schema(table) if field.type != pa.string()}
    return frozenset(found & typed)


def merged_schema(layers: Sequence[TableLayer]) -> pa.Schema:
    """The schema of all batches of `merged_changes`."""
    return pa.schema([*_PLACE, *_KEYS, *file_schema(layers[-1].table, merged_text_columns(layers))])


def merged_changes(layers: Sequence[TableLayer], scratch: Path | None) -> Iterator[pa.RecordBatch]:
    """The changes of consecutive layers of one table as one segment, in the last layer's shape and `merged_schema`.

    Of a table with a key: the last change of every key. Values that a row lacks are filled in from earlier rows of the
    range; where the row descends from before the range they stay open, and `_source_key` is its key at the range's start.
    Of a counted table: all changes. After a TRUNCATE in the range one row `T` comes first, and what was before it is left
    out. `_seq` counts from 1; `_lsn`, `_xid` and `_time` are those of the change; `_old_key` is null.

    Only change files are read. Raises Damaged as `table_at` does.
    """
    schema = merged_schema(layers)
    seq = 0
    for batch in _counted(layers, scratch) if layers[-1].table.capture == "count" else _keyed(layers, scratch):
        rows = batch.num_rows
        numbers = pa.array(np.arange(seq + 1, seq + rows + 1, dtype=np.int64))
        columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "_seq": numbers}
        arrays = [columns[one.name] if one.name in columns else pa.nulls(rows, one.type) for one in schema]
        yield pa.RecordBatch.from_arrays([array.cast(one.type) for array, one in zip(arrays, schema, strict=True)], schema=schema)
        seq += rows


def _keyed(layers: Sequence[TableLayer], scratch: Path | None) -> Iterator[pa.RecordBatch]:
    table, files = layers[-1].table, change_files(layers)
    text_columns = merged_text_columns(layers)
    with temporary_database(scratch) as (database, folder):
        index = build_index(files, database, table, None, scratch)
        yield from _truncation(files, index.truncated_at, scratch)
        holes = find_values(index, table, files, None, folder, scratch) if index.lacks_values else None
        try:
            for file in files:
                yield from _last_changes(file, table, text_columns, index, holes, scratch)
        finally:
            if holes is not None:
                holes.close()


def _last_changes(
    file: ChangeFile,
    table: Table,
    text_columns: frozenset[str],
    index: ChangeIndex,
    holes: Holes | None,
    scratch: Path | None,
) -> Iterator[pa.RecordBatch]:
    projection = Projection(table, file.layer.table, text_columns)
    names = {column.attnum: column.stored_as for column in table.data_columns}
    for window in windows(read_rows(file.layer, file.file, [*_PLACE_NAMES, *projection.columns], scratch)):
        positions = file.positions(window)
        keep = pa.array(index.last(positions, present_only=False))
        kept, positions = window.filter(keep), positions.filter(keep)
        if not kept.num_rows:
            continue
        rows = _beside(kept, _without_removed(projection.batch(kept.select(projection.columns)), kept, table))
        if holes is None:
            yield rows
        else:
            yield from holes.fill(_with_open(rows, positions, holes, table), positions, names)


def _beside(place: pa.RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [*(place.column(name) for name in _PLACE_NAMES), *rows.columns], names=[*_PLACE_NAMES, *rows.schema.names]
    )


def _without_removed(rows: pa.RecordBatch, place: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """Rows of D have their key only, also where a column is new to the file's shape."""
    present = pc.not_equal(pc.cast(place.column("_op"), pa.string()), "D")
    if pc.all(present).as_py():
        return rows
    keys = {column.stored_as for column in table.key_columns}
    arrays = [
        array if name in keys or array.null_count == len(array) else pc.if_else(present, array, pa.scalar(None, array.type))
        for name, array in zip(rows.schema.names, rows.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=rows.schema.names)


def _with_open(rows: pa.RecordBatch, positions: pa.Array, holes: Holes, table: Table) -> pa.RecordBatch:
    """The rows with `_unchanged` and `_source_key` where values stay open."""
    still = holes.open_rows(positions)
    stored = {column.attnum: column.stored_as for column in table.data_columns}
    unchanged: list[list[str] | None] = [None] * rows.num_rows
    source: list[list[str] | None] = [None] * rows.num_rows
    keys = [still[f"k{place}"].tolist() for place in range(len(table.key))]
    for place, (row, attnum) in enumerate(zip(still["row_number"].tolist(), still["attnum"].tolist(), strict=True)):
        names = unchanged[row] = unchanged[row] or []
        names.append(stored[attnum])
        source[row] = [str(parts[place]) for parts in keys]
    rows = rows.append_column("_unchanged", pa.array(unchanged, _LIST))
    return rows.append_column("_source_key", pa.array(source, _LIST))


def _counted(layers: Sequence[TableLayer], scratch: Path | None) -> Iterator[pa.RecordBatch]:
    table, files = layers[-1].table, change_files(layers)
    text_columns = merged_text_columns(layers)
    truncated_at = _truncated_at(files, scratch)
    yield from _truncation(files, truncated_at, scratch)
    for file in files:
        projection = Projection(table, file.layer.table, text_columns)
        for batch in read_rows(file.layer, file.file, [*_PLACE_NAMES, *projection.columns], scratch):
            kept = batch if truncated_at is None else batch.filter(pc.greater(file.positions(batch), truncated_at))
            if kept.num_rows:
                yield _beside(kept, projection.batch(kept.select(projection.columns)))


def _truncated_at(files: Sequence[ChangeFile], scratch: Path | None) -> int | None:
    last: int | None = None
    for file in files:
        for batch in read_rows(file.layer, file.file, ["_op", "_seq"], scratch):
            positions = file.positions(batch.filter(pc.equal(pc.cast(batch.column("_op"), pa.string()), "T")))
            newest = pc.max(positions).as_py()
            if newest is not None:
                last = newest if last is None else max(last, newest)
    return last


def _truncation(files: Sequence[ChangeFile], position: int | None, scratch: Path | None) -> Iterator[pa.RecordBatch]:
    """The row T at this position, alone, if there is one."""
    for file in files if position is not None else ():
        for batch in read_rows(file.layer, file.file, _PLACE_NAMES, scratch):
            found = batch.filter(pc.equal(file.positions(batch), position))
            if found.num_rows:
                yield found
                return
