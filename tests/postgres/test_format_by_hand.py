"""The SQL of docs/format.md restores a table without Spanvault: of one layer, and of a chain."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def state(backup: Backup, manifests: list[Manifest], block: int) -> list[tuple[int, str]]:
    """What the page's SQL gives in the chain's folder, for this database, table and layers."""
    section = PAGE.read_text().partition("## 7. Restoring without Spanvault")[2].partition("## 8.")[0]
    entry = manifests[0].databases[0]
    text = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)[block]
    text = text.replace("'shop'", f"'{entry.database.name}'").replace("16400", str(entry.tables[0].oid))
    chain = backup.folder / manifests[0].subdir
    lists = ", ".join(f"'{chain / manifest.files.path}'" for manifest in manifests)
    text = re.sub(r"read_parquet\((\[[^\]]*files-\*[^\]]*\]|'000000/files-\*\.parquet')\)", f"read_parquet([{lists}])", text)
    text = text.replace("SELECT list(path)", f"SELECT list('{chain}/' || path)")
    with duckdb.connect() as database:
        database.execute(text)
        return database.execute("SELECT id, note FROM state ORDER BY id").fetchall()


def source(backup: Backup) -> list[tuple[int, str]]:
    return backup.database.execute("select id, note from t order by id")


@pytest.mark.parametrize("truncated", [False, True], ids=["changed", "truncated"])
def test_the_pages_sql_gives_what_the_source_held(database: TestDatabase, tmp_path: Path, *, truncated: bool) -> None:
    database.execute(
        "create table t (id int primary key, note text); insert into t select i, 'n' || i from generate_series(1, 90) i"
    )
    backup = Backup(database, tmp_path, at={"export.all": lambda: database.execute("update t set note = 'during' where id < 20")})
    manifests = [backup.take()]
    assert state(backup, manifests, 0) == source(backup)
    statements = ["update t set note = 'x' where id < 9; delete from t where id = 4", "insert into t values (200, 'new')"]
    if truncated:
        statements[1:1] = ["truncate t; insert into t values (1, 'after')"]
    for statement in statements:
        database.execute(statement)
        manifests.append(backup.increment())
        assert state(backup, manifests, 1) == source(backup)
