"""A run of a schedule finds what an earlier try of it left, also where the worker's clock is behind the scheduler's."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from spanvault.engine.maintenance import protection_release
from spanvault.engine.steps import advance_protection, plan_backup
from spanvault.model.clock import now
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase


def test_a_run_finds_its_own_plan_and_no_other_run_s(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key)")
    backup = Backup(database, tmp_path)
    due = now()
    ticks = itertools.count()
    behind = replace(backup.context, clock=lambda: due - timedelta(minutes=2) + timedelta(seconds=next(ticks)))

    def planned(run_key: str) -> str:
        return plan_backup(behind, database.cluster, backup.request, run_key=run_key, due=due).subdir

    first = planned("nightly/1")
    assert planned("nightly/1") == first
    second = planned("nightly/2")
    assert second != first
    assert [planned("nightly/1"), planned("nightly/2")] == [first, second]


def test_a_finished_run_repeated_after_its_protection_ended_changes_nothing(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (id int primary key)")
    backup = Backup(database, tmp_path)
    manifest = backup.take()
    protection_release(backup.context, database.cluster, manifest.databases[0].protection.slot)
    advance_protection(backup.context, database.cluster, manifest)
    assert database.execute("select count(*) from pg_publication") == [(0,)]
    assert database.execute("select count(*) from pg_replication_slots where database = current_database()") == [(0,)]
