"""The state of a table at a layer's end, as a stream of record batches, and the units that it is made of.

The rule for one full layer: rows of `exact` files are the state. Otherwise the state is the base rows whose key no
change touches, and of every key that changes touch the row of its last change, unless that removed it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spanvault.collection.layout import object_key
from spanvault.columnar.read import key_text, read_batches, verified_file
from spanvault.errors import Damaged
from spanvault.merge.rows import ChangedKeys, windows
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table
from spanvault.storage.base import Storage

CHANGES = "changes"


@dataclass(frozen=True)
class Unit:
    """A part of a table's state that is read on its own: a base or exact file's rows, or, with `file` None, the rows
    that changes left. `id` is unique within the table and the same in every planning."""

    id: str
    file: DataFile | None
    bytes: int
    rows: int


def units_of(files: Sequence[DataFile]) -> tuple[Unit, ...]:
    """The units of one table's files, changes last. `rows` of a unit is an upper bound where changes exist."""
    whole = sorted((file for file in files if file.role != "change"), key=lambda file: (file.span or "", file.path))
    changes = [file for file in files if file.role == "change"]
    units = [Unit(PurePosixPath(file.path).stem, file, file.bytes, file.rows) for file in whole]
    if changes:
        units.append(Unit(CHANGES, None, sum(file.bytes for file in changes), sum(file.rows for file in changes)))
    return tuple(units)


def table_at(
    storage: Storage, subdir: str, table: Table, files: Sequence[DataFile], scratch: Path | None
) -> Iterator[pa.RecordBatch]:
    """Every row of `table` at the layer's end, once, in no particular order, in bounded memory.

    `files` are the layer's files of this table, `subdir` its chain's folder. Columns are the table's data columns by
    stored name; a column may be typed in one batch and PostgreSQL text in another, as its file has it.

    Raises Damaged, naming the object, before any row of a file that is not what the manifest says.
    """
    with TableState(storage, subdir, table, files, scratch) as state:
        for unit in units_of(files):
            yield from state.batches(unit)


class TableState:
    """Reads units of one table; the changed keys are read once, by the first unit that needs them.

    A context manager; its scratch files are removed at the end.
    """

    def __init__(self, storage: Storage, subdir: str, table: Table, files: Sequence[DataFile], scratch: Path | None) -> None:
        self._storage = storage
        self._subdir = subdir
        self._names = [column.stored_as for column in table.data_columns]
        self._key = [column.stored_as for column in table.key_columns]
        self._changes = sorted((file for file in files if file.role == "change"), key=lambda file: file.sequence)
        self._scratch = scratch
        self._stack = ExitStack()
        self._index: ChangedKeys | None = None
        if self._changes and not table.key:
            raise Damaged(f"Table {table.qualified} has change files but no key to apply them by.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        self._index = None

    def batches(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        """The unit's rows. Raises Damaged as table_at does."""
        if unit.file is None:
            for change in self._changes:
                yield from self._surviving(change)
        elif unit.file.role == "exact" or not self._changes:
            yield from self._read(unit.file, self._names)
        else:
            yield from self._not_overtaken(unit.file)

    def _read(self, file: DataFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
        key = object_key(self._subdir, file.path)
        with verified_file(self._storage, key, sha256=file.sha256, size=file.bytes, scratch=self._scratch) as local:
            yield from read_batches(local, columns)

    def _not_overtaken(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        index = self._changed_keys()
        for window in windows(self._read(file, self._names)):
            yield from _where(window, ~index.overtaken(key_text(window, self._key)))

    def _surviving(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        index = self._changed_keys()
        for window in windows(self._read(file, ["_seq", *self._names])):
            yield from _where(window.drop_columns("_seq"), index.surviving(window.column("_seq")))

    def _changed_keys(self) -> ChangedKeys:
        if self._index is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="spanvault-merge-", dir=self._scratch))
            index = self._stack.enter_context(ChangedKeys(len(self._key), Path(folder)))
            for change in self._changes:
                for batch in self._read(change, ["_op", "_seq", *self._key]):
                    present = pc.not_equal(batch.column("_op").cast(pa.string()), "D")
                    index.add(key_text(batch, self._key), batch.column("_seq"), present)
            self._index = index
        return self._index


def _where(window: pa.Table, keep: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    if keep.all():
        yield from window.to_batches()
    elif keep.any():
        yield from window.filter(pa.array(keep)).to_batches()
