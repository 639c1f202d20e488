"""The DAG encrypted_backup and what reads its collection, by dag.test(): keys by reference, and never a backup in the clear."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from spanvault.crypto.stream import MAGIC
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.seaweed import SeaweedServer
from tests.kit.airflow import AirflowSite, DagRun
from tests.kit.dumps import rows_text
from tests.kit.moto_server import REGION, MotoServer
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.stores import S3Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PASSPHRASE = "kept in a connection only"
OTHER_PASSPHRASE = "kept in a variable only"
KMS_SECRET, WRONG_SECRET = "secret-of-the-key-service", "secret-of-nobody-at-the-store"
REFERENCE = {"passphrase_from": "connection:spanvault_passphrase"}


@dataclass
class Story:
    """Answers of the runs by what they were."""

    source: TestDatabase
    restored: TestDatabase
    store: S3Store
    folder: Path
    site: AirflowSite
    answers: dict[str, dict[str, Any]]

    @property
    def secrets(self) -> set[str]:
        """What nobody may find, also as it would stand in a URI."""
        secrets = {PASSPHRASE, OTHER_PASSPHRASE, KMS_SECRET, WRONG_SECRET, *self.store.secrets}
        return {form(secret) for secret in secrets for form in (str, quote, quote_plus)}


def aws_connection(access_key: str, secret: str, endpoint: str, region: str) -> str:
    extra = {"endpoint_url": endpoint, "region_name": region}
    return json.dumps({"conn_type": "aws", "login": access_key, "password": secret, "extra": extra})


def secrets_of_airflow(seaweed: SeaweedServer, moto: MotoServer) -> dict[str, str]:
    """Connections and a variable, as an administrator adds them."""
    return {
        "AIRFLOW_CONN_SPANVAULT_PASSPHRASE": json.dumps({"conn_type": "generic", "password": PASSPHRASE}),
        "AIRFLOW_VAR_BACKUP_WORDS": OTHER_PASSPHRASE,
        "AIRFLOW_CONN_STORE": aws_connection(seaweed.access_key, seaweed.secret_key, seaweed.endpoint, seaweed.REGION),
        "AIRFLOW_CONN_WRONG_STORE": aws_connection(seaweed.access_key, WRONG_SECRET, seaweed.endpoint, seaweed.REGION),
        "AIRFLOW_CONN_KEYS": aws_connection("AKIAKEYS", KMS_SECRET, moto.endpoint, REGION),
    }


@pytest.fixture(scope="module")
def story(
    site: AirflowSite,
    postgres: PostgresServer,
    seaweed: SeaweedServer,
    source_connection: Callable[[TestDatabase], dict[str, str]],
    servers_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    folder, store = tmp_path_factory.mktemp("encrypted"), S3Store(seaweed, "encrypted-dag")
    uri, plain = "s3://encrypted-dag/collection?conn_id=store", f"file://{folder}/plain"
    with fresh_database(postgres, "vault") as source, MotoServer(servers_folder / "moto") as moto:
        source.execute(
            "create table t (id int primary key, v text); insert into t select i, 'mark' || i from generate_series(1, 500) i"
        )
        here = replace(site, variables={**source_connection(source), **secrets_of_airflow(seaweed, moto)})
        database = {"scope": "database", "names": [source.name]}
        restored = TestDatabase(postgres, f"{source.name}_restored")
        restore = {"collection": uri, **database, "new_db_name": restored.name}
        key = f"aws:///{moto.kms().create_key()['KeyMetadata']['KeyId']}?REGION={REGION}&conn_id=keys"
        runs = {
            "full": DagRun("encrypted_backup", {"into": uri, **database}),
            "without a key": DagRun("encrypted_backup", {"into": plain, **database, "passphrase_from": ""}, at(1)),
            "layer": DagRun("encrypted_backup", {"into": uri, **database, **REFERENCE}, at(2)),
            "restore without": DagRun("restore", restore, at(3)),
            "restore": DagRun("restore", {**restore, **REFERENCE}, at(4)),
            "validate": DagRun("validate_backup", {"collection": uri, "level": "checksums", **REFERENCE}),
            "wrong key": DagRun("encrypted_backup", {"into": uri, **database, "passphrase_from": "variable:backup_words"}, at(5)),
            "wrong store": DagRun(
                "encrypted_backup", {"into": uri.replace("=store", "=wrong_store"), **database, **REFERENCE}, at(6)
            ),
            # Last: dag.test() leaves a run's answers behind for the next runs of its process.
            "key service": DagRun(
                "encrypted_backup", {"into": uri.replace("?", "_by_key?"), **database, "passphrase_from": "", "kms": [key]}, at(7)
            ),
        }
        try:
            with here.dag_tests() as run:
                answers = run(*runs.values())
            yield Story(source, restored, store, folder, here, dict(zip(runs, answers, strict=True)))
        finally:
            drop_database(postgres, restored.name)


def at(hour: int) -> str:
    return f"2026-11-20T{hour:02}:00:00+00:00"


def test_each_run_ends_as_its_key_allows(story: Story) -> None:
    assert {name: answer["state"] for name, answer in story.answers.items()} == {
        "full": "success",
        "without a key": "failed",
        "layer": "success",
        "restore without": "failed",
        "restore": "success",
        "validate": "success",
        "key service": "success",
        "wrong key": "failed",
        "wrong store": "failed",
    }


def test_nothing_stands_in_the_clear(story: Story) -> None:
    below_chains = {name: data for name, data in story.store.objects() if name.split("/")[0].isdigit()}
    assert len(below_chains) > 10
    in_the_clear = {name.split("/")[-1] for name, data in below_chains.items() if not data.startswith(MAGIC)}
    assert in_the_clear == {"ENCRYPTION-INFO-000000.json"}
    assert not (story.folder / "plain").exists()


def test_no_secret_is_in_what_airflow_keeps(story: Story) -> None:
    """In its database are the form's answers, XComs and rendered fields: all of it is looked through."""
    rows = rows_text(TestDatabase(story.site.metadata.server, story.site.database))
    told = {row.split('"')[3] for row in rows if "encrypted-dag/collection" in row}
    assert {"dag_run", "xcom", "rendered_task_instance_fields"} <= told
    assert [row for row in rows if REFERENCE["passphrase_from"] in row]
    assert [(secret, row[:300]) for row in rows for secret in story.secrets if secret in row] == []


def test_no_secret_is_in_a_log(story: Story) -> None:
    """Nor in the errors of tasks that failed for a wrong one, which stand there."""
    logs = {path: path.read_text(errors="replace") for path in story.site.home.rglob("*") if path.is_file()}
    everything = "\n".join(logs.values())
    for error in ("cannot be decrypted with this passphrase", "the secret key does not belong to the access key"):
        assert error in everything
    assert [(path, secret) for path, text in logs.items() for secret in story.secrets if secret in text] == []


def test_the_restored_rows_are_the_sources(story: Story) -> None:
    query = "select * from t order by id"
    assert story.restored.execute(query) == story.source.execute(query)


MASKED = """
    import json

    from airflow.sdk.log import redact
    from spanvault_airflow.hooks.connections import AirflowConnections

    connections = AirflowConnections()
    texts = [connections.variable("backup_words"), connections.resolve("keys").password]
    print(json.dumps([redact(f"a library says {text.get_secret_value()}") for text in texts]))
"""


def test_airflow_masks_what_a_worker_has_looked_up(story: Story) -> None:
    """Whoever would log it: the variable's name tells Airflow nothing."""
    said = json.loads(story.site.python("-c", textwrap.dedent(MASKED)).splitlines()[-1])
    assert said == ["a library says ***"] * 2
