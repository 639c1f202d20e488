"""A window that does not fit into the memory meant for it: many segments of one transaction, and bounded memory.
tests/soak/test_large_windows.py does the same with millions of changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.collection.files import read_files
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.large_windows import increment_apart
from tests.kit.servers import TestDatabase

ROWS = 50_000
CHUNK = 8 << 20


@pytest.mark.slow
@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_one_large_transaction_in_segments(database: TestDatabase, tmp_path: Path, history: bool) -> None:
    """200,000 changes in one transaction: inserts, updates twice, key changes that come to rest on other rows' keys."""
    database.execute("create table t (id int primary key, n int, v text); alter table t alter v set storage external")
    database.execute("insert into t select i, i, repeat(md5(i::text), 80) from generate_series(1, 300) i")
    backup = Backup(database, tmp_path, options=BackupOptions(workers=1, revision_history=history))
    backup.take()
    database.execute(
        f"begin; insert into t select i, i, 'x' from generate_series(301, {ROWS}) i; update t set n = n + 1;"
        f" update t set id = id + {ROWS}; update t set id = id - {ROWS} + 300, n = -n; delete from t where n % 7 = 0; commit"
    )
    changes, grown = increment_apart(database, tmp_path, history=history, chunk_bytes=CHUNK)
    assert changes >= 200_000
    assert grown < 40 * CHUNK, f"memory grew by {grown >> 20} MiB"
    layer = backup.resolved().manifest
    files = [file for file in read_files(backup.storage, layer.subdir, layer.files) if file.role == "change"]
    assert len({file.sequence for file in files}) > 5, "the window fitted into memory, so the test shows nothing"
    assert backup.rows(layer, "t") == backup.source_rows("t")
