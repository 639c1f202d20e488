"""The state of a table at a cut, as a stream of record batches, and the units that it is made of.

docs/format.md section 6 is the specification. The first layer of a history holds the table whole; of every key that
changes touch the state has the row of its last change, unless that removed it, and all other rows are the base's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spanvault.errors import Damaged
from spanvault.merge.counted import count_rows
from spanvault.merge.history import TableHistory, TableLayer
from spanvault.merge.holes import Holes
from spanvault.merge.index import ChangeIndex, build_index
from spanvault.merge.scratch_database import temporary_database
from spanvault.merge.segments import change_files, read_rows, windows
from spanvault.merge.shapes import Projection, key_values
from spanvault.merge.sources import find_values
from spanvault.model.manifest import DataFile

CHANGES = "changes"


@dataclass(frozen=True)
class Unit:
    """A part of a table's state that is read on its own: a base or exact file's rows, or, with `file` None, the rows
    that changes left (of a counted table: all rows). `id` is unique within the table and the same in every planning."""

    id: str
    file: DataFile | None
    bytes: int
    rows: int


def units_of(history: TableHistory) -> tuple[Unit, ...]:
    """The units of one table, changes last. `rows` of a unit is an upper bound where changes exist; a base that was
    truncated later still has its units, which then give no rows.

    Raises Damaged when a layer after the first holds the table whole.
    """
    whole = _whole(history)
    changes = [file.file for file in change_files(history.layers)]
    if changes and history.table.capture == "count":
        changes, whole = [*whole, *changes], []
    units = [Unit(PurePosixPath(file.path).stem, file, file.bytes, file.rows) for file in whole]
    if changes:
        units.append(Unit(CHANGES, None, sum(file.bytes for file in changes), sum(file.rows for file in changes)))
    return tuple(units)


def table_at(history: TableHistory, scratch: Path | None) -> Iterator[pa.RecordBatch]:
    """Every row of the table at the cut, once, in no particular order, in bounded memory.

    Columns are the data columns of `history.table` by stored name; a column may be typed in one batch and PostgreSQL text
    in another. `scratch` is the folder for temporary files (default: the system's).

    Raises Damaged, naming the object, before any row of a file that is not what the manifest says, and where files of
    different layers contradict each other.
    """
    with TableState(history, scratch) as state:
        for unit in units_of(history):
            yield from state.batches(unit)


class TableState:
    """Reads units of one table; the changes are indexed once, by the first unit that needs it.

    A context manager; its scratch files are removed at the end.
    """

    def __init__(self, history: TableHistory, scratch: Path | None) -> None:
        self._table = history.table
        self._upto = history.upto
        self._base = history.layers[0] if history.layers else None
        self._whole = _whole(history)
        self._files = change_files(history.layers)
        self._counted = history.table.capture == "count"
        self._scratch = scratch
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._index: ChangeIndex | None = None
        self._holes: Holes | None = None
        if self._files and not (self._counted or history.table.key):
            raise Damaged(f"Table {history.table.qualified} has change files but no key to apply them by.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        self._index = self._holes = self._folder = None

    def batches(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows. Raises Damaged as table_at does."""
        if unit.file is not None:
            yield from self._not_overtaken(unit.file) if self._files else self._read_base(unit.file)
        elif self._counted:
            yield from self._counted_rows()
        else:
            yield from self._surviving()

    def _read_base(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        layer = self._holder()
        projection = Projection(self._table, layer.table)
        for batch in read_rows(layer, file, projection.columns, self._scratch):
            yield projection.batch(batch)

    def _not_overtaken(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        index = self._changes()
        if index.truncated_at is not None:
            return
        layer = self._holder()
        projection = Projection(self._table, layer.table)
        keys = layer.table.key_columns
        for window in windows(read_rows(layer, file, projection.columns, self._scratch)):
            parts = key_values([window.column(key.stored_as) for key in keys], keys)
            for batch in _where(window, ~index.overtaken(parts)):
                yield projection.batch(batch)

    def _surviving(self) -> Iterator[pa.RecordBatch]:
        index = self._changes()
        holes = self._found_values(index)
        names = {column.attnum: column.stored_as for column in self._table.data_columns}
        for file in self._files:
            projection = Projection(self._table, file.layer.table)
            for window in windows(read_rows(file.layer, file.file, ["_seq", *projection.columns], self._scratch)):
                positions = file.positions(window)
                keep = index.last(positions, present_only=True)
                for batch in _where(window.select(projection.columns), keep):
                    rows = projection.batch(batch)
                    if holes is None:
                        yield rows
                    else:
                        yield from holes.fill(rows, positions.filter(pa.array(keep)), names)

    def _counted_rows(self) -> Iterator[pa.RecordBatch]:
        with temporary_database(self._scratch) as (database, _):
            counts = count_rows(database, self._table, self._files, self._upto, self._scratch)
            for file in self._whole if counts.truncated_at is None else ():
                for window in windows(self._read_base(file)):
                    yield from _where(window, counts.less(window))
            counts.check_removed()
            for change in self._files:
                yield from counts.added_rows(change, self._scratch)

    def _changes(self) -> ChangeIndex:
        if self._index is None:
            database, self._folder = self._stack.enter_context(temporary_database(self._scratch))
            self._index = build_index(self._files, database, self._table, self._upto, self._scratch)
        return self._index

    def _found_values(self, index: ChangeIndex) -> Holes | None:
        if self._holes is None and index.lacks_values:
            layer = self._holder()
            base = [(layer, file) for file in self._whole]
            assert self._folder is not None  # noqa: S101 - the index is in it
            self._holes = find_values(index, self._table, self._files, base, self._folder, self._scratch)
            self._stack.callback(self._holes.close)
        return self._holes

    def _holder(self) -> TableLayer:
        assert self._base is not None  # noqa: S101 - files come from layers
        return self._base


def _whole(history: TableHistory) -> list[DataFile]:
    """The files that hold the table whole, in order."""
    whole = [(layer, file) for layer in history.layers for file in layer.files if file.role != "change"]
    for layer, file in whole:
        if layer is not history.layers[0]:
            raise Damaged(
                f"Layer {layer.number} of the backup {layer.subdir} holds {history.table.qualified} whole ({file.path}), but"
                f" its last layer builds on layer {history.layers[0].number}."
            )
    return sorted((file for _, file in whole), key=lambda file: (file.span or "", file.path))


def _where(batch: pa.RecordBatch, keep: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    if keep.all():
        yield batch
    elif keep.any():
        yield batch.filter(pa.array(keep))
