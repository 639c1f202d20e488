"""The one commit point: who wins, what a crash leaves, and what is found afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from spanvault.collection.chain import head, load_manifest, no_locations
from spanvault.collection.chain import resolve as resolve_layers
from spanvault.collection.commit import commit
from spanvault.collection.expire import delete_chain
from spanvault.collection.index import list_chains, list_entries, rebuild
from spanvault.collection.layout import README_KEY, index_key, manifest_key, plan_key
from spanvault.collection.lookup import find_subdir
from spanvault.errors import AlreadyExists, BadInput, BrokenChain, Damaged, NotFound, Refused, Retryable
from spanvault.model.cut import subdir_of
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, SealedRun, write_collection, write_uncommitted
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed


def resolve(storage: Storage, subdir: str, as_of: datetime | None = None) -> tuple[Manifest, ...]:
    """The manifests of the layers that a restore reads."""
    return tuple(layer.manifest for layer in resolve_layers(storage, subdir, as_of, open_location=no_locations).layers)


def test_a_committed_backup_is_found_by_path_and_as_latest(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    assert resolve(storage, "LATEST") == (manifest,)
    assert resolve(storage, "latest") == (manifest,)
    assert resolve(storage, manifest.subdir) == (manifest,)
    assert resolve(storage, f"/{manifest.subdir}/") == (manifest,)
    assert list(list_chains(storage)) == [subdir_of(PLANNED_AT)]


def test_committing_again_changes_nothing(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    first = commit(storage, run.manifest)
    before = {info.key: info for info in storage.list()}
    later = run.manifest.model_copy(update={"committed_at": PLANNED_AT + timedelta(hours=1)})
    assert commit(storage, later) == first
    assert {info.key: info for info in storage.list()} == before


def test_another_runs_layer_is_refused_and_the_winner_named(storage: LocalStorage) -> None:
    run = write_uncommitted(storage, run_key="first")
    commit(storage, run.manifest)
    with pytest.raises(Refused, match="the run first committed it"):
        commit(storage, run.manifest.model_copy(update={"run_key": "second"}))
    assert load_manifest(storage, run.plan.subdir).run_key == "first"


def test_of_racing_tries_of_one_run_all_get_the_same_manifest(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    tries = [run.manifest.model_copy(update={"committed_at": PLANNED_AT + timedelta(seconds=number)}) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda manifest: commit(storage, manifest), tries))
    assert set(results) == {load_manifest(storage, run.plan.subdir)}
    assert rebuild(storage).differing == ()


@pytest.mark.parametrize("plan", [None, "another run"])
def test_a_run_whose_plan_was_swept_cannot_commit(storage: LocalStorage, plan: str | None) -> None:
    run = write_uncommitted(storage)
    storage.delete(plan_key(run.plan.subdir))
    if plan is not None:
        storage.put(plan_key(run.plan.subdir), run.plan.model_copy(update={"run_key": plan}).to_json())
    with pytest.raises(Refused, match="may have been swept away"):
        commit(storage, run.manifest)
    with pytest.raises(NotFound):
        load_manifest(storage, run.plan.subdir)


@pytest.mark.parametrize("update", [{"collection_id": "other"}, {"source": {"system_identifier": "42"}}])
def test_a_manifest_for_another_collection_or_cluster_is_not_committed(storage: LocalStorage, update: dict[str, object]) -> None:
    run = write_uncommitted(storage)
    if "source" in update:
        update = {"source": run.manifest.source.model_copy(update=update["source"])}  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=r"collection|cluster"):
        commit(storage, run.manifest.model_copy(update=update))
    assert storage.head(manifest_key(run.plan.subdir)) is None


def test_a_commit_stands_although_index_and_readme_cannot_be_written(
    storage: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_uncommitted(storage)
    faults = Faults()
    faults.add_fault("storage.put.before", key="metadata/*", action=Retryable("The network is gone."))
    manifest = commit(FaultyStorage(storage, faults), run.manifest)
    assert "The network is gone." in caplog.text
    assert resolve(storage, "LATEST") == (manifest,)
    assert list(list_chains(storage)) == [manifest.subdir]
    assert rebuild(storage).written == 1
    assert [entry.subdir for entry in list_entries(storage)] == [manifest.subdir]


def test_a_lost_answer_is_read_back(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    faults = Faults()
    faults.add_fault("storage.put.after", key="*/chain/*", action=Retryable("The answer was lost."))
    with pytest.raises(Retryable):
        commit(FaultyStorage(storage, faults), run.manifest)
    assert commit(FaultyStorage(storage, faults), run.manifest) == run.manifest


def test_a_run_whose_backup_is_deleted_while_its_tries_race_is_not_told_that_it_is_committed(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    key = manifest_key(run.plan.subdir)
    faults = Faults()
    faults.add_fault("storage.put.before", key=key, action=lambda: commit(storage, run.manifest))
    # The loser has looked once, before it wrote; it looks again for who won.
    faults.add_fault("storage.get.before", key=key, nth=2, action=lambda: delete_chain(storage, run.plan.subdir))
    with pytest.raises(AlreadyExists):
        commit(FaultyStorage(storage, faults), run.manifest)
    assert list(list_chains(storage)) == []
    assert list(storage.list(run.plan.subdir)) == []
    assert list(list_entries(storage)) == []


def _before_a_commit(folder: Path) -> tuple[LocalStorage, Manifest, SealedRun]:
    """A collection with one old backup, no README.txt, and a run that is about to commit."""
    storage = LocalStorage(folder, "file:///backups")
    old = write_collection(storage, planned_at=PLANNED_AT - timedelta(days=1), run_key="old")
    storage.delete(README_KEY)
    return storage, old, write_uncommitted(storage)


def _points_of_a_commit(folder: Path) -> int:
    storage, _, run = _before_a_commit(folder)
    faults = Faults()
    commit(FaultyStorage(storage, faults), run.manifest)
    return len(faults.log)


def test_killed_at_any_call_a_commit_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    _, old, run = _before_a_commit(tmp_path / "original")
    points = _points_of_a_commit(tmp_path / "count")
    assert points > 10
    for nth in range(1, points + 1):
        shutil.copytree(tmp_path / "original", tmp_path / str(nth))
        storage = LocalStorage(tmp_path / str(nth), "file:///backups")
        faults = Faults()
        faults.add_fault("*", nth=nth, action=KILLED)
        with pytest.raises(Killed):
            commit(FaultyStorage(storage, faults), run.manifest)
        committed = storage.head(manifest_key(run.plan.subdir)) is not None
        assert resolve(storage, "LATEST") == ((run.manifest,) if committed else (old,))
        assert list(list_chains(storage)) == ([run.plan.subdir] if committed else []) + [old.subdir]
        assert commit(storage, run.manifest) == run.manifest
        assert resolve(storage, "LATEST") == (run.manifest,)
        assert storage.head(index_key(run.plan.subdir, 0)) is not None
        assert storage.head(README_KEY) is not None


def test_latest_passes_over_runs_that_never_committed(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(days=40), run_key="failed")
    assert find_subdir(storage, "LATEST") == manifest.subdir


@pytest.mark.parametrize("lost", ["all", "newest"])
def test_lookups_are_right_without_the_index(storage: LocalStorage, lost: str) -> None:
    days = [PLANNED_AT + timedelta(days=number) for number in (0, 20, 400)]
    manifests = [write_collection(storage, planned_at=day, run_key=str(day)) for day in days]
    for info in list(storage.list("metadata/index/"))[: 1 if lost == "newest" else 3]:
        storage.delete(info.key)
    assert find_subdir(storage, "LATEST") == manifests[-1].subdir
    assert list(list_chains(storage)) == [manifest.subdir for manifest in reversed(manifests)]
    counts = rebuild(storage)
    assert (counts.written, counts.kept) == ((1, 2) if lost == "newest" else (3, 0))
    assert [entry.subdir for entry in list_entries(storage)] == [manifest.subdir for manifest in reversed(manifests)]


def test_rebuild_removes_entries_of_backups_that_are_gone_and_rewrites_unreadable_ones(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    entry = storage.get(index_key(manifest.subdir, 0))
    storage.put(index_key("2020/01/01-000000.00", 0), entry)
    storage.put(index_key(manifest.subdir, 0), entry[:40])
    counts = rebuild(storage)
    assert (counts.written, counts.kept, counts.removed) == (1, 0, 1)
    assert storage.get(index_key(manifest.subdir, 0)) == entry
    assert [info.key for info in storage.list("metadata/")] == [index_key(manifest.subdir, 0)]


def test_rebuild_does_not_launder_a_changed_manifest(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    key = manifest_key(manifest.subdir)
    storage.put(key, storage.get(key).replace(b'"rows": 5', b'"rows": 6'))
    assert rebuild(storage).differing == (index_key(manifest.subdir, 0),)
    with pytest.raises(Damaged, match="is not the one that was committed"):
        resolve(storage, "LATEST")


def test_rebuild_names_an_unreadable_manifest_and_goes_on(storage: LocalStorage) -> None:
    bad = write_collection(storage)
    good = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="good")
    storage.put(manifest_key(bad.subdir), b"{}")
    storage.delete(index_key(good.subdir, 0))
    counts = rebuild(storage)
    assert (counts.written, counts.removed) == (1, 0)
    assert len(counts.problems) == 1
    assert bad.subdir in counts.problems[0]
    assert storage.head(index_key(bad.subdir, 0)) is not None


def test_nothing_there_is_said_in_a_sentence(storage: LocalStorage) -> None:
    for look in (rebuild, lambda place: resolve(place, "LATEST")):
        with pytest.raises(NotFound, match="no backup collection"):
            look(storage)
    run = write_uncommitted(storage)
    with pytest.raises(NotFound, match="does not contain a completed latest backup"):
        resolve(storage, "LATEST")
    with pytest.raises(NotFound, match="has not finished"):
        resolve(storage, run.plan.subdir)
    with pytest.raises(NotFound, match="There is no backup"):
        resolve(storage, "2020/01/01-000000.00")
    with pytest.raises(BadInput, match="is not a backup's path"):
        resolve(storage, "yesterday")


def test_a_time_must_be_an_exact_end(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    assert resolve(storage, "LATEST", manifest.end.time) == (manifest,)
    with pytest.raises(BadInput, match=r"Invalid RESTORE timestamp .* restorable time is 2026-11-22 14:30:30\.120000\+00 before"):
        resolve(storage, "LATEST", manifest.end.time + timedelta(microseconds=1))


def test_what_this_version_does_not_know_in_a_chain_stops_it(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.put(f"{manifest.subdir}/chain/ENCRYPTION.json", b"{}")
    with pytest.raises(Refused, match="does not know; upgrade"):
        resolve(storage, "LATEST")


def test_a_layer_of_a_newer_format_stops_the_chain(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.put(manifest_key(manifest.subdir, 1), b'{"format_version": 9, "kind": "incremental"}')
    with pytest.raises(Refused, match="newer Spanvault"):
        resolve(storage, "LATEST")


def test_a_gap_in_the_chain_is_named(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.put(manifest_key(manifest.subdir, 2), b"{}")
    with pytest.raises(BrokenChain, match=r"chain/000001\.json is missing"):
        resolve(storage, "LATEST")


@pytest.mark.parametrize("look", [resolve, head])
def test_a_backup_that_is_deleted_while_it_is_looked_at_is_said_to_be_gone_and_not_broken(
    storage: LocalStorage, look: Callable[[Storage, str], object]
) -> None:
    manifest = write_collection(storage)
    faults = Faults()
    faults.add_fault("storage.list.before", key="*/chain/", action=lambda: delete_chain(storage, manifest.subdir))
    with pytest.raises(NotFound, match=f"The backup {manifest.subdir} in file:///backups was deleted while it was looked at"):
        look(FaultyStorage(storage, faults), "LATEST")


def test_a_chain_whose_first_layer_is_no_full_is_never_restored(storage: LocalStorage) -> None:
    """The rows of an incremental would pass for the whole database."""
    manifest = write_collection(storage)
    storage.put(manifest_key(manifest.subdir), manifest.model_copy(update={"kind": "incremental"}).to_json())
    storage.delete(index_key(manifest.subdir, 0))
    with pytest.raises(BrokenChain, match=f"The backup {manifest.subdir} does not begin with a full backup"):
        resolve(storage, "LATEST")


def test_a_manifest_in_anothers_place_is_damage(storage: LocalStorage) -> None:
    one = write_collection(storage)
    other = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="other")
    storage.put(manifest_key(other.subdir), storage.get(manifest_key(one.subdir)))
    with pytest.raises(Damaged, match="copied or renamed"):
        resolve(storage, "LATEST")


def test_the_readme_holds_the_command_that_restores(storage: LocalStorage) -> None:
    write_collection(storage)
    text = storage.get(README_KEY).decode()
    assert "spanvault sql --url postgresql://<user>@<host>/postgres \"RESTORE FROM LATEST IN 'file:///backups'\"" in text
