"""Chains of real backups are sound by every check, with nothing in them that a sweep takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanvault.collection.chain import original_layers
from spanvault.collection.sweep import sweep
from spanvault.engine.maintenance import compact_backups
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from spanvault.verify.files import check_files
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow

STATEMENTS = [
    ["update t set n = -1 where id < 20", "delete from t where id = 30"],
    ["update t set id = id + 5000 where id between 10 and 15", "update counted set b = 'y' where a = 1"],
    ["update t set n = 3 where id = 1", "alter table t add c text default 'a'", "alter table t rename n to m"],
    ["create table late (id int primary key, v text)", "insert into late values (1, 'v')", "update t set m = 9 where id = 2"],
    ["alter table t drop column c", "drop table keyless", "truncate counted", "update t set m = 7 where id > 5010"],
    [],
]


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_a_real_chain_is_sound(database: TestDatabase, tmp_path: Path, history: bool) -> None:
    database.execute("create table t (id int primary key, v text, n int)")
    database.execute("insert into t select i, 'v', i from generate_series(1, 60) i")
    database.execute("create table counted (a int, b text); alter table counted replica identity full")
    database.execute("insert into counted select i % 4, 'x' from generate_series(1, 20) i")
    database.execute("create table keyless (a int); insert into keyless select generate_series(1, 10)")
    backup = Backup(database, tmp_path / "collection")
    backup.take()
    for statements in STATEMENTS:
        for statement in statements:
            database.execute(statement)
        backup.increment(revision_history=history)
    storage, opened = backup.storage, backup.context.storage
    layers = original_layers(storage, "LATEST", open_location=opened)
    assert len(layers) == 1 + len(STATEMENTS)
    for number in range(len(layers)):
        result = check_data(storage, "LATEST", number, open_location=opened)
        assert (result.outcome, result.failures, result.unverified) == ("pass", (), ())
    for first, last in ((2, 4), (0, 5)):
        compact_backups(backup.context, backup.uri, "LATEST", first=first, number=last)
    for result in (
        check_files(storage, open_location=opened),
        check_data(storage, open_location=opened),
        check_collection(storage, open_location=opened),
    ):
        assert (result.outcome, result.failures, result.unverified) == ("pass", (), ())
    report = sweep(storage, now=datetime.now(UTC) + timedelta(days=2), open_location=opened)
    assert (report.objects, report.problems) == (0, ())
