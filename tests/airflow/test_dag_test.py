"""Whole DAGs by dag.test(), on a real source and a file:// collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.airflow import AirflowSite
from tests.kit.servers import TestDatabase

RUN_AFTER = "2026-11-22T14:30:00+00:00"


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


def test_full_backup_then_again_then_restore(
    site: AirflowSite, source: TestDatabase, tmp_path: Path, listing: Callable[[Path], dict[str, str]]
) -> None:
    into = f"file://{tmp_path}/collection"
    conf = {"into": into, "scope": "database", "names": [source.name], "fingerprint": True, "validate": "checksums"}
    first = site.dag_test("full_backup", conf, run_after=RUN_AFTER)
    assert first["state"] == "success"
    assert set().union(*states(first).values()) == {"success"}
    labels = {task["label"] for task in first["tasks"] if task["task"] == "export"}
    assert any("orders" in label for label in labels)
    assert (tmp_path / "collection/2026/11/22-143000.00/chain/000000.json").is_file()

    before = listing(tmp_path / "collection")
    again = site.dag_test("full_backup", conf, run_after=RUN_AFTER)
    assert again["run_id"] == first["run_id"]
    assert again["state"] == "success"
    assert listing(tmp_path / "collection") == before, "re-running a finished run must change nothing on storage"
