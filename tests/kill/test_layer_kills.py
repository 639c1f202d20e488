"""A layer that ends anywhere: the run again, or another run, finishes it, and every end is what the source held.

The moments are found in one undisturbed run: every named point, and around every kind of write to storage. The simplest
kind of layer is ended at each named point and around one write of each kind, several layers and fulls that close a chain
around each commit, and all else at a fixed sample, so that all of it stays affordable. After every third end everything is
swept, so that a run has to do without what it left.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.chain import head, load_manifest
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.maintenance import collection_check, validate_backup
from spanvault.errors import AlreadyCovered, Damaged, Retryable, SpanvaultError
from spanvault.model.manifest import Manifest
from tests.kit.command_line import PROGRAM
from tests.kit.faults import KILLED, Faults, Killed
from tests.kit.harness import Backup
from tests.kit.interrupted import Interrupted, Moment, crash_all, moments, objects_below, sample
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database

pytestmark = pytest.mark.slow

LARGE = "(select string_agg(md5(random()::text), '') from generate_series(1, 90) where {0} > 0)"  # TOASTed


@pytest.fixture
def runs(database: TestDatabase, tmp_path: Path) -> Iterator[Interrupted]:
    runs = Interrupted(Backup(database, tmp_path / "collection"), ("t", "keyless", "fresh"))
    make_source(runs)
    yield runs


def make_source(runs: Interrupted) -> None:
    """The tables, and a full of them."""
    runs.backup.database.execute(
        "create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t select i, {LARGE.format('i')}, 0 from generate_series(1, 12) i;"
        "create table keyless (a int); insert into keyless select generate_series(1, 5);"
        "create table fresh (id int primary key)"
    )
    runs.full("full", runs.clock())
    runs.note()


def change(runs: Interrupted, step: int) -> None:
    """Rows changed beside large values that are left alone, keys changed, rows gone and new, a table replaced by a new one,
    now and then rows of the table without a key."""
    low, high = step % 10 + 1, step % 10 + 2
    runs.backup.database.execute(
        f"update t set n = n + {step + 1} where id % 3 = {step % 3};"
        f"update t set id = 1000 + {step} where id = {high}; delete from t where id = {low};"
        f"insert into t values ({low}, 'new', {step}), ({high}, 'other', {step});"
        f"drop table fresh; create table fresh (id int primary key); insert into fresh values ({step})"
    )
    if step % 2:
        runs.backup.database.execute(f"insert into keyless values ({step})")


def end(runs: Interrupted, place: Moment, number: int, run: Callable[[], object]) -> None:
    """A run that ends at the place: killed, or every fourth time by an answer that was lost."""
    lost = number % 4 == 3 and place.kind not in {"index", "readme"}  # which a commit can do without
    runs.faults.clear()
    place.arm(runs.faults, Retryable("The store did not answer.") if lost else KILLED)
    with pytest.raises((Killed, Retryable)):
        run()
    runs.faults.clear()
    if number % 3 == 2:
        runs.sweep()


def swept_and_sound(runs: Interrupted) -> None:
    """After a sweep of all garbage, whatever its age, there is none, and every end that was committed is right."""
    runs.sweep()
    assert runs.sweep() == 0
    runs.check()


@pytest.mark.parametrize(("kind", "size"), [("last changes", 0), ("revision history", 4), ("incremental location", 4)], ids=str)
def test_one_layer(runs: Interrupted, tmp_path: Path, kind: str, size: int) -> None:
    options: dict[str, Any] = {}
    if kind == "revision history":
        options = {"revision_history": True}
    elif kind == "incremental location":
        options = {"incremental_location": f"file://{tmp_path / 'layers'}"}
    change(runs, 0)
    runs.faults.clear()
    runs.layer("clean", runs.clock(), **options)
    runs.note()
    found = moments(runs.faults.log)
    kinds = {"", "plan", "dump", "data", "seal", "files", "manifest"}
    assert kinds <= {moment.kind for moment in found}
    own = [moment for moment in found if moment.kind in {"", "data", "commits", "manifest"}]
    named, writes = [moment for moment in found if not moment.kind], [moment for moment in found if moment.kind]
    places = sample(own, size) if size else named + sample(writes, 8)

    def crash(number: int, place: Moment) -> None:
        due = runs.clock()
        change(runs, number + 1)
        end(runs, place, number, lambda: runs.layer(f"run {number}", due, **options))
        runs.note()
        change(runs, number + 100)
        again = number % 2 == 0
        runs.layer(f"run {number}" if again else f"run {number} anew", due if again else runs.clock(), **options)
        runs.note()

    crash_all(places, crash)
    swept_and_sound(runs)


class Times:
    """Times, and the rows of `t` at each; what comes before and after each is another layer's."""

    def __init__(self, runs: Interrupted) -> None:
        self.runs = runs
        self.rows: dict[datetime, list[str]] = {}

    def pass_by(self, step: int) -> list[datetime]:
        """Three times: a change before each but the last, which is of an idle stretch, and one after all."""
        found = []
        for index in range(3):
            if index < 2:
                change(self.runs, 3 * step + index)
            found.append(self.runs.clock())
            self.rows[found[-1]] = self.runs.backup.source_rows("t")
        change(self.runs, 3 * step + 2)
        return found

    def note(self) -> None:
        """Layers that appeared since the last call ended at one of the times."""
        for subdir, number in self.runs.committed() - self.runs.held.keys():
            moment = load_manifest(self.runs.backup.storage, subdir, number).end.time
            self.runs.held[subdir, number] = {"t": self.rows[moment]}


