"""Values that a change row lacks because the log left them out, found in the rows that it came from.

A row in segment s that lacks values names the key which its row had right before s. The newest change of that key in the
segments before s is where the row comes from; that one may lack the values itself, and names its own source; if there is
none, it is the base's row of that key. So a value is found by descent, never by the key that the row has now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spanvault.columnar.csv_codec import text_to_typed
from spanvault.errors import Damaged
from spanvault.merge.index import ChangeIndex
from spanvault.merge.scratch_database import mask, numbered
from spanvault.merge.segments import WINDOW_BYTES
from spanvault.merge.shapes import values_as_text
from spanvault.merge.values import ValueFile
from spanvault.model.schema import Table


class Holes:
    """The missing values of last changes. After the constructor it is known where they are; `store_changes` and
    `store_base` take the rows that may hold them, then `fill` puts them in.

    `table` is the shape that is given out: values of other columns are not looked for. Tables in the index's database:
    `wanted_change` and `wanted_base` (target: the position of the row that lacks the value of attnum; where it is),
    `found` (its number in the file of values). Raises Damaged when a row descends from one that was removed.
    """

    def __init__(self, index: ChangeIndex, table: Table, directory: Path) -> None:
        self._index = index
        self._database = index.database
        self._table = table
        self._values = ValueFile(directory / "values.arrow")
        self._trace()

    def close(self) -> None:
        """Release the file of values."""
        self._values.close()

    def segments(self) -> dict[int, set[int]]:
        """The attnums of values that are in change rows, by segment."""
        pairs = self._database.query("SELECT DISTINCT segment, attnum FROM wanted_change")
        found: dict[int, set[int]] = {}
        for segment, attnum in zip(pairs["segment"].tolist(), pairs["attnum"].tolist(), strict=True):
            found.setdefault(segment, set()).add(attnum)
        return found

    def base_attnums(self) -> set[int]:
        """The attnums of values that no change row holds, but what was before all segments."""
        return set(self._database.query("SELECT DISTINCT attnum FROM wanted_base")["attnum"].tolist())

    def store_changes(self, positions: pa.Array, columns: Mapping[int, pa.Array]) -> None:
        """Keep what is wanted of these change rows; `columns` by attnum."""
        self._store(numbered([positions], ["position"]), "wanted_change", "wanted.source = incoming.position", columns)

    def store_base(self, keys: Sequence[pa.Array], columns: Mapping[int, pa.Array]) -> None:
        """Keep what is wanted of these base rows."""
        same = " AND ".join(f"wanted.{name} = incoming.{name}" for name in self._index.names)
        self._store(numbered(list(keys), self._index.names), "wanted_base", same, columns)

    def check_found(self, *, base: bool) -> None:
        """Raises Damaged unless each wanted value was stored once; `base`: those of base rows too."""
        wanted = self._database.number("SELECT count(*) FROM wanted_change")
        wanted += self._database.number("SELECT count(*) FROM wanted_base") if base else 0
        found = self._database.number("SELECT count(*) FROM found")
        if found != wanted:
            raise Damaged(
                f"Of {self._table.qualified} {wanted} large values were left out of the backup's change files because earlier"
                f" layers hold them, but there {found} of them are; run a validation to see which layer is damaged."
            )

    def fill(self, batch: pa.RecordBatch, positions: pa.Array, names: Mapping[int, str]) -> Iterator[pa.RecordBatch]:
        """The batch with the values found, in parts, as values may be long. `names` are the columns of attnums."""
        wanted = self._database.query(
            "SELECT row_number, attnum, value, bytes FROM incoming JOIN found ON target = position ORDER BY row_number",
            numbered([positions], ["position"]),
        )
        rows = wanted["row_number"]
        for first, end in _parts(rows, wanted["bytes"], batch.num_rows):
            here = slice(*np.searchsorted(rows, [first, end]))
            part = batch.slice(first, end - first)
            for attnum in np.unique(wanted["attnum"][here]).tolist():
                own = wanted["attnum"][here] == attnum
                part = _with(part, names[attnum], rows[here][own] - first, self._values.take(wanted["value"][here][own]))
            yield part

    def open_rows(self, positions: pa.Array) -> dict[str, NDArray[Any]]:
        """Of these change rows those that descend from the base: `row_number`, `attnum`, and the keys (k0 ...) that their
        rows had there."""
        return self._database.query(
            f"SELECT row_number, attnum, {self._index.keys} FROM incoming JOIN wanted_base ON target = position"
            " ORDER BY row_number, attnum",
            numbered([positions], ["position"]),
        )

    def _trace(self) -> None:
        query, index = self._database.query, self._index
        keys, names = index.keys, index.names
        of_hole = ", ".join(f"hole.{name}" for name in names)
        attnums = ", ".join(str(column.attnum) for column in self._table.data_columns)
        query("CREATE TABLE wanted_change (target BIGINT, attnum INTEGER, source BIGINT, segment INTEGER)")
        query("CREATE TABLE found (target BIGINT, attnum INTEGER, value BIGINT, bytes BIGINT)")
        query(
            f"CREATE TABLE need AS SELECT position AS target, attnum, hole.segment, {of_hole} FROM last_change"
            f" JOIN hole USING (position) JOIN hole_column USING (position) WHERE present AND attnum IN ({attnums})"
        )
        query(f"CREATE TABLE wanted_base AS SELECT target, attnum, {keys} FROM need LIMIT 0")
        # A source is in an earlier segment, so this ends.
        while self._database.number("SELECT count(*) FROM need"):
            self._step(keys, names, of_hole)

    def _step(self, keys: str, names: Sequence[str], of_hole: str) -> None:
        query = self._database.query
        same = " AND ".join(f"change.{name} = need.{name}" for name in names)
        query(
            "CREATE OR REPLACE TABLE step AS SELECT target, attnum, "
            + ", ".join(f"any_value(need.{name}) AS {name}" for name in names)
            + ", max(change.position) AS source, arg_max(change.segment, change.position) AS segment,"
            " arg_max(change.present, change.position) AS present"
            f" FROM need LEFT JOIN change ON {same} AND change.segment < need.segment GROUP BY target, attnum"
        )
        if self._database.number("SELECT count(*) FROM step WHERE NOT present"):
            raise Damaged(
                f"A change of {self._table.qualified} lacks values and names an earlier row that was removed before;"
                " the change files of the backup do not fit together."
            )
        query(f"INSERT INTO wanted_base SELECT target, attnum, {keys} FROM step WHERE source IS NULL")
        query(
            "INSERT INTO wanted_change SELECT target, attnum, source, segment FROM step ANTI JOIN hole_column"
            " ON hole_column.position = source AND hole_column.attnum = step.attnum WHERE source IS NOT NULL"
        )
        query(
            f"CREATE OR REPLACE TABLE need AS SELECT target, step.attnum, hole.segment, {of_hole} FROM step"
            " JOIN hole_column ON hole_column.position = source AND hole_column.attnum = step.attnum"
            " JOIN hole ON hole.position = source"
        )

    def _store(self, rows: pa.Table, wanted: str, condition: str, columns: Mapping[int, pa.Array]) -> None:
        hits = self._database.query(
            f"SELECT target, attnum, row_number FROM incoming JOIN {wanted} AS wanted ON {condition}", rows
        )
        for attnum in np.unique(hits["attnum"]).tolist():
            own = hits["attnum"] == attnum
            texts = values_as_text(columns[attnum].take(pa.array(hits["row_number"][own])))
            first = self._values.append(texts)
            entries = pa.Table.from_arrays(
                [
                    pa.array(hits["target"][own]),
                    pa.array(np.arange(first, first + len(texts))),
                    pc.cast(pc.fill_null(pc.binary_length(texts), 0), pa.int64()),
                ],
                names=["target", "value", "bytes"],
            )
            self._database.query(f"INSERT INTO found SELECT target, {attnum}, value, bytes FROM incoming", entries)


def _parts(rows: NDArray[Any], sizes: NDArray[Any], length: int) -> Iterator[tuple[int, int]]:
    """Ranges of a batch's rows that get about WINDOW_BYTES of values each (a row's values stay together)."""
    first = 0
    for place in np.flatnonzero(np.diff(np.cumsum(sizes) // WINDOW_BYTES)).tolist():
        end = int(rows[place]) + 1
        if end > first:
            yield first, end
            first = end
    if first < length:
        yield first, length


def _with(batch: pa.RecordBatch, name: str, rows: NDArray[Any], texts: pa.Array) -> pa.RecordBatch:
    """The batch with these texts in a column, which becomes text as a whole if one of them does not convert exactly."""
    place = batch.schema.get_field_index(name)
    column = batch.column(place)
    values = texts
    try:
        values = texts if pa.types.is_string(column.type) else text_to_typed(texts, column.type)
    except pa.ArrowInvalid:
        column = values_as_text(column)
    filled = pc.replace_with_mask(column, pa.array(mask(rows, batch.num_rows)), values)
    return batch.set_column(place, pa.field(name, filled.type), filled)
