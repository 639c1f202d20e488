"""Layers that end at given times: the cut for a time, late and early runs, races, closing of chains, synthetic fulls."""

# statements of SQL read better on one line

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spanvault.collection.chain import head, original_layers
from spanvault.collection.lookup import complete_subdirs
from spanvault.database.postgres.pgoutput import commit_time
from spanvault.engine.schedule import plan_scheduled
from spanvault.engine.steps import advance_protection, export_batch, seal_backup, write_manifest
from spanvault.errors import AlreadyCovered, BadInput, Refused, SpanvaultError
from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    database.execute("create table t (id int primary key, n int); insert into t select i, i from generate_series(1, 50) i")
    yield Backup(database, tmp_path / "collection")


def now(backup: Backup) -> datetime:
    """The source's clock."""
    moment: datetime = backup.database.execute("select clock_timestamp()")[0][0]
    return moment.astimezone(UTC)


class History:
    """Times, and what the source held at each."""

    def __init__(self, backup: Backup) -> None:
        self.backup = backup
        self.held: dict[datetime, list[str]] = {}

    def write(self, times: int = 1) -> list[datetime]:
        """Change something, then note the time and the rows; something else is committed after each."""
        found = []
        for _ in range(times):
            step = len(self.held)
            self.backup.database.execute(
                f"update t set n = n + 100 where id = {step + 1}; insert into t values ({1000 + step}, 0)"
            )
            moment = now(self.backup)
            self.held[moment] = self.backup.source_rows("t")
            found.append(moment)
        self.backup.database.execute("update t set n = n + 1 where id = 50")
        return found

    def missed(self, after: datetime, upto: datetime) -> Sequence[datetime]:
        """The noted times as the ends of a schedule's intervals."""
        return [moment for moment in sorted(self.held) if after < moment <= upto]

    def run(self, due: datetime | None, run_key: str, **options: object) -> Manifest:
        """A scheduled run for the interval that ends at `due`, from plan to advance."""
        backup = self.backup
        request = backup.request.model_copy(update={"append": "LATEST", "options": backup.options.model_copy(update=options)})
        cluster, context = backup.database.cluster, backup.context
        full_every = timedelta(days=7)
        plan = plan_scheduled(
            context,
            cluster,
            request,
            run_key=run_key,
            due=due or now(backup),
            interval_end=due,
            missed=self.missed,
            full_every=full_every,
        )
        for batch in plan.batches:
            export_batch(context, cluster, request.into, plan, batch.index)
        manifest = write_manifest(context, request.into, plan, seal_backup(context, cluster, request.into, plan))
        advance_protection(context, cluster, manifest)
        return manifest

    def assert_held(self) -> None:
        """Each time since the first layer restores to what the source held."""
        for moment, rows in self.held.items():
            resolved = self.backup.resolved("LATEST", moment)
            assert self.backup.rows(resolved.manifest, "t", at=moment) == rows, f"at {moment}"


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_a_late_run_writes_a_layer_for_every_interval_end(backup: Backup, history: bool) -> None:
    backup.take()
    past = History(backup)
    times = past.write(5)
    newest = past.run(times[-1], "run/1", revision_history=history)
    layers = original_layers(backup.storage, "LATEST", open_location=backup.context.storage)
    assert [layer.manifest.end.time for layer in layers[1:]] == times
    assert newest.number == 5
    past.assert_held()


def test_runs_in_any_order_give_the_layers_of_timely_runs(backup: Backup) -> None:
    backup.take()
    past = History(backup)
    times = past.write(4)
    past.run(times[2], "run/3")
    past.run(times[3], "run/4")
    for key, moment in (("run/1", times[0]), ("run/2", times[1])):
        with pytest.raises(AlreadyCovered, match=r"is covered by the layer [12] of"):
            past.run(moment, key)
    repeated = past.run(times[3], "run/4")
    layers = original_layers(backup.storage, "LATEST", open_location=backup.context.storage)
    assert [layer.manifest.end.time for layer in layers[1:]] == times
    assert repeated == layers[-1].manifest
    past.assert_held()


def test_timely_and_late_layers_end_at_the_same_position(backup: Backup) -> None:
    """Two collections: one is kept up at each time, the other later at once."""
    late = Backup(backup.database, backup.folder.with_name("late"))
    backup.take()
    late.take()
    past, other = History(backup), History(late)
    for step in range(3):
        (moment,) = past.write()
        past.run(moment, f"timely/{step}")
    other.held = past.held
    other.run(max(past.held), "late/1")
    timely = original_layers(backup.storage, "LATEST", open_location=backup.context.storage)[1:]
    assert [layer.end for layer in timely] == [
        layer.end for layer in original_layers(late.storage, "LATEST", open_location=late.context.storage)[1:]
    ]
    past.assert_held()
    other.assert_held()


def test_an_idle_source_has_cuts_too(backup: Backup) -> None:
    """A fence is committed after the time: else nobody could know that nothing else was."""
    backup.take()
    past = History(backup)
    moment = now(backup)
    past.held[moment] = backup.source_rows("t")
    first = past.run(moment, "run/1")
    again = now(backup)
    past.held[again] = backup.source_rows("t")
    second = past.run(again, "run/2")
    assert (first.end.time, second.end.time) == (moment, again)
    assert first.end.lsn <= second.end.lsn
    assert second.totals.file_bytes == 0
    past.assert_held()


