"""A collection in a real bucket: the same life as in a folder."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from spanvault.collection.chain import no_locations, resolve
from spanvault.collection.commit import commit
from spanvault.collection.expire import expire
from spanvault.collection.index import list_chains, rebuild
from spanvault.collection.layout import manifest_key
from spanvault.collection.plans import create_plan
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import sweep
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import NotFound
from spanvault.storage.base import Storage
from spanvault.storage.registry import open_storage
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from tests.kit.collections import PLANNED_AT, ensure, make_plan, write_collection, write_uncommitted

NOW = datetime.now(UTC)


@pytest.fixture
def bucket(seaweed: SeaweedServer) -> Storage:
    """An empty prefix in a bucket of its own."""
    name = f"collection-{uuid.uuid4().hex[:12]}"
    seaweed.create_bucket(name)
    return open_storage(seaweed.uri(name, "backups"), settings=Settings(), connections=EnvironmentConnections({}))


def test_the_life_of_a_collection(bucket: Storage) -> None:
    with pytest.raises(NotFound):
        resolve(bucket, open_location=no_locations)
    old = write_collection(bucket)
    new = write_collection(bucket, planned_at=PLANNED_AT + timedelta(days=40), run_key="new")
    run = write_uncommitted(bucket, planned_at=PLANNED_AT + timedelta(days=41), run_key="abandoned")
    assert resolve(bucket, open_location=no_locations).manifest == new
    assert list(list_chains(bucket)) == [new.subdir, old.subdir]
    assert rebuild(bucket).kept == 2
    assert check_collection(bucket).outcome == "pass"
    assert check_data(bucket).outcome == "pass"

    expire(bucket, Policy(keep_last=1), now=NOW, dry_run=False)
    assert list(bucket.list(old.subdir)) == []
    assert sweep(bucket, now=NOW, dry_run=False).objects == 0
    assert sweep(bucket, now=NOW + timedelta(hours=25), dry_run=False).objects > 8
    assert list(bucket.list(run.plan.subdir)) == []
    assert check_data(bucket).outcome == "pass"


def test_racing_plans_and_commits_have_one_winner(bucket: Storage) -> None:
    collection = ensure(bucket)
    later = PLANNED_AT + timedelta(days=1)
    plans = [make_plan(collection, planned_at=later, run_key=f"run-{number}") for number in range(8)]
    run = write_uncommitted(bucket)
    tries = [run.manifest.model_copy(update={"committed_at": PLANNED_AT + timedelta(hours=hour)}) for hour in range(8)]
    with ThreadPoolExecutor(8) as pool:
        planned = list(pool.map(lambda plan: create_plan(bucket, plan), plans))
        committed = set(pool.map(lambda manifest: commit(bucket, manifest), tries))
    assert planned.count(True) == 1
    assert committed == {resolve(bucket, run.plan.subdir, open_location=no_locations).manifest}
    assert bucket.head(manifest_key(run.plan.subdir)) is not None
