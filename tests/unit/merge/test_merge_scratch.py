"""A merge's own files: where they are, and on a disk that fills up, which is told as a full folder whatever DuckDB and Arrow
call it."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Literal

import pytest

from spanvault.errors import Retryable
from spanvault.merge.carry import carried_segments, reshaped_rows
from spanvault.merge.changes import merged_changes
from spanvault.merge.scratch_database import ScratchDatabase, temporary_database
from spanvault.merge.table import table_at
from tests.kit.small_disk import on_small_disk
from tests.unit.merge.history_kit import Change, History, column, table

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


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("capture", ["log", "count"])
def test_all_of_it_is_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: Literal["log", "count"], truncated: bool
) -> None:
    """Copies of files, too: the system's temporary folder may be small."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    (scratch := tmp_path / "scratch").mkdir()
    key = (1,) if capture == "log" else ()
    history = History(tmp_path / "storage", table(column(1, "id", "int8", 20), column(2, "body"), key=key, capture=capture))
    history.base([(1, "long")], role="base" if key else "exact")
    for number in (1, 2):
        history.layer()
        history.changes([*([Change("T", 1)] if truncated else []), Change("I", 2, (2 * number, "new"))])
        if key:
            moved = [(2 * number + 1, 2 * number), *([(1, 1)] if not truncated and number == 1 else [])]
            history.changes([
                Change("U", seq, (new, None), unchanged=("body",), source=(str(old),)) for seq, (new, old) in enumerate(moved)
            ])
    layers = history.layers()
    segments = itertools.chain.from_iterable(carried_segments(layers[1:], scratch))
    base = reshaped_rows(layers[0], layers[0].files[0], history.table, scratch)
    for batches in (table_at(history.history(), scratch), merged_changes(layers[1:], scratch), segments, base):
        assert sum(batch.num_rows for batch in batches)
    assert list(scratch.iterdir()) == []


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
