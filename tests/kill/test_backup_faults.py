"""Backups of every kind, disturbed wherever something can go wrong: around calls of storage, statements, commits, programs.

One run after the other is harmed at one place, at a second one when it is tried again, and then finished. Every layer that
was ever committed holds what the source held; what is left over is garbage that a sweep takes, or what the next run takes
over. Samples with a fixed seed; SPANVAULT_FAULTS=all (`make soak`) takes every place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from spanvault.config.clusters import Cluster
from spanvault.config.settings import Settings
from spanvault.engine.context import Context
from spanvault.model.encryption import Argon2Parameters
from spanvault.model.locality import Locality
from spanvault.model.request import EncryptionOptions
from tests.kit.fault_database import DatabaseFaults, faulty_database
from tests.kit.fault_matrix import ALL, PARTS, PATIENCE, at, chosen, harmed, places
from tests.kit.harness import Backup
from tests.kit.interrupted import Interrupted
from tests.kit.prepared import TIER
from tests.kit.servers import TestDatabase

Make = Callable[[str], "Disturbed"]
pytestmark = [pytest.mark.slow, *PATIENCE]
KEY = EncryptionOptions(passphrase=SecretStr("the passphrase of these tests"))
PLAIN = EncryptionOptions()
NOWHERE = Path()
TABLES = ("t", "keyless", "wide")


@dataclass
class SecretBackup(Backup):
    """A Backup that may have a key, and may be spread over two places."""

    key: EncryptionOptions = PLAIN
    elsewhere: Path | None = None

    @property
    def uri(self) -> str:
        if self.elsewhere is None:
            return super().uri
        tier = TIER.replace("=", "%3D")
        return f"{super().uri}?COCKROACH_LOCALITY=default\nfile://{self.elsewhere}?COCKROACH_LOCALITY={tier}"

    @property
    def context(self) -> Context:
        return replace(super().context, encryption=self.key)


class Placed(TestDatabase):
    """A database whose node is in the locality of the second place."""

    @property
    def cluster(self) -> Cluster:
        (node,) = super().cluster.endpoints
        return Cluster(name="c", endpoints=(node.model_copy(update={"locality": Locality.parse(TIER)}),))


@dataclass
class Disturbed(Interrupted):
    """Runs whose sessions are disturbed too."""

    scratch: Path = NOWHERE
    key: EncryptionOptions = PLAIN

    @property
    def context(self) -> Context:
        context = super().context
        settings = Settings(wait_for_writers=self.backup.wait, scratch_dir=self.scratch)
        return replace(context, encryption=self.key, settings=settings)


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases that cost as little as readers take: every step of every run derives its key anew."""
    monkeypatch.setattr("spanvault.crypto.info.PARAMETERS", Argon2Parameters(memory_kib=8 << 10, iterations=1, lanes=1))


@pytest.fixture
def make(database: TestDatabase, tmp_path: Path) -> Iterator[Make]:
    database.execute(
        "create table t (id int primary key, v text, n int); create table keyless (a int);"
        "create table wide (id int primary key, v text); alter table wide alter v set storage external;"
        "insert into t select i, repeat('x', 100), i from generate_series(1, 600) i;"
        "insert into wide select i, repeat(md5(i::text), 90) from generate_series(1, 12) i;"
        "insert into keyless select generate_series(1, 5); create sequence s; create index on t (n)"
    )

    def made(where: str) -> Disturbed:
        key = KEY if where == "encrypted" else PLAIN
        placed = Placed(database.server, database.name) if where == "places" else database
        elsewhere = tmp_path / "elsewhere" if where == "places" else None
        backup = SecretBackup(placed, tmp_path / "collection", key=key, elsewhere=elsewhere)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return Disturbed(backup, TABLES, scratch=scratch, key=key)

    yield made


