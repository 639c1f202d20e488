"""Large windows in bounded memory: one transaction of 5 million changes, and 500,000 small transactions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spanvault.embedded.binaries import tool, tool_environment
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.large_windows import increment_apart
from tests.kit.servers import TestDatabase

MEMORY = 1536 << 20  # bytes: 128 MiB of changes with what Python makes of them, and the file that is being written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_one_transaction_of_five_million_changes(database: TestDatabase, tmp_path: Path, history: bool) -> None:
    database.execute("create table t (id int primary key, n int)")
    Backup(database, tmp_path, options=BackupOptions(workers=1)).take()
    database.execute("begin; insert into t select i, i from generate_series(1, 2500000) i; update t set n = -n; commit")
    _assert_right(database, tmp_path, history, 5_000_000)


def test_half_a_million_small_transactions(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key, n int); insert into t select i, 0 from generate_series(1, 100000) i")
    Backup(database, tmp_path, options=BackupOptions(workers=1)).take()
    script = tmp_path / "update.sql"
    script.write_text("\\set id random(1, 100000)\nupdate t set n = n + 1 where id = :id;\n")
    clients = ["--client=4", "--jobs=2", "--transactions=125000", "--no-vacuum", "--protocol=prepared", f"--file={script}"]
    subprocess.run([str(tool("pgbench")), *clients, database.url], env=tool_environment(), check=True, capture_output=True)
    _assert_right(database, tmp_path, True, 500_000)


def _assert_right(database: TestDatabase, folder: Path, history: bool, expected: int) -> None:
    changes, grown = increment_apart(database, folder, history=history)
    assert changes == expected
    assert grown < MEMORY, f"memory grew by {grown >> 20} MiB"
    backup = Backup(database, folder)
    assert backup.rows(backup.resolved().manifest, "t") == backup.source_rows("t")
