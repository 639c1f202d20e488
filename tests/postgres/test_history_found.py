"""Histories that went wrong once, each reduced to the smallest that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

BIG = "string_agg(md5(random()::text), '') from generate_series(1, 400)"  # 12,800 incompressible bytes: TOASTed


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    database.execute(
        "create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t (id, v, n) select i, (select {BIG} where i > 0), i from generate_series(1, 20) i"
    )
    yield Backup(database, tmp_path / "collection")


LATER = {
    "deleted": "delete from t where id = 5",
    "updated, large value left alone": "update t set n = -1 where id = 5",
    "updated whole": "update t set v = 'short' where id = 5",
    "moved": "update t set id = 500 where id = 5",
}


@pytest.mark.parametrize("case", LATER)
def test_rows_that_a_full_read_at_its_cut_and_that_change_later(backup: Backup, case: str) -> None:
    """Two rows of one table are updated while the full exports, and their large values left alone, so that the seal reads
    both by key. Each is a change of its own: what happens to one of them later must not touch the other."""
    backup.at = {"export.all": lambda: backup.database.execute("update t set n = 0 where id in (5, 6)")}
    full = backup.take()
    assert backup.rows(full, "t") == backup.source_rows("t")
    backup.database.execute(LATER[case])
    layer = backup.increment()
    assert backup.rows(layer, "t") == backup.source_rows("t")
