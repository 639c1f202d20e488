"""A run of the command line looks at the files that it wrote before the source may forget its log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.collection.manifests import is_marked
from spanvault.engine import local
from spanvault.errors import Damaged
from spanvault.model.cut import Lsn
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    database.execute("create table t (id int primary key, v text); insert into t select i, 'v' from generate_series(1, 100) i")
    yield Backup(database, tmp_path / "collection")


def lose_a_file(backup: Backup, layer: int) -> None:
    """Away with a data file of a layer, as a store loses one."""
    (*_, last) = sorted(backup.folder.glob(f"*/*/*/{layer:06}/data/*.parquet"))
    last.unlink()


def slot_position(database: TestDatabase) -> Lsn:
    query = "select confirmed_flush_lsn::text from pg_replication_slots where database = current_database()"
    return Lsn.parse(database.execute(query)[0][0])


def write(database: TestDatabase) -> None:
    database.execute("update t set v = v || 'w' where id < 50")


def test_a_lost_file_of_a_full_keeps_the_log(backup: Backup) -> None:
    started: list[Lsn] = []

    def change() -> None:
        started.append(slot_position(backup.database))
        write(backup.database)

    backup.at = {
        "export.all": change,
        "commit.after_manifest": lambda: lose_a_file(backup, 0),
    }
    with pytest.raises(Damaged, match=r"The following files are missing from the backup:\n\t.*/000000/data/"):
        backup.take()
    (chain,) = backup.folder.glob("*/*/*/chain")
    assert is_marked(backup.storage, str(chain.parent.relative_to(backup.folder)), 0)
    assert [slot_position(backup.database)] == started
    backup.visits.clear()
    backup.at = {}
    assert backup.rows(backup.take(), "t") == backup.source_rows("t")


def test_a_lost_file_of_a_layer_keeps_the_log(backup: Backup, tmp_path: Path) -> None:
    """Also where the layer is at a place of its own."""
    first = backup.take()
    write(backup.database)
    elsewhere = Backup(backup.database, tmp_path / "layers")
    backup.at = {"commit.after_manifest": lambda: lose_a_file(elsewhere, 1)}
    backup.visits.clear()
    place = f"file://{elsewhere.folder}"
    with pytest.raises(Damaged, match="The following files are missing from the backup"):
        backup.increment(incremental_location=place)
    assert is_marked(backup.storage, first.subdir, 1)
    assert slot_position(backup.database) == first.end.lsn
    backup.at = {}
    following = backup.increment(incremental_location=place)
    assert following.kind == "full", "nothing is built upon a damaged layer"
    assert backup.rows(following, "t") == backup.source_rows("t")


def test_without_the_look_the_log_would_be_gone(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "check_written", lambda *_: None)
    backup.at = {"commit.after_manifest": lambda: lose_a_file(backup, 0)}
    end = backup.take().end.lsn
    assert slot_position(backup.database) >= end
