"""Whole DAGs by dag.test(), on a real source and file:// collections.

All are run before the tests look: first the backups, then what uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spanvault.embedded.postgres import PostgresServer
from tests.kit.airflow import AirflowSite, DagRun
from tests.kit.servers import TestDatabase, drop_database, fresh_database

Listing = Callable[[Path], dict[str, str]]


@dataclass
class Story:
    """What was run and what came of it. `whole` is the database's collection, `damaged` one of a single table."""

    source: TestDatabase
    restored: TestDatabase
    folder: Path
    backups: list[dict[str, Any]]
    stored: dict[str, str]
    later: list[dict[str, Any]]


@pytest.fixture(scope="module")
def story(
    site: AirflowSite,
    postgres: PostgresServer,
    source_connection: Callable[[TestDatabase], dict[str, str]],
    listing: Listing,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Three backups, one of them damaged then; after that a re-run, a restore, validations and an expiry."""
    folder = tmp_path_factory.mktemp("collections")
    uris = {name: f"file://{folder}/{name}" for name in ("whole", "empty", "damaged")}
    with fresh_database(postgres, "shop") as source, fresh_database(postgres, "empty") as empty:
        source.execute(
            "create table orders (id int primary key, customer text not null, amount numeric(12,2));"
            "insert into orders select i, 'customer ' || i, i * 1.25 from generate_series(1, 5000) i;"
            "create table notes (note text); insert into notes values ('no key'), (null)"
        )
        here = replace(site, variables=source_connection(source))
        database = {"scope": "database", "names": [source.name]}
        whole = DagRun("full_backup", {"into": uris["whole"], **database, "fingerprint": True, "validate": "checksums"})
        table = {"scope": "table", "names": [f"{source.name}.public.orders"]}
        restored = TestDatabase(postgres, f"{source.name}_restored")
        restore = {"collection": uris["whole"], **database, "new_db_name": restored.name, "verify_fingerprint": True}
        try:
            with here.dag_tests() as run:
                backups = run(
                    whole,
                    DagRun("full_backup", {"into": uris["empty"], "scope": "database", "names": [empty.name]}),
                    DagRun("full_backup", {"into": uris["damaged"], **table}),
                )
                stored = listing(folder / "whole")
                flip_a_byte(next((folder / "damaged").rglob("000000/data/*.parquet")))
                later = run(
                    whole,
                    DagRun("restore", restore),
                    DagRun("expire_backups", {"collection": uris["whole"], "keep_last": 1}),
                    *(
                        DagRun(
                            "validate_backup", {"collection": uris["damaged"], "level": level}, f"2026-11-23T0{hour}:00:00+00:00"
                        )
                        for hour, level in enumerate(("check_files", "checksums", "schema_only"))
                    ),
                )
            yield Story(source, restored, folder, backups, stored, later)
        finally:
            drop_database(postgres, restored.name)


def flip_a_byte(file: Path) -> None:
    """What a bad disk does."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_backup_of_a_database(story: Story) -> None:
    whole = story.backups[0]
    assert whole["state"] == "success"
    assert {task["state"] for task in whole["tasks"]} == {"success"}
    assert any("orders" in task["label"] for task in whole["tasks"] if task["task"] == "export")
    assert [path for path in story.stored if path.endswith("chain/000000.json")]


def test_backup_with_nothing_to_export_is_a_backup(story: Story) -> None:
    assert story.backups[1]["state"] == "success"
    assert {task["state"] for task in story.backups[1]["tasks"]} == {"success"}, "a skipped export would skip the commit"
    assert list((story.folder / "empty").rglob("chain/000000.json"))


def test_rerun_of_a_finished_backup_changes_nothing(story: Story, listing: Listing) -> None:
    assert story.later[0]["run_id"] == story.backups[0]["run_id"]
    assert story.later[0]["state"] == "success"
    assert listing(story.folder / "whole") == story.stored


def test_restore_under_another_name_is_equal(story: Story) -> None:
    assert story.later[1]["state"] == "success"
    for query in ("select * from orders order by id", "select * from notes order by note"):
        assert story.restored.execute(query) == story.source.execute(query)


def test_expiry_keeps_the_newest_backup(story: Story) -> None:
    assert story.later[2]["state"] == "success"


def test_each_level_finds_what_it_promises(story: Story) -> None:
    """A changed byte keeps names and sizes, so only `checksums` sees it."""
    assert [answer["state"] for answer in story.later[3:]] == ["success", "failed", "success"]
