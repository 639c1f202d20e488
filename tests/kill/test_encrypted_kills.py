"""Encrypted runs that end anywhere, and runs that race for a chain: what one began the next finishes, and no chain is ever
without the key that its run was given, or with one that it was not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.crypto.stream import MAGIC
from spanvault.engine.context import Context
from spanvault.engine.maintenance import collection_check, validate_backup
from spanvault.engine.steps import export_batch, plan_backup, seal_backup, write_manifest
from spanvault.errors import Retryable
from spanvault.model.clock import now
from spanvault.model.encryption import Argon2Parameters
from spanvault.model.manifest import Manifest, Plan
from spanvault.model.request import EncryptionOptions
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed
from tests.kit.harness import Backup
from tests.kit.interrupted import Interrupted, Moment, crash_all, moments
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow

KEY = EncryptionOptions(passphrase=SecretStr("the passphrase of these tests"))
OTHER = EncryptionOptions(passphrase=SecretStr("the passphrase of somebody else"))
INFO, PLAN = "*/ENCRYPTION-INFO-*", "*/PLAN.json"
MARK = b"unmistakable"
TABLES = ("t", "keyless")


class EncryptedBackup(Backup):
    """A Backup that reads with the key."""

    @property
    def context(self) -> Context:
        return replace(super().context, encryption=KEY)


class EncryptedRuns(Interrupted):
    """Runs with the key."""

    @property
    def context(self) -> Context:
        return replace(super().context, encryption=KEY)


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases that cost as little as readers take: every step of every run derives its key anew."""
    monkeypatch.setattr("spanvault.crypto.info.PARAMETERS", Argon2Parameters(memory_kib=8 << 10, iterations=1, lanes=1))


@pytest.fixture
def runs(database: TestDatabase, tmp_path: Path) -> Iterator[EncryptedRuns]:
    database.execute(
        "create table t (id int primary key, v text, n int); create table keyless (v text);"
        f"insert into t select i, '{MARK.decode()}' || i, 0 from generate_series(1, 300) i;"
        f"insert into keyless select '{MARK.decode()}' from generate_series(1, 5)"
    )
    yield EncryptedRuns(EncryptedBackup(database, tmp_path / "collection"), TABLES)


def change(runs: Interrupted, step: int) -> None:
    runs.backup.database.execute(
        f"update t set n = n + 1 where id % 7 = {step % 7}; delete from t where id = {step + 1};"
        f"insert into t values ({1000 + step}, '{MARK.decode()}', {step}); insert into keyless values ('{MARK.decode()}{step}')"
    )


def places(log: list[tuple[str, str]]) -> list[Moment]:
    """The named points of a clean run."""
    return [moment for moment in moments(log) if not moment.kind]


def nothing_in_the_clear(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or MARK not in path.read_bytes(), path


@pytest.mark.parametrize("third", [0, 1, 2])
def test_a_full_ended_at_every_named_point_and_around_its_key(runs: EncryptedRuns, third: int) -> None:
    runs.full("clean", runs.clock())
    runs.note()
    found: list[tuple[Moment, str]] = [(moment, "") for moment in places(runs.faults.log)]
    assert {"plan.after_plan", "export.after_data", "seal.before_record"} <= {moment.point for moment, _ in found}
    found += [(Moment(f"storage.put.{side}", 1), key) for key in (INFO, PLAN) for side in ("before", "after")]

    for number, (moment, key) in enumerate(found[third::3]):
        due = runs.clock()
        change(runs, number)
        runs.faults.clear()
        runs.faults.add_fault(moment.point, key=key or "*", nth=moment.nth, action=KILLED)
        with pytest.raises(Killed):
            runs.full(f"run {number}", due)
        runs.faults.clear()
        runs.note()
        change(runs, number + 100)
        if number % 3 == 2:
            runs.sweep()
        full = runs.full(f"run {number}", due)
        runs.note()
        assert full.kind == "full", moment
        nothing_in_the_clear(runs.backup.folder)
    # Of what the log does not tell a layer that closes a chain keeps what the layer before it had.
    runs.held = {layer: rows if layer[1] == 0 else {"t": rows["t"]} for layer, rows in runs.held.items()}
    runs.sweep()
    assert runs.sweep() == 0
    runs.check()


def test_an_incremental_ended_at_every_named_point(runs: EncryptedRuns) -> None:
    runs.full("full", runs.clock())
    runs.note()
    change(runs, 0)
    runs.faults.clear()
    runs.layer("clean", runs.clock(), revision_history=True)
    runs.note()

    def crash(number: int, place: Moment) -> None:
        due = runs.clock()
        change(runs, number + 1)
        runs.faults.clear()
        place.arm(runs.faults, KILLED)
        with pytest.raises(Killed):
            runs.layer(f"run {number}", due, revision_history=True)
        runs.faults.clear()
        runs.note()
        change(runs, number + 100)
        if number % 3 == 2:
            runs.sweep()
        runs.layer(f"run {number}", due, revision_history=True)
        runs.note()

    crash_all(places(runs.faults.log), crash)
    nothing_in_the_clear(runs.backup.folder)
    runs.sweep()
    runs.check()
    assert len(list(runs.backup.folder.glob("*/*/*/ENCRYPTION-INFO-*"))) == 1


def test_what_lies_between_the_key_and_the_plan(runs: EncryptedRuns) -> None:
    """A chain that has its key and nothing else: in nobody's way, with or without the key, and swept in the end."""
    runs.faults.add_fault("storage.put.before", key=PLAN, action=KILLED)
    with pytest.raises(Killed):
        runs.full("first", runs.clock())
    runs.faults.clear()
    (left,) = runs.backup.folder.glob("*/*/*/*")
    assert left.name == "ENCRYPTION-INFO-000000.json"
    plain = Backup(runs.backup.database, runs.backup.folder)
    collection_check(plain.context, plain.uri, "checksums")
    manifest = plain.take()
    assert plain.rows(manifest, "t") == plain.source_rows("t")
    runs.full("second", runs.clock())
    assert runs.sweep() == 1
    assert not left.exists()


@dataclass
class Racer:
    """A run of one full, with keys of its own, at a standing clock: all that race want the same folder."""

    runs: EncryptedRuns
    name: str
    key: EncryptionOptions
    faults: Faults = field(default_factory=Faults)
    planned: Plan | None = None
    made: Manifest | None = None

    @property
    def context(self) -> Context:
        return Context(
            settings=self.runs.backup.context.settings,
            clock=lambda: datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC),
            encryption=self.key,
            wrap=lambda storage: FaultyStorage(storage, self.faults),
        )

    def plan(self) -> None:
        request = self.runs.backup.request
        self.planned = plan_backup(self.context, self.runs.backup.database.cluster, request, run_key=self.name)

    def finish(self) -> None:
        cluster, into, plan = self.runs.backup.database.cluster, self.runs.backup.uri, self.planned
        assert plan is not None
        for batch in plan.batches:
            export_batch(self.context, cluster, into, plan, batch.index)
        self.made = write_manifest(self.context, into, plan, seal_backup(self.context, cluster, into, plan))