def only_chain(runs: Interrupted) -> set[int]:
    """The numbers of the layers of the only chain."""
    ((_, numbers),) = groupby_chain(runs).items()
    return numbers


def groupby_chain(runs: Interrupted) -> dict[str, set[int]]:
    """The numbers of the layers of each chain."""
    found: dict[str, set[int]] = {}
    for subdir, number in runs.held:
        found.setdefault(subdir, set()).add(number)
    return found


@pytest.mark.parametrize("history", [False, True], ids=["last changes", "revision history"])
def test_several_layers_at_once(runs: Interrupted, history: bool) -> None:
    """The times come from a schedule: whoever is late writes a layer for each. None is lost, none ends elsewhere, and the
    chain goes on, also where the last layer before the end is empty and the source's slot still stands behind it."""
    times = Times(runs)
    ends = times.pass_by(0)
    runs.faults.clear()
    runs.layer("clean", runs.clock(), ends, revision_history=history)
    times.note()
    found = moments(runs.faults.log)
    chosen = [moment for moment in found if moment.point == "commit.after_layer" or moment.kind == "manifest"]
    own = [moment for moment in found if moment.kind in {"", "commits", "manifest"}]
    places = sample(own, 3) if history else chosen

    def crash(number: int, place: Moment) -> None:
        due = runs.clock()
        ends = times.pass_by(number + 1)
        end(runs, place, number, lambda: runs.layer(f"run {number}", due, ends, revision_history=history))
        times.note()
        change(runs, number + 500)
        again = number % 2 == 0
        try:
            runs.layer(f"run {number}{'' if again else ' anew'}", due, ends, revision_history=history)
        except AlreadyCovered:
            assert ends[-1] in {moment for moment in times.rows if covered(runs, moment)}
        times.note()

    crash_all(places, crash)
    assert only_chain(runs) == set(range(3 * len(places) + 4))
    swept_and_sound(runs)


def covered(runs: Interrupted, moment: datetime) -> bool:
    """Whether the newest chain goes up to a time."""
    return head(runs.backup.storage, "LATEST")[0].end.time >= moment


def test_a_full_that_closes_a_chain(runs: Interrupted) -> None:
    """Between the chain and the full is no time that neither of them covers."""
    runs.tables = ("t",)  # of what the log does not tell a closing layer keeps what the layer before it had
    for rows in runs.held.values():
        rows.pop("keyless"), rows.pop("fresh")
    change(runs, 0)
    runs.faults.clear()
    runs.full("clean", runs.clock())
    runs.note()
    found = [moment for moment in moments(runs.faults.log) if moment.kind in {"", "seal", "files", "manifest"}]
    chosen = [moment for moment in found if moment.point == "commit.after_layer" or moment.kind == "manifest"]
    places = chosen + sample([moment for moment in found if moment not in chosen], 2)

    def crash(number: int, place: Moment) -> None:
        due = runs.clock()
        change(runs, number + 1)
        end(runs, place, number, lambda: runs.full(f"run {number}", due))
        runs.note()
        change(runs, number + 100)
        again = number % 2 == 0
        full = runs.full(f"run {number}" if again else f"run {number} anew", due if again else runs.clock())
        runs.note()
        assert full.kind == "full"

    crash_all(places, crash)
    swept_and_sound(runs)
    storage = runs.backup.storage
    for earlier, later in itertools.pairwise(sorted(groupby_chain(runs))):
        assert head(storage, earlier)[0].end.lsn == load_manifest(storage, later).end.lsn


