"""The DAG encrypted_backup and what reads its collection, by dag.test(): keys by reference, and never a backup in the clear."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spanvault.crypto.stream import MAGIC
from spanvault.embedded.postgres import PostgresServer
from tests.kit.airflow import AirflowSite, DagRun
from tests.kit.servers import TestDatabase, drop_database, fresh_database

pytestmark = pytest.mark.slow
PASSPHRASE = "kept in a connection only"
REFERENCE = {"passphrase_from": "connection:spanvault_passphrase"}


@dataclass
class Story:
    """Answers of the runs by what they were."""

    source: TestDatabase
    restored: TestDatabase
    folder: Path
    answers: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def story(
    site: AirflowSite,
    postgres: PostgresServer,
    source_connection: Callable[[TestDatabase], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("encrypted")
    uri, plain = f"file://{folder}/encrypted", f"file://{folder}/plain"
    with fresh_database(postgres, "vault") as source:
        source.execute(
            "create table t (id int primary key, v text); insert into t select i, 'mark' || i from generate_series(1, 500) i"
        )
        secret = {"AIRFLOW_CONN_SPANVAULT_PASSPHRASE": json.dumps({"conn_type": "generic", "password": PASSPHRASE})}
        here = replace(site, variables={**source_connection(source), **secret})
        database = {"scope": "database", "names": [source.name]}
        restored = TestDatabase(postgres, f"{source.name}_restored")
        restore = {"collection": uri, **database, "new_db_name": restored.name}
        runs = {
            "full": DagRun("encrypted_backup", {"into": uri, **database}),
            "without a key": DagRun(
                "encrypted_backup", {"into": plain, **database, "passphrase_from": ""}, "2026-11-20T01:00:00+00:00"
            ),
            "layer": DagRun("encrypted_backup", {"into": uri, **database, **REFERENCE}, "2026-11-20T02:00:00+00:00"),
            "restore without": DagRun("restore", restore, "2026-11-20T03:00:00+00:00"),
            "restore": DagRun("restore", {**restore, **REFERENCE}, "2026-11-20T04:00:00+00:00"),
            "validate": DagRun("validate_backup", {"collection": uri, "level": "checksums", **REFERENCE}),
        }
        try:
            with here.dag_tests() as run:
                answers = run(*runs.values())
            yield Story(source, restored, folder, dict(zip(runs, answers, strict=True)))
        finally:
            drop_database(postgres, restored.name)


def test_each_run_ends_as_its_key_allows(story: Story) -> None:
    assert {name: answer["state"] for name, answer in story.answers.items()} == {
        "full": "success",
        "without a key": "failed",
        "layer": "success",
        "restore without": "failed",
        "restore": "success",
        "validate": "success",
    }


def test_nothing_stands_in_the_clear(story: Story) -> None:
    files = [path for path in story.folder.rglob("*") if path.is_file()]
    below_chains = [path for path in files if path.relative_to(story.folder / "encrypted").parts[0].isdigit()]
    assert len(below_chains) > 10
    assert {path.name for path in below_chains if not path.read_bytes().startswith(MAGIC)} == {"ENCRYPTION-INFO-000000.json"}
    assert not (story.folder / "plain").exists()


def test_the_passphrase_is_in_no_answer(story: Story) -> None:
    assert PASSPHRASE not in json.dumps(story.answers)


def test_the_restored_rows_are_the_sources(story: Story) -> None:
    query = "select * from t order by id"
    assert story.restored.execute(query) == story.source.execute(query)
