"""Whole DAGs by dag.test(), on a real source and a file:// collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spanvault.embedded.postgres import PostgresServer
from tests.kit.airflow import AirflowSite, DagRun
from tests.kit.servers import TestDatabase, drop_database, fresh_database

SUBDIR = "2026/11/22-143000.00"
Listing = Callable[[Path], dict[str, str]]


@pytest.fixture
def source(
    database: TestDatabase, site: AirflowSite, source_connection: Callable[[TestDatabase], dict[str, str]]
) -> TestDatabase:
    """A small shop, reachable by the Connection that clusters.yaml names."""
    database.execute(
        "create table orders (id int primary key, customer text not null, amount numeric(12,2));"
        "insert into orders select i, 'customer ' || i, i * 1.25 from generate_series(1, 5000) i;"
        "create table notes (note text); insert into notes values ('no key'), (null)"
    )
    site.variables = source_connection(database)
    return database


def states(answer: dict[str, Any]) -> dict[str, set[str]]:
    """The states of each task's instances."""
    found: dict[str, set[str]] = {}
    for task in answer["tasks"]:
        found.setdefault(task["task"], set()).add(task["state"])
    return found


def test_backup_restore_validate_and_expire(
    site: AirflowSite, source: TestDatabase, postgres: PostgresServer, tmp_path: Path, listing: Listing
) -> None:
    collection = f"file://{tmp_path}/collection"
    conf = {"into": collection, "scope": "database", "names": [source.name], "fingerprint": True, "validate": "checksums"}
    [first] = site.dag_test(DagRun("full_backup", conf))
    assert first["state"] == "success"
    assert set().union(*states(first).values()) == {"success"}
    assert any("orders" in task["label"] for task in first["tasks"] if task["task"] == "export")
    assert (tmp_path / "collection" / SUBDIR / "chain/000000.json").is_file()

    before = listing(tmp_path / "collection")
    rows = source.execute("select * from orders order by id"), source.execute("select * from notes order by note")
    restored = f"{source.name}_restored"
    what = {"scope": "database", "names": [source.name], "new_db_name": restored}
    restore = {"collection": collection, **what, "verify_fingerprint": True}
    try:
        answers = site.dag_test(
            DagRun("full_backup", conf),
            DagRun("restore", restore),
            DagRun("validate_backup", {"collection": collection, "subdir": SUBDIR, "level": "schema_only"}),
            DagRun("expire_backups", {"collection": collection, "keep_last": 1}),
        )
        assert [answer["state"] for answer in answers] == ["success"] * 4
        assert answers[0]["run_id"] == first["run_id"]
        copy = TestDatabase(postgres, restored)
        assert (copy.execute("select * from orders order by id"), copy.execute("select * from notes order by note")) == rows
    finally:
        drop_database(postgres, restored)
    assert listing(tmp_path / "collection") == before, "re-running a finished run must change nothing on storage"


def test_nothing_to_export_is_a_backup_and_damage_is_found(
    site: AirflowSite, source: TestDatabase, postgres: PostgresServer, tmp_path: Path
) -> None:
    empty, whole = f"file://{tmp_path}/empty", f"file://{tmp_path}/whole"
    with fresh_database(postgres, "empty") as nothing:
        answers = site.dag_test(
            DagRun("full_backup", {"into": empty, "scope": "database", "names": [nothing.name]}),
            DagRun("full_backup", {"into": whole, "scope": "table", "names": [f"{source.name}.public.orders"]}),
        )
    assert [answer["state"] for answer in answers] == ["success", "success"]
    assert (tmp_path / "empty" / SUBDIR / "chain/000000.json").is_file()

    file = next((tmp_path / "whole" / SUBDIR / "000000/data").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    answers = site.dag_test(
        DagRun("validate_backup", {"collection": whole, "level": "check_files"}),
        DagRun("validate_backup", {"collection": whole, "level": "checksums"}, "2026-11-22T15:00:00+00:00"),
        DagRun("validate_backup", {"collection": whole, "level": "schema_only"}, "2026-11-22T16:00:00+00:00"),
    )
    assert [answer["state"] for answer in answers] == ["success", "failed", "success"], "a changed byte shows in checksums only"
