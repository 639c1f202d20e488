"""A compaction that ends anywhere: run again it is done, whatever lies around is garbage, and no end or cut is lost.

One chain is made, then copied for each moment of an undisturbed compaction: around each kind of write to storage, or
for all but the simplest kind of it a fixed sample of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spanvault.engine import schedule
from spanvault.engine.maintenance import compact_backups
from spanvault.errors import Refused, Retryable
from spanvault.model.result import Result
from tests.kit.faults import KILLED, Faults, Killed
from tests.kit.harness import Backup
from tests.kit.interrupted import Interrupted, Moment, crash_all, moments, sample
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow

LAYERS = 4
LARGE = "(select string_agg(md5(random()::text), '') from generate_series(1, 90) where i > 0)"  # TOASTed


@pytest.fixture
def runs(database: TestDatabase, tmp_path: Path) -> Iterator[Interrupted]:
    database.execute(
        "create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t select i, {LARGE}, 0 from generate_series(1, 12) i;"
        "create table keyless (a int); insert into keyless select generate_series(1, 5)"
    )
    yield Interrupted(Backup(database, tmp_path / "collection"), ("t", "keyless"))


def make_chain(runs: Interrupted, **options: Any) -> None:
    """A full and LAYERS layers."""
    runs.full("full", runs.clock())
    runs.note()
    for step in range(1, LAYERS + 1):
        runs.backup.database.execute(
            f"update t set n = {step} where id % 3 = {step % 3}; update t set id = id + 100 where id = {step};"
            f"delete from t where id = {step + 6}; insert into t values ({step}, 'new', {step});"
            f"alter table t add c{step} int default {step}; insert into keyless values ({step})"
        )
        runs.layer(f"run {step}", runs.clock(), **options)
        runs.note()


def copied(runs: Interrupted, name: str) -> Interrupted:
    """The same collection in another folder, where anything may happen to it."""
    backup = replace(runs.backup, folder=runs.backup.folder.with_name(name))
    shutil.copytree(runs.backup.folder, backup.folder)
    return replace(runs, backup=backup, faults=Faults(), held=dict(runs.held))


def compact(runs: Interrupted, first: int, number: int) -> Result:
    return compact_backups(runs.context, runs.backup.uri, "LATEST", first=first, number=number)


def merged(runs: Interrupted) -> list[str]:
    """The compacted layers that are there."""
    return sorted(path.stem for path in runs.backup.folder.glob("*/*/*/chain/*-*.json"))


KINDS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "incremental": (1, LAYERS, {}),
    "full": (0, LAYERS, {}),
    "inner, with history": (2, 3, {"revision_history": True}),
    "of a location": (1, LAYERS, {"incremental_location": "layers"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_compaction_that_ends(runs: Interrupted, tmp_path: Path, kind: str) -> None:
    first, number, options = KINDS[kind]
    if "incremental_location" in options:
        options = {"incremental_location": f"file://{tmp_path / 'layers'}"}
    make_chain(runs, **options)
    clean = copied(runs, "clean")
    made = compact(clean, first, number)
    found = moments(clean.faults.log)
    assert {"data", "files", "manifest", "index"} <= {moment.kind for moment in found}
    name = f"{first:06d}-{number:06d}"

    def crash(index: int, place: Moment) -> None:
        own = copied(runs, f"at-{index}")
        lost = index % 4 == 3 and place.kind not in {"index", "readme"}  # which a commit can do without
        place.arm(own.faults, Retryable("The store did not answer.") if lost else KILLED)
        with pytest.raises((Killed, Retryable)):
            compact(own, first, number)
        own.faults.clear()
        committed = merged(own)
        if index % 2:
            own.sweep()
            assert merged(own) == committed
        assert compact(own, first, number).dicts()[0]["rows"] == made.dicts()[0]["rows"]
        assert merged(own) == [name]
        own.sweep()
        own.check("check_files" if index % 5 else "checksums", ends=index % 5 == 0)

    crash_all(found if kind == "incremental" else sample(found, 5), crash)


def test_what_a_sweep_took_before_the_commit_is_no_compacted_layer(runs: Interrupted) -> None:
    """A compaction stands still for longer than the safe age: its files are swept, and its commit sees that."""
    make_chain(runs)
    own = copied(runs, "swept")
    swept: list[int] = []
    own.faults.add_fault("storage.open_write.after", key="*/files-*", action=lambda: swept.append(own.sweep()))
    with pytest.raises(Refused, match="is gone, it may have been swept away; run it again"):
        compact(own, 1, LAYERS)
    assert swept[0] > 0
    assert merged(own) == []
    own.faults.clear()
    compact(own, 1, LAYERS)
    own.sweep()
    own.check()


def test_two_compactions_at_once(runs: Interrupted) -> None:
    """The first manifest counts; what the other one wrote is garbage. Overlapping ones stand beside each other."""
    make_chain(runs)
    own = copied(runs, "twice")
    other = replace(own, faults=Faults())

    def overtake() -> None:
        compact(other, 1, LAYERS)
        compact(other, 2, 3)

    own.faults.add_fault("storage.put.before", key="*/chain/*", action=overtake)
    compact(own, 1, LAYERS)
    assert merged(own) == ["000001-000004", "000002-000003"]
    assert own.sweep() > 0
    assert own.sweep() == 0
    own.check()


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_missed_full_that_was_not_made(runs: Interrupted, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """The run ended after its layers were committed, around the commit of the full that it makes of the chain; run again
    it makes that, once."""
    make_chain(runs)
    monkeypatch.setattr(schedule, "_is_old", lambda *_: True)
    due = runs.clock()
    moment, later = runs.clock(), runs.clock()
    held = {table: runs.backup.source_rows(table) for table in runs.tables}
    runs.faults.add_fault(f"storage.put.{point}", key="*/chain/000000-*", action=KILLED)
    with pytest.raises(Killed):
        runs.layer("late", due, [moment, later], upto=moment)
    runs.faults.clear()
    assert merged(runs) == ([] if point == "before" else ["000000-000005"])
    manifest = runs.layer("late", due, [moment, later], upto=moment)
    assert manifest.number == LAYERS + 1
    assert merged(runs) == ["000000-000005"]
    runs.held[manifest.subdir, manifest.number] = held
    resolved = runs.backup.resolved("LATEST")
    assert [(layer.manifest.first, layer.manifest.number) for layer in resolved.layers] == [(0, LAYERS + 1)]
    runs.sweep()
    runs.check()
