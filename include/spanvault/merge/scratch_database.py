"""The DuckDB file in which a merge keeps what must not be held in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spanvault.columnar.scratch import full_folder, scratch_folder

MEMORY_LIMIT: Final = "192MB"
# DuckDB's words where a file system refuses, and where it would take more than was free there at its start.
_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded|File too large|max_temp_directory_size")


class ScratchDatabase:
    """A DuckDB file with bounded memory in `directory`, which must be its own; a context manager.

    DuckDB ignores the case of column names and PostgreSQL does not, so tables in it have names of their own (k0, k1 ...).
    All that it is asked raises Retryable when there is no room left for its files.
    """

    def __init__(self, directory: Path) -> None:
        import duckdb  # a tenth of a second, and a process that merges nothing needs it not

        self._directory = directory
        self._error = duckdb.Error
        with self._faults():
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
        with self._faults():
            if incoming is None:
                return self._database.execute(sql).fetchnumpy()
            self._database.register("incoming", incoming)
            try:
                return self._database.execute(sql).fetchnumpy()
            finally:
                self._database.unregister("incoming")

    def number(self, sql: str) -> int:
        """The one number that `sql` gives."""
        with self._faults():
            ((number,),) = self._database.execute(sql).fetchall()
        return int(number)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        # By its words: the same full disk is an error of four classes, as it is met by a file, a commit or a spill.
        try:
            yield
        except self._error as error:
            found = _FULL.search(str(error))
            if found is None:
                raise
            reason = "no room for more of a merge" if found[0].startswith("max_") else found[0]
            raise full_folder(self._directory.parent, reason) from error


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
