"""Newest wins: which rows of a table's base a change has overtaken, and which changes are the last of their key.

The keys of all changes are held by DuckDB in a file with a spill directory, so memory stays bounded for any number of
them. A change's *position* orders all changes of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spanvault.errors import Damaged
from spanvault.merge.scratch_database import ScratchDatabase, mask, numbered
from spanvault.merge.segments import ChangeFile, below, read_rows
from spanvault.merge.shapes import key_lists, key_type, key_values
from spanvault.model.cut import Lsn
from spanvault.model.schema import Table

HOLE_COLUMNS = ("_unchanged", "_source_key")


class ChangeIndex:
    """Keys and positions of the changes of one table.

    Call `add`, `add_holes` and `truncate` for every batch of changes, then the other methods in any order. Tables in
    `database`, for whoever goes on from here: `change` (keys, position, segment, present), `last_change` (keys, position,
    present: of changes after the last TRUNCATE), `hole` (position, segment, keys: `_source_key`) and `hole_column`
    (position, attnum). `present`: the row is there after the change.
    """

    def __init__(self, database: ScratchDatabase, table: Table) -> None:
        self.database = database
        self._table = table
        self.names = [f"k{place}" for place in range(len(table.key))]
        self.keys = ", ".join(self.names)
        self.truncated_at: int | None = None
        self._holes = 0
        self._sealed = False
        types = ["BIGINT" if key_type(column) == pa.int64() else "VARCHAR" for column in table.key_columns]
        columns = ", ".join(f"{name} {one} NOT NULL" for name, one in zip(self.names, types, strict=True))
        database.query(f"CREATE TABLE change ({columns}, position BIGINT, segment INTEGER, present BOOLEAN)")
        database.query(f"CREATE TABLE hole ({columns}, position BIGINT, segment INTEGER)")
        database.query("CREATE TABLE hole_column (position BIGINT, attnum INTEGER)")

    def add(self, keys: Sequence[pa.Array], positions: pa.Array, segment: int, present: pa.Array) -> None:
        """Take changes: their keys as `shapes.key_values` gives them, and whether the row is there afterwards."""
        batch = pa.Table.from_arrays([*keys, positions, present], names=[*self.names, "position", "present"])
        self.database.query(f"INSERT INTO change SELECT {self.keys}, position, {segment}, present FROM incoming", batch)

    def add_holes(self, keys: Sequence[pa.Array], positions: pa.Array, segment: int, columns: tuple[pa.Array, pa.Array]) -> None:
        """Take changes that lack values: their source keys, and pairs of position and attnum, one for each value."""
        batch = pa.Table.from_arrays([*keys, positions], names=[*self.names, "position"])
        self.database.query(f"INSERT INTO hole SELECT {self.keys}, position, {segment} FROM incoming", batch)
        pairs = pa.Table.from_arrays(list(columns), names=["position", "attnum"])
        self.database.query("INSERT INTO hole_column SELECT position, attnum FROM incoming", pairs)
        self._holes += len(positions)

    def truncate(self, position: int) -> None:
        """All that came before this position counts no more."""
        self.truncated_at = position if self.truncated_at is None else max(position, self.truncated_at)

    def overtaken(self, keys: Sequence[pa.Array]) -> NDArray[np.bool_]:
        """For each of these keys, whether any change touches it."""
        self._seal()
        return self._hits(numbered(list(keys), self.names), f"SEMI JOIN last_change USING ({self.keys})")

    def last(self, positions: pa.Array, *, present_only: bool) -> NDArray[np.bool_]:
        """For each of these changes whether it is the last of its key, and, if so wanted, leaves a row."""
        self._seal()
        bounds = pc.min_max(positions).as_py()
        condition = f"position BETWEEN {bounds['min']} AND {bounds['max']}" + (" AND present" if present_only else "")
        chosen = f"(SELECT position FROM last_change WHERE {condition})"
        return self._hits(numbered([positions], ["position"]), f"SEMI JOIN {chosen} AS chosen USING (position)")

    @property
    def lacks_values(self) -> bool:
        """Whether a last change of a key lacks values."""
        self._seal()
        if not self._holes:
            return False
        return self.database.number("SELECT count(*) FROM last_change SEMI JOIN hole USING (position) WHERE present") > 0

    def _hits(self, probe: pa.Table, join: str) -> NDArray[np.bool_]:
        rows = self.database.query(f"SELECT row_number FROM incoming {join}", probe)
        return mask(rows["row_number"], probe.num_rows)

    def _seal(self) -> None:
        if self._sealed:
            return
        if self.database.number("SELECT count(*) - count(DISTINCT position) FROM change"):
            raise Damaged(f"Two changes of {self._table.qualified} have one `_seq`; what is the last of a key cannot be told.")
        since = -1 if self.truncated_at is None else self.truncated_at
        self.database.query(
            f"CREATE TABLE last_change AS SELECT {self.keys}, max(position) AS position,"
            f" arg_max(present, position) AS present FROM change WHERE position > {since} GROUP BY {self.keys}"
        )
        if self._holes:
            self.database.query(f"DELETE FROM change WHERE position <= {since}")
        else:
            self.database.query("DROP TABLE change")
        self._sealed = True


def build_index(
    files: Sequence[ChangeFile], database: ScratchDatabase, table: Table, upto: Lsn | None, scratch: Path | None
) -> ChangeIndex:
    """The index of all changes in `files` with an `_lsn` below `upto`."""
    index = ChangeIndex(database, table)
    for file in files:
        keys = [column.stored_as for column in file.layer.table.key_columns]
        for batch in read_rows(file.layer, file.file, ["_op", "_lsn", "_seq", *keys], scratch, HOLE_COLUMNS):
            counting = below(batch, upto)
            if counting.num_rows:
                _add(index, file, counting)
    return index


def _add(index: ChangeIndex, file: ChangeFile, batch: pa.RecordBatch) -> None:
    operations = pc.cast(batch.column("_op"), pa.string())
    truncates = pc.equal(operations, "T")
    positions = file.positions(batch)
    if pc.any(truncates).as_py():
        index.truncate(pc.max(positions.filter(truncates)).as_py())
        rows = pc.invert(truncates)
        batch, operations, positions = batch.filter(rows), operations.filter(rows), positions.filter(rows)
    columns = file.layer.table.key_columns
    keys = key_values([batch.column(column.stored_as) for column in columns], columns)
    index.add(keys, positions, file.segment, pc.not_equal(operations, "D"))
    if set(HOLE_COLUMNS) <= set(batch.schema.names):
        _add_holes(index, file, batch, positions)


def _add_holes(index: ChangeIndex, file: ChangeFile, batch: pa.RecordBatch, positions: pa.Array) -> None:
    lists = batch.column("_unchanged")
    lacking = pc.fill_null(pc.greater(pc.list_value_length(lists), 0), False)
    if not pc.any(lacking, min_count=0).as_py():
        return
    lists, positions = lists.filter(lacking), positions.filter(lacking)
    table = file.layer.table
    names = pa.array([column.stored_as for column in table.data_columns])
    attnums = pa.array([column.attnum for column in table.data_columns], pa.int64())
    columns = attnums.take(pc.index_in(pc.list_flatten(lists), names))
    keys = key_lists(batch.column("_source_key").filter(lacking), table.key_columns)
    index.add_holes(keys, positions, file.segment, (positions.take(pc.list_parent_indices(lists)), columns))