def test_a_time_in_the_future_is_refused(backup: Backup) -> None:
    backup.take()
    with pytest.raises(BadInput, match="A backup cannot end in the future"):
        backup.increment(as_of=now(backup) + timedelta(hours=1))


def test_a_full_closes_the_chain_before_it(backup: Backup) -> None:
    first = backup.take()
    backup.database.execute("update t set n = 0 where id < 10")
    second = backup.take()
    rows = backup.source_rows("t")
    closing, _ = head(backup.storage, first.subdir)
    assert (closing.number, closing.end.lsn) == (1, second.end.lsn)
    assert backup.rows(closing, "t") == rows == backup.rows(second, "t")


def test_two_runs_at_once_one_wins(backup: Backup) -> None:
    """Both plan the same layer; the other one says whose it is, and nothing is lost."""
    backup.take()
    backup.database.execute("update t set n = 0 where id < 10")
    second = Backup(backup.database, backup.folder)
    won: list[Manifest] = []
    first = Backup(backup.database, backup.folder, at={"seal.before_record": lambda: won.append(second.increment())})
    with pytest.raises(SpanvaultError, match=r"layer 1\b.*the run .* is not committed"):
        first.increment()
    backup.database.execute("update t set n = 7 where id < 5")
    last = Backup(backup.database, backup.folder).increment()
    assert last.number == 2
    assert backup.rows(last, "t") == backup.source_rows("t")
    assert won[0].number == 1


def test_a_run_for_a_time_that_another_one_covered_meanwhile_says_so(backup: Backup) -> None:
    backup.take()
    past = History(backup)
    times = past.write(2)
    other = History(Backup(backup.database, backup.folder))
    other.held = past.held
    first = Backup(backup.database, backup.folder, at={"seal.before_record": lambda: other.run(times[1], "run/2")})
    early = History(first)
    early.held = past.held
    with pytest.raises(AlreadyCovered, match="is covered by the layer 1 of"):
        early.run(times[0], "run/1")
    past.assert_held()


def test_many_runs_at_once_leave_one_chain(backup: Backup) -> None:
    backup.take()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            Backup(backup.database, backup.folder).increment()
        except SpanvaultError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layers = original_layers(backup.storage, "LATEST", open_location=backup.context.storage)
    assert len(layers) - 1 + len(failures) == 4
    backup.database.execute("update t set n = 7 where id < 5")
    assert backup.rows(backup.increment(), "t") == backup.source_rows("t")


def test_a_time_before_every_chain_cannot_be_had(backup: Backup) -> None:
    past = History(backup)
    times = past.write(2)
    with pytest.raises(Refused, match=r"A backup as of .* cannot be had"):
        past.run(times[0], "run/1")
    assert list(complete_subdirs(backup.storage)) == []
    full = past.run(times[1], "run/2")
    assert full.kind == "full"
    with pytest.raises(Refused, match=r"A backup as of .* cannot be had"):
        past.run(times[0], "run/1")


def test_a_missed_full_is_made_of_the_chain(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run for a past time at which a full was due: the source is not read for it."""
    from spanvault.engine import schedule

    backup.take()
    past = History(backup)
    times = past.write(3)
    monkeypatch.setattr(schedule, "_is_old", lambda *_: True)
    past.run(times[1], "run/2")
    resolved = backup.resolved("LATEST", times[1])
    assert [(layer.manifest.first, layer.manifest.number) for layer in resolved.layers] == [(0, 2)]
    assert backup.rows(resolved.manifest, "t", at=times[1]) == past.held[times[1]]


def test_a_clock_that_was_set_back_stops_only_what_needs_times(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain incremental has no time inside; a full closes the chain without revision history rather than not at all."""
    from spanvault.backup import layer_log

    backup.take()
    backup.increment(revision_history=True)
    stamps = iter(range(10**6))

    def running_backwards(microseconds: int) -> datetime:
        return commit_time(microseconds) - timedelta(hours=next(stamps))

    for step in range(3):
        backup.database.execute(f"update t set n = {step} where id = 1")
    monkeypatch.setattr(layer_log, "commit_time", running_backwards)
    with pytest.raises(Refused, match="The source's clock was set back"):
        backup.increment(revision_history=True)
    full = backup.take()
    closing, _ = head(backup.storage, sorted(complete_subdirs(backup.storage))[0])
    assert (closing.number, closing.revision_history, closing.end.lsn) == (2, False, full.end.lsn)
    backup.database.execute("update t set n = 9 where id = 2; update t set n = 9 where id = 3")
    plain = backup.increment()
    assert backup.rows(plain, "t") == backup.source_rows("t")
    monkeypatch.undo()
    assert backup.rows(closing, "t") == backup.rows(full, "t")


def test_a_time_before_the_chain_is_not_called_covered(backup: Backup) -> None:
    backup.take()
    with pytest.raises(Refused, match=r"cannot be had: the chain .* begins later"):
        backup.increment(as_of=now(backup) - timedelta(hours=10))
