"""Tables without a key: rows are counted. The state is the base's rows, and of each row as many copies more or fewer as
the changes added and removed.

Rows are told apart by SHA-256 of the text of all columns, so that memory does not depend on how wide they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spanvault.errors import Damaged
from spanvault.merge.scratch_database import ScratchDatabase, numbered
from spanvault.merge.segments import ChangeFile, below, read_rows, windows
from spanvault.merge.shapes import Projection, comparable_text
from spanvault.model.cut import Lsn
from spanvault.model.schema import Table


class RowCounts:
    """How many copies of each row the changes added (or, if negative, removed).

    Call `add` for all changes, then `less` for every batch of the base, `check_removed`, and `added_rows` for every file of
    changes. Batches of rows are in the shape of `table`.
    """

    def __init__(self, database: ScratchDatabase, table: Table) -> None:
        self._database = database
        self._table = table
        self._sealed = False
        self.truncated_at: int | None = None
        self._names = [f"c{place}" for place in range(len(table.data_columns))]
        parts = [f"CASE WHEN {name} IS NULL THEN '-' ELSE strlen({name}) || ':' || {name} END" for name in self._names]
        # Lengths keep columns apart: no two different rows have the same text.
        self._digest = f"sha256({' || '.join(parts) if parts else repr('')})"
        database.query("CREATE TABLE change (digest VARCHAR, copies INTEGER, position BIGINT)")

    def add(self, file: ChangeFile, batch: pa.RecordBatch) -> None:
        """Take changes as `file` has them."""
        operations, positions = pc.cast(batch.column("_op"), pa.string()), file.positions(batch)
        truncates = pc.equal(operations, "T")
        if pc.any(truncates, min_count=0).as_py():
            last = pc.max(positions.filter(truncates)).as_py()
            self.truncated_at = last if self.truncated_at is None else max(last, self.truncated_at)
        kept = pc.invert(truncates)
        projection = Projection(self._table, file.layer.table)
        rows = self._rows(projection.batch(batch.select(projection.columns).filter(kept)))
        copies = pc.if_else(pc.equal(operations.filter(kept), "I"), pa.scalar(1, pa.int32()), pa.scalar(-1, pa.int32()))
        rows = rows.append_column("copies", copies).append_column("position", positions.filter(kept))
        self._database.query(f"INSERT INTO change SELECT {self._digest}, copies, position FROM incoming", rows)

    def less(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows of the base stay. Each copy that was removed is taken from the first batch that has one."""
        self._seal()
        keep = np.ones(batch.num_rows, dtype=np.bool_)
        if not self._database.number("SELECT count(*) FROM owed"):
            return keep
        self._database.query(
            "CREATE OR REPLACE TEMP TABLE hit AS SELECT row_number, digest FROM"
            f" (SELECT row_number, {self._digest} AS digest FROM incoming) JOIN owed USING (digest)"
            " QUALIFY row_number() OVER (PARTITION BY digest ORDER BY row_number) <= copies",
            self._rows(batch),
        )
        self._database.query(
            "UPDATE owed SET copies = copies - taken FROM (SELECT digest, count(*) AS taken FROM hit GROUP BY digest) AS gone"
            " WHERE gone.digest = owed.digest"
        )
        self._database.query("DELETE FROM owed WHERE copies = 0")
        keep[self._database.query("SELECT row_number FROM hit")["row_number"]] = False
        return keep

    def added_rows(self, file: ChangeFile, scratch: Path | None) -> Iterator[pa.RecordBatch]:
        """The rows of a change file that are in the state, as often as they are: all copies come from the last change that
        names the row."""
        self._seal()
        projection = Projection(self._table, file.layer.table)
        for window in windows(read_rows(file.layer, file.file, ["_seq", *projection.columns], scratch)):
            found = self._database.query(
                "SELECT row_number, copies FROM incoming JOIN added USING (position) ORDER BY row_number",
                numbered([file.positions(window)], ["position"]),
            )
            if len(found["row_number"]):
                rows = np.repeat(found["row_number"], found["copies"].astype(np.int64))
                yield projection.batch(window.select(projection.columns).take(pa.array(rows)))

    def check_removed(self) -> None:
        """Raises Damaged when changes removed rows that the base did not have."""
        self._seal()
        missing = self._database.number("SELECT coalesce(sum(copies), 0) FROM owed")
        if missing:
            raise Damaged(
                f"The changes of {self._table.qualified} remove {missing} rows that its earlier layers do not hold; the files"
                " of the backup do not fit together."
            )

    def _rows(self, batch: pa.RecordBatch) -> pa.Table:
        columns = zip(batch.columns, self._table.data_columns, strict=True)
        texts = [comparable_text(array, column) for array, column in columns]
        rows = pa.array(np.arange(batch.num_rows, dtype=np.int64))
        return pa.Table.from_arrays([*texts, rows], names=[*self._names, "row_number"])

    def _seal(self) -> None:
        if self._sealed:
            return
        since = -1 if self.truncated_at is None else self.truncated_at
        self._database.query(
            "CREATE TABLE net AS SELECT digest, sum(copies) AS copies, max(position) AS position FROM change"
            f" WHERE position > {since} GROUP BY digest HAVING sum(copies) <> 0"
        )
        self._database.query("DROP TABLE change")
        self._database.query("CREATE TABLE owed AS SELECT digest, -copies AS copies FROM net WHERE copies < 0")
        self._database.query("CREATE TABLE added AS SELECT position, copies FROM net WHERE copies > 0")
        self._sealed = True


def count_rows(
    database: ScratchDatabase, table: Table, files: Sequence[ChangeFile], upto: Lsn | None, scratch: Path | None
) -> RowCounts:
    """The counts of all changes in `files` with an `_lsn` below `upto`."""
    counts = RowCounts(database, table)
    for file in files:
        columns = Projection(table, file.layer.table).columns
        for batch in read_rows(file.layer, file.file, ["_op", "_lsn", "_seq", *columns], scratch):
            counts.add(file, below(batch, upto))
    return counts