KEYS = {"same": KEY, "another": OTHER, "none": EncryptionOptions()}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("at", [INFO, PLAN], ids=["the key", "the plan"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_two_begin_the_same_chain(runs: EncryptedRuns, side: str, at: str, key: str) -> None:
    """The first stops around its key or plan, another one plans there, then both go on. Each has a chain of its own, which
    its own key opens."""
    first, second = Racer(runs, "first", KEY), Racer(runs, "second", KEYS[key])
    first.faults.add_fault(f"storage.put.{side}", key=at, action=second.plan)
    race(first, second)


@pytest.mark.parametrize("side", ["before", "after"])
def test_an_encrypted_run_overtakes_a_plain_one(runs: EncryptedRuns, side: str) -> None:
    first, second = Racer(runs, "first", EncryptionOptions()), Racer(runs, "second", KEY)
    first.faults.add_fault(f"storage.put.{side}", key=PLAN, action=second.plan)
    race(first, second)


def test_a_plain_plan_just_before_the_key(runs: EncryptedRuns) -> None:
    """The encrypted run has seen an empty folder, the plain one writes its plan and is sure of it: then the key must go."""
    first, second = Racer(runs, "first", KEY), Racer(runs, "second", EncryptionOptions())
    first.faults.add_fault("storage.put.before", key=INFO, action=second.plan)
    race(first, second)
    assert second.planned is not None
    assert second.planned.subdir == "2026/03/01-120000.00"


def test_a_key_just_behind_the_look_of_a_plain_run(runs: EncryptedRuns) -> None:
    """The plain run has seen no key and is about to write its plan, the encrypted one is stopped behind its key and its own
    look at the folder: the plain one sees the key behind its plan, and withdraws."""
    first, second = Racer(runs, "first", KEY), Racer(runs, "second", EncryptionOptions())
    second.faults.add_fault("storage.put.before", key=PLAN, action=first.plan)
    third: list[bool] = []

    def stop_first() -> None:
        third.append(True)
        raise Killed

    first.faults.add_fault("storage.put.before", key=PLAN, action=stop_first)
    with pytest.raises(Killed):
        second.plan()
    assert third
    plan = runs.backup.folder / "2026/03/01-120000.00" / "PLAN.json"
    assert not plan.exists()
    second.faults.clear()
    second.plan()
    second.finish()
    assert second.made is not None
    assert second.made.subdir != "2026/03/01-120000.00"


def race(first: Racer, second: Racer) -> None:
    first.plan()
    assert first.planned is not None
    assert second.planned is not None
    assert first.planned.subdir != second.planned.subdir
    for racer in (second, first):
        racer.finish()
        manifest = racer.made
        assert manifest is not None
        chain = racer.runs.backup.folder / manifest.subdir
        assert bool(list(chain.glob("ENCRYPTION-INFO-*"))) == racer.key.given
        data = list(chain.glob("000000/data/*"))
        assert data
        assert all(path.read_bytes().startswith(MAGIC) == racer.key.given for path in data)
        validate_backup(replace(racer.context, clock=now), racer.runs.backup.uri, manifest.subdir, level="checksums")


def test_an_answer_lost_at_the_key_is_tried_again(runs: EncryptedRuns) -> None:
    due = runs.clock()
    runs.faults.add_fault("storage.put.after", key=INFO, action=Retryable("The answer was lost."))
    with pytest.raises(Retryable):
        runs.full("run", due)
    runs.full("run", due)
    runs.note()
    runs.sweep()
    runs.check()