def test_a_table_judged_otherwise_by_the_next_try(runs: Interrupted) -> None:
    """The first try could not follow a table, committed one of three layers and ended; for the second the table seems as
    ever. The first layer lacks its changes, so it must not be taken as followed."""
    execute = runs.backup.database.execute
    ends = Times(runs).pass_by(0)
    due = runs.clock()
    execute("alter table t replica identity full")
    runs.faults.add_fault("commit.after_layer", action=KILLED)
    with pytest.raises(Killed):
        runs.layer("run", due, ends)
    runs.faults.clear()
    execute("alter table t replica identity default")
    assert runs.layer("run", due, ends).number == 3
    assert_goes_on(runs)


def test_two_tries_that_judge_a_table_otherwise(runs: Interrupted) -> None:
    """As above, but the first try is still at it, with a seal of its own, when the second has committed a layer."""
    execute = runs.backup.database.execute
    ends = Times(runs).pass_by(0)
    due = runs.clock()
    other = replace(runs, faults=Faults())
    other.faults.add_fault("commit.after_layer", action=KILLED)

    def overtake() -> None:
        execute("alter table t replica identity full")
        with pytest.raises(Killed):
            other.layer("run", due, ends)
        execute("alter table t replica identity default")

    runs.faults.add_fault("seal.before_record", action=overtake)
    with pytest.raises(Retryable, match="Another try of this run committed layer 2"):
        runs.layer("run", due, ends)
    runs.faults.clear()
    assert runs.layer("run", due, ends).number == 3
    assert_goes_on(runs)


def assert_goes_on(runs: Interrupted) -> None:
    """Another layer ends as the source is."""
    change(runs, 77)
    newest = runs.layer("next", runs.clock())
    assert newest.number > 0
    for table in runs.tables:
        assert runs.backup.rows(newest, table) == runs.backup.source_rows(table)
    collection_check(runs.backup.context, runs.backup.uri, "checksums")


def test_a_try_that_writes_on_after_the_next_one_finished(runs: Interrupted) -> None:
    """At every named point the first try stops, another one of the same run does it all, the source goes on, and then the
    first goes on too: it finds the run finished, or says that it cannot go on."""
    change(runs, 0)
    runs.faults.clear()
    runs.layer("clean", runs.clock())
    runs.note()
    points = [point for point in runs.faults.points() if not point.startswith("storage.")]
    assert {"plan.after_plan", "seal.after_snapshot", "seal.before_record", "commit.after_layer"} <= set(points)
    other = replace(runs, faults=Faults())
    for number, point in enumerate(points):
        due = runs.clock()
        change(runs, number + 1)
        made: list[Manifest] = []

        def overtake(number: int = number, due: datetime = due, made: list[Manifest] = made) -> None:
            made.append(other.layer(f"run {number}", due))
            other.note()
            change(runs, number + 100)

        runs.faults.clear()
        runs.faults.add_fault(point, action=overtake)
        try:
            assert runs.layer(f"run {number}", due) == made[0]
        except SpanvaultError as error:
            assert made, error
        assert runs.note() == set()
    assert only_chain(runs) == set(range(len(points) + 2))
    swept_and_sound(runs)


def test_a_run_overtaken_in_the_middle_of_its_layers(runs: Interrupted) -> None:
    """It committed one of three when it ended, another run the rest and more; and the other way round."""
    times = Times(runs)
    due, ends = runs.clock(), times.pass_by(0)
    runs.faults.add_fault("commit.after_layer", action=KILLED)
    with pytest.raises(Killed):
        runs.layer("first", due, ends)
    runs.faults.clear()
    later = times.pass_by(1)
    assert runs.layer("second", runs.clock(), [*ends, later[0]]).number == 4
    with pytest.raises(AlreadyCovered):
        runs.layer("first", due, ends)
    runs.faults.add_fault("seal.before_record", action=KILLED)
    with pytest.raises(Killed):
        runs.layer("third", due, later)
    runs.faults.clear()
    assert runs.layer("fourth", runs.clock(), later[:2]).number == 5
    assert runs.layer("third", due, later).number == 6
    times.note()
    assert only_chain(runs) == set(range(7))
    swept_and_sound(runs)


