"""Compacted layers stand for others exactly: every end, and with revision history every cut, is what it was."""

# ruff: noqa: E501  # statements of SQL read better on one line

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.engine.maintenance import compact_backups
from spanvault.errors import BadInput
from spanvault.model.cut import Lsn
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow

BIG = "string_agg(md5(random()::text), '') from generate_series(1, 400)"

STATEMENTS = [
    "update t set n = -1 where id < 20",
    "update t set id = id + 5000 where id between 10 and 15; update counted set b = 'y' where a = 1",
    "alter table t add c text default 'a b'; update t set n = -2 where id < 5 or id > 5000; alter table t rename n to m",
    "create table late (id int primary key, v text); insert into late select i, 'v' from generate_series(1, 20) i; delete from t where id = 30",
    "update late set v = 'w' where id < 4; update t set m = 7 where id > 5010; insert into counted values (1, 'y'), (9, null)",
]
TABLES = ["t", "counted", "keyless"]


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    database.execute("create table t (id int primary key, v text, n int); alter table t alter v set storage external")
    database.execute(f"insert into t (id, v, n) select i, (select {BIG} where i > 0), i from generate_series(1, 60) i")
    database.execute("create table counted (a int, b text); alter table counted replica identity full")
    database.execute("insert into counted select i % 4, 'x' from generate_series(1, 20) i")
    database.execute("create table keyless (a int); insert into keyless select generate_series(1, 10)")
    yield Backup(database, tmp_path / "collection")


def chain(backup: Backup, *, history: bool) -> list[dict[str, list[str]]]:
    """A full and a layer for each of STATEMENTS; what the source held at each end."""
    backup.take()
    held = [{table: backup.source_rows(table) for table in TABLES}]
    for statement in STATEMENTS:
        for part in statement.split("; "):
            backup.database.execute(part)
        backup.increment(revision_history=history)
        held.append({table: backup.source_rows(table) for table in TABLES})
    return held


def numbers(backup: Backup, layer: int) -> list[tuple[int, int]]:
    """The cover of a layer's end: (first, number) of each layer that is read."""
    resolved = backup.resolved("LATEST", ends(backup)[layer])
    return [(one.manifest.first, one.manifest.number) for one in resolved.layers]


def ends(backup: Backup) -> list[Lsn]:
    from spanvault.collection.chain import original_layers

    return [layer.end.lsn for layer in original_layers(backup.storage, "LATEST", open_location=backup.context.storage)]


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
@pytest.mark.parametrize(("first", "number"), [(1, 5), (2, 4), (0, 3), (0, 5)])
def test_a_compacted_layer_gives_what_its_layers_gave(backup: Backup, first: int, number: int, history: bool) -> None:
    held = chain(backup, history=history)
    made = compact_backups(backup.context, backup.uri, "LATEST", first=first, number=number).dicts()[0]
    assert (made["first"], made["last"], made["kind"]) == (first, number, "full" if first == 0 else "incremental")
    positions = ends(backup)
    for layer, tables in enumerate(held):
        manifest = backup.resolved("LATEST", positions[layer]).manifest
        for table, rows in tables.items():
            assert backup.rows(manifest, table) == rows, f"{table} at the end of layer {layer} by {numbers(backup, layer)}"
    assert (first, number) in numbers(backup, number) or history, "the compacted layer is the cheaper one"


def test_every_cut_inside_a_compacted_history_stays(backup: Backup) -> None:
    database = backup.database
    backup.take()
    cuts = []
    for step in range(12):
        database.execute(f"update t set n = {step} where id = {step + 1}; update t set id = id + 100 where id = {step + 20}")
        position = database.execute("select pg_current_wal_insert_lsn()::text")[0][0]
        cuts.append((position, backup.source_rows("t")))
        if step % 4 == 3:
            backup.increment(revision_history=True)
    compact_backups(backup.context, backup.uri, "LATEST", first=1, number=3)
    manifest = backup.resolved("LATEST").manifest
    for position, rows in cuts[:-1]:
        assert backup.rows(manifest, "t", at=Lsn.parse(position)) == rows


def test_compacting_again_changes_nothing_and_wrong_layers_are_refused(backup: Backup) -> None:
    chain(backup, history=False)
    once = compact_backups(backup.context, backup.uri, "LATEST", first=1, number=3)
    assert compact_backups(backup.context, backup.uri, "LATEST", first=1, number=3) == once
    with pytest.raises(BadInput, match=r"has the layers 0 to 5; layers 2 to 9 of it cannot be merged"):
        compact_backups(backup.context, backup.uri, "LATEST", first=2, number=9)
