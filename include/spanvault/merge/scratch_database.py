"""The DuckDB file in which a merge keeps what must not be held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spanvault.columnar.scratch import scratch_folder

MEMORY_LIMIT: Final = "192MB"


class ScratchDatabase:
    """A DuckDB file with bounded memory in `directory`, which must be its own; a context manager.

    DuckDB ignores the case of column names and PostgreSQL does not, so tables in it have names of their own (k0, k1 ...).
    """

    def __init__(self, directory: Path) -> None:
        import duckdb  # a tenth of a second, and a process that merges nothing needs it not

        self._database = duckdb.connect(
            str(directory / "merge.duckdb"),
            config={"memory_limit": MEMORY_LIMIT, "threads": 1, "temp_directory": str(directory / "spill")},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()

    def query(self, sql: str, incoming: pa.Table | None = None) -> dict[str, NDArray[Any]]:
        """Run `sql`, which may read `incoming`; its whole result by column."""
        if incoming is None:
            return self._database.execute(sql).fetchnumpy()
        self._database.register("incoming", incoming)
        try:
            return self._database.execute(sql).fetchnumpy()
        finally:
            self._database.unregister("incoming")

    def number(self, sql: str) -> int:
        """The one number that `sql` gives."""
        ((number,),) = self._database.execute(sql).fetchall()
        return int(number)


@contextmanager
def temporary_database(scratch: Path | None) -> Iterator[tuple[ScratchDatabase, Path]]:
    """A scratch database in a folder of its own (below `scratch`), and that folder; both are gone when the block ends."""
    with (
        scratch_folder("merge", scratch) as folder,
        ScratchDatabase(folder) as database,
    ):
        yield database, folder


def numbered(arrays: list[pa.Array], names: list[str]) -> pa.Table:
    """The arrays as a table for `query`, with a column `row_number` from 0."""
    rows = pa.array(np.arange(len(arrays[0]), dtype=np.int64))
    return pa.Table.from_arrays([*arrays, rows], names=[*names, "row_number"])


def mask(rows: NDArray[Any], length: int) -> NDArray[np.bool_]:
    """True at the places in `rows`."""
    found = np.zeros(length, dtype=np.bool_)
    found[rows] = True
    return found