@pytest.fixture
def own_server(servers_folder: Path) -> Iterator[PostgresServer]:
    """A server of one test, which kills it."""
    with PostgresServer(servers_folder / "layer-kills", settings=SOURCE_SETTINGS) as server:
        yield server


def test_the_server_dies_around_the_advance(own_server: PostgresServer, tmp_path: Path) -> None:
    """The run ends between commit and advance, or right behind it, and so does the server: its slot stands behind the
    chain, or falls back. What it repeats is not taken twice, and the chain goes on."""
    with fresh_database(own_server) as database:
        runs = Interrupted(Backup(database, tmp_path / "collection"), ("t", "keyless", "fresh"))
        make_source(runs)

        def die() -> None:
            own_server.kill()
            raise Killed

        for number, point in enumerate(["commit.after_manifest", "protection.after_advance", "commit.after_layer"]):
            due = runs.clock()
            change(runs, number)
            tables = {table: runs.backup.source_rows(table) for table in runs.tables}
            runs.faults.add_fault(point, action=die)
            with pytest.raises(Killed):
                runs.layer(f"run {number}", due, revision_history=number == 1)
            runs.faults.clear()
            own_server.start()
            runs.held.update(dict.fromkeys(runs.committed() - runs.held.keys(), tables))
            runs.layer(f"run {number}{' anew' * (number == 1)}", due, revision_history=number == 1)
            runs.note()
            change(runs, number + 100)
            runs.layer(f"next {number}", runs.clock(), revision_history=number == 2)
            runs.note()
        assert only_chain(runs) == set(range(8))
        swept_and_sound(runs)


def test_a_layer_found_damaged(runs: Interrupted) -> None:
    """It is marked, whatever ends around that; the chain ends before it, also for a run that had planned to go on, and the
    next backup is a full."""
    for step in range(3):
        change(runs, step)
        runs.layer(f"run {step}", runs.clock())
        runs.note()
    due = runs.clock()
    runs.faults.add_fault("seal.before_record", action=KILLED)
    with pytest.raises(Killed):
        runs.layer("going on", due)
    runs.faults.clear()
    (subdir,) = groupby_chain(runs)
    damaged = next((runs.backup.folder / subdir / "000002" / "data").iterdir())
    damaged.write_bytes(damaged.read_bytes()[::-1])
    for point in ("storage.put.before", "storage.put.after"):
        runs.faults.clear()
        runs.faults.add_fault(point, key="*.invalid.json", action=KILLED)
        with pytest.raises(Killed):
            validate_backup(runs.context, runs.backup.uri, subdir, level="checksums", number=2)
    runs.faults.clear()
    with pytest.raises(Damaged):
        validate_backup(runs.context, runs.backup.uri, subdir, level="checksums", number=2)
    assert head(runs.backup.storage, subdir)[0].number == 1
    full = runs.layer("going on", due)
    assert (full.kind, full.number) == ("full", 0)
    runs.note()
    change(runs, 9)
    assert runs.layer("next", runs.clock()).subdir == full.subdir
    runs.note()
    runs.sweep()
    assert {number for chain, number in runs.committed() if chain == subdir} == {0, 1, 2, 3}
    runs.check("check_files")


def test_killed_for_real_at_random_moments(runs: Interrupted) -> None:
    """SIGKILL of the command line; the statement is typed again until it ends by itself."""
    database, folder = runs.backup.database, runs.backup.folder
    statement = f"BACKUP DATABASE {database.name} INTO LATEST IN '{runs.backup.uri}' WITH revision_history"
    command = [PROGRAM, "sql", "--url", database.url, statement]
    chance = random.Random(3)
    kills = 0
    for attempt in range(5):
        change(runs, attempt)
        wanted = objects_below(folder) + chance.randint(1, 7) if attempt < 4 else None
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        while process.poll() is None:
            if wanted is not None and objects_below(folder) >= wanted:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in {0, -signal.SIGKILL}, errors.decode()
        kills += process.returncode != 0
        runs.note()
    assert kills >= 2
    numbers = only_chain(runs)
    assert numbers == set(range(len(numbers)))
    swept_and_sound(runs)