def change(runs: Interrupted, step: int) -> None:
    """Rows changed, gone and new, a key changed, a large value left alone."""
    runs.backup.database.execute(
        f"update t set n = n + 1 where id % 7 = {step % 7}; delete from t where id = {step + 1};"
        f"insert into t values ({10000 + step}, 'new', {step}); insert into keyless values ({step});"
        f"update wide set id = {1000 + step} where id = (select min(id) from wide); create sequence s_{step}"
    )


def disturb(
    runs: Disturbed, database: DatabaseFaults, size: int, run: Callable[[str, datetime], object], *, seed: int, part: int
) -> int:
    """Harm one run after the other and finish each; how many were disturbed: died, or said what failed."""
    found = places(runs.faults.log)
    assert {place.harm for place in found} == {"die", "fail", "terminate", "lose", "kill"}
    disturbed = 0
    due, name = runs.clock(), "run"
    for number, place in enumerate(chosen(found, size, seed, part)):
        with at(place):
            sentence = harmed(place, runs.faults, database, partial(run, name, due))
            runs.note()
            disturbed += sentence is not None
            if number % 3 == 2:
                runs.sweep()
            if sentence is not None and number % 2 == 0 and not ALL:
                continue  # the next harm is done to the same run
            if sentence is not None:
                change(runs, number + 500)
                run(name, due)
                runs.note()
            change(runs, number)
            due, name = runs.clock(), f"run {number}"
    run(name, due)
    runs.note()
    return disturbed


def nothing_left(runs: Disturbed) -> None:
    """Nothing but the protection of the collection stands on the server, and no temporary file here."""
    database = runs.backup.database
    assert database.execute("select count(*) from pg_replication_slots where database = current_database()") == [(1,)]
    assert database.execute("select count(*) from pg_publication") == [(1,)]
    sessions = "application_name like 'spanvault%' and application_name <> 'spanvault test' and datname = current_database()"
    assert database.execute(f"select application_name, query from pg_stat_activity where {sessions}") == []
    assert list(runs.scratch.iterdir()) == []
    spread(runs)
    runs.sweep()
    assert runs.sweep() == 0
    assert not list(runs.backup.folder.parent.glob("*/.spanvault-tmp/*"))
    runs.check()


WHERE = ("plain", "encrypted", "places")
# How a layer is taken, where it goes, and how many of its places are disturbed.
KINDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "last changes": ({}, "plain", 7),
    "revision history": ({"revision_history": True}, "plain", 7),
    "encrypted": ({"revision_history": True}, "encrypted", 4),
    "places": ({"revision_history": True}, "places", 3),
}


def spread(runs: Disturbed) -> None:
    """Data files lie at the second place, and nowhere else if there is one."""
    here, there = (list(runs.backup.folder.parent.glob(f"{name}/**/*.parquet")) for name in ("collection", "elsewhere"))
    data = [path for path in here if "/data/" in str(path)]
    assert there and not data if isinstance(runs.backup.database, Placed) else data and not there


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("where", "size"), [("plain", 10), ("encrypted", 4), ("places", 3)], ids=WHERE)
def test_a_full(make: Make, where: str, size: int, part: int) -> None:
    runs = make(where)
    with faulty_database(runs.faults) as database:
        runs.full("clean", runs.clock())
        runs.note()
        disturbed = disturb(runs, database, size, runs.full, seed=1, part=part)
    assert disturbed
    # Of what the log does not tell a layer that closes a chain keeps what the layer before it had.
    runs.held = {
        layer: rows if layer[1] == 0 else {name: rows[name] for name in ("t", "wide")} for layer, rows in runs.held.items()
    }
    nothing_left(runs)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer(make: Make, kind: str, part: int) -> None:
    options, where, size = KINDS[kind]
    runs = make(where)
    runs.full("full", runs.clock())
    runs.note()
    change(runs, 1000)
    runs.faults.clear()
    with faulty_database(runs.faults) as database:
        runs.layer("clean", runs.clock(), **options)
        runs.note()
        disturbed = disturb(runs, database, size, lambda name, due: runs.layer(name, due, **options), seed=len(kind), part=part)
    assert disturbed
    nothing_left(runs)
