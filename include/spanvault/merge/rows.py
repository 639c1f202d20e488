"""Newest wins: which rows of a table's base a change has overtaken, and which changes are the last of their key.

The keys of all changes are held by DuckDB in a file with a spill directory, so memory stays bounded for any number of
them. Keys are compared by their exact PostgreSQL text; DuckDB sees them under names of its own (k0, k1 ...), because its
column names ignore case and PostgreSQL's do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Rows that are probed at once. A probe costs one pass over the changed keys, a larger window costs memory.
WINDOW_BYTES = 32 << 20

MEMORY_LIMIT = "192MB"


class ChangedKeys:
    """The keys that the changes of one table touch, each with the position and kind of its last change.

    Use as a context manager; `directory` must be its own and empty. Call `add` for every batch of changes, then
    `overtaken` and `surviving` in any order.
    """

    def __init__(self, key_width: int, directory: Path) -> None:
        self._names = [f"k{position}" for position in range(key_width)]
        self._keys = ", ".join(self._names)
        self._sealed = False
        self._database = duckdb.connect(
            str(directory / "keys.duckdb"),
            config={"memory_limit": MEMORY_LIMIT, "threads": 1, "temp_directory": str(directory / "spill")},
        )
        columns = ", ".join(f"{name} VARCHAR NOT NULL" for name in self._names)
        self._database.execute(f"CREATE TABLE change ({columns}, seq BIGINT NOT NULL, present BOOLEAN NOT NULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def add(self, keys: Sequence[pa.Array], seq: pa.Array, present: pa.Array) -> None:
        """Take a batch of changes: their key columns as text, their `_seq`, and whether the row is there after it."""
        batch = pa.Table.from_arrays([*keys, seq, present], names=[*self._names, "seq", "present"])
        self._query(f"INSERT INTO change SELECT {self._keys}, seq, present FROM incoming", batch)

    def overtaken(self, keys: Sequence[pa.ChunkedArray]) -> NDArray[np.bool_]:
        """For each row of these key columns, whether any change touches its key."""
        return self._hits(pa.Table.from_arrays(list(keys), names=self._names), self._keys, "TRUE")

    def surviving(self, seq: pa.ChunkedArray) -> NDArray[np.bool_]:
        """For each of these changes, by `_seq`, whether it is the last of its key and leaves a row."""
        return self._hits(pa.Table.from_arrays([seq], names=["seq"]), "seq", "present")

    def _hits(self, probe: pa.Table, using: str, condition: str) -> NDArray[np.bool_]:
        self._seal()
        mask = np.zeros(probe.num_rows, dtype=np.bool_)
        probe = probe.append_column("row_number", pa.array(np.arange(probe.num_rows, dtype=np.int64)))
        last = f"(SELECT {self._keys}, seq FROM last_change WHERE {condition})"
        rows = self._query(f"SELECT row_number FROM incoming SEMI JOIN {last} AS hit USING ({using})", probe)
        mask[rows["row_number"]] = True
        return mask

    def _seal(self) -> None:
        if not self._sealed:
            self._database.execute(
                f"CREATE TABLE last_change AS SELECT {self._keys}, max(seq) AS seq, arg_max(present, seq) AS present "
                f"FROM change GROUP BY {self._keys}"
            )
            self._database.execute("DROP TABLE change")
            self._sealed = True

    def _query(self, sql: str, incoming: pa.Table) -> dict[str, NDArray[Any]]:
        """Run `sql` over `incoming`; its whole result by column."""
        self._database.register("incoming", incoming)
        try:
            return self._database.execute(sql).fetchnumpy()
        finally:
            self._database.unregister("incoming")


def windows(batches: Iterable[pa.RecordBatch], window_bytes: int = WINDOW_BYTES) -> Iterator[pa.Table]:
    """The batches of one file gathered into tables of about `window_bytes`, in order; empty batches vanish."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        size += batch.nbytes
        if size >= window_bytes:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if held:
        yield pa.Table.from_batches(held)
