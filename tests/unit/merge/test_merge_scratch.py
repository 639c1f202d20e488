"""A merge's own files on a disk that fills up: whatever DuckDB and Arrow call it, it is told as a full folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spanvault.errors import Retryable
from spanvault.merge.scratch_database import ScratchDatabase, temporary_database
from tests.kit.small_disk import on_small_disk

# Rows until DuckDB fails. How much room there is decides by what: its header, the log of a commit, a block.
FILL = """
import sys
from pathlib import Path
from spanvault.errors import Retryable
from spanvault.merge.scratch_database import temporary_database
try:
    with temporary_database(Path(sys.argv[1])) as (database, _):
        database.query("CREATE TABLE t (x BIGINT, y VARCHAR)")
        for first in range(0, 600_000, 200_000):
            database.query(f"INSERT INTO t SELECT i, md5(i::VARCHAR) FROM range({first}, {first} + 200000) r (i)")
except Retryable as error:
    print(error)
"""


@pytest.mark.parametrize("size", [4 << 10, 16 << 10, 8 << 20])
def test_a_merge_without_room(tmp_path: Path, size: int) -> None:
    done = on_small_disk(size, tmp_path, [sys.executable, "-c", FILL, str(tmp_path)])
    assert done.stdout == (
        f"The folder for temporary files {tmp_path} is full: No space left on device; make room there, or let"
        " SPANVAULT_SCRATCH_DIR name a folder with more.\n"
    ), done.stderr


def test_a_merge_that_would_take_more_than_is_free(tmp_path: Path) -> None:
    """DuckDB spills at most what was free when it began."""
    with temporary_database(tmp_path) as (database, _):
        database.query("SET max_temp_directory_size = '1MB'; SET memory_limit = '8MB'")
        with pytest.raises(Retryable, match=f"{tmp_path} is full: no room for more of a merge; "):
            database.query("SELECT y FROM (SELECT md5(i::VARCHAR) AS y FROM range(1000000) r (i)) ORDER BY y")


def test_what_is_no_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    with ScratchDatabase(tmp_path) as database, pytest.raises(Exception, match="Parser Error"):
        database.query("this is no SQL")


def test_values_without_room(tmp_path: Path) -> None:
    script = (
        "import sys, pyarrow as pa; from pathlib import Path; from spanvault.errors import Retryable\n"
        "from spanvault.merge.values import ValueFile\n"
        "folder = Path(sys.argv[1], 'merge'); folder.mkdir(); values = ValueFile(folder / 'values.arrow')\n"
        "try:\n    while True: values.append(pa.array(['x' * 100000]))\n"
        "except Retryable as error: print(error)"
    )
    done = on_small_disk(1 << 20, tmp_path, [sys.executable, "-c", script, str(tmp_path)])
    assert done.stdout.startswith(f"The folder for temporary files {tmp_path} is full: No space left on device; "), done.stderr
