"""Restores of every kind, disturbed wherever something can go wrong: the same statement ends them, and nothing is left.

One restore after the other is harmed at some places, each time by the same statement, and then finished; every fourth one
is told to clean up when it fails, and must leave what was there before. Samples with a fixed seed; SPANVAULT_FAULTS=all
(`make soak`) takes every place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.restore_local import run_restore
from spanvault.errors import AlreadyExists
from spanvault.model.encryption import Argon2Parameters
from spanvault.model.request import EncryptionOptions, RestoreRequest
from tests.kit.fault_database import faulty_database
from tests.kit.fault_matrix import ALL, PARTS, PATIENCE, at, chosen, harmed, places
from tests.kit.fault_restores import KINDS, Facts, Kept, Kind, facts, left_behind, make_collections
from tests.kit.faults import Faults
from tests.kit.servers import TestDatabase, drop_database, fresh_database

pytestmark = [pytest.mark.slow, *PATIENCE]
KEY = EncryptionOptions(passphrase=SecretStr("the passphrase of these tests"))
SIZES = {"full": 10, "chain": 6, "encrypted": 3, "places": 3, "tables": 6, "schema": 3}
BEFORE = "create table mine (id int primary key); insert into mine values (1), (2)"


@pytest.fixture(scope="module")
def kept(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kept]]:
    """The collections by name."""
    with pytest.MonkeyPatch.context() as patch, fresh_database(postgres, "shop") as source:
        cheap = Argon2Parameters(memory_kib=8 << 10, iterations=1, lanes=1)
        patch.setattr("spanvault.crypto.info.PARAMETERS", cheap)
        yield make_collections(source, tmp_path_factory.mktemp("collections"), KEY)
        for (name,) in source.execute("select datname from pg_database where starts_with(datname, %s)", [f"{source.name}_copy_"]):
            drop_database(postgres, str(name))


class Restores:
    """Restores of one kind, each into a database of its own."""

    def __init__(self, kept: Kept, kind: Kind, scratch: Path) -> None:
        self.kept = kept
        self.kind = kind
        self.scratch = scratch
        self.faults = Faults()
        self.begin(0)

    def begin(self, number: int) -> None:
        """Another target; every fourth statement cleans up when it fails."""
        self.target = TestDatabase(self.kept.source.server, f"{self.kept.source.name}_copy_{number}")
        drop_database(self.target.server, self.target.name)
        self.clean = number % 4 == 3
        if self.kind.target is not None:
            self.kept.source.execute(f"create database {self.target.name} template template0")
            self.target.execute(BEFORE)

    @property
    def request(self) -> RestoreRequest:
        return self.kept.request(self.kind, self.target.name, "clean" if self.clean else "keep")

    def run(self) -> None:
        """The statement."""
        run_restore(self.kept.context(self.faults, self.scratch), self.kept.source.cluster, self.request, processes=False)

    def exists(self) -> bool:
        found = self.kept.source.execute("select 1 from pg_database where datname = %s", [self.target.name])
        return bool(found)

    def end(self) -> None:
        """Run it to its end and compare everything."""
        with suppress(AlreadyExists):  # the end came behind the last thing that it does: then all is there, as below
            self.run()
        self.compare()

    def compare(self) -> None:
        """All is there, and nothing else."""
        assert left_behind(self.target, self.scratch) == []
        found, wanted = facts(self.target), dict(self.kept.held)
        if self.kind.names is not None:
            assert found["public.mine"] == [("(1)",), ("(2)",)]
            found, wanted = (_of(side, self.kind.names) for side in (found, wanted))
        assert found == wanted

    def cleaned(self) -> None:
        """A failed statement that cleans up left what was there before."""
        if self.kind.target is None:
            assert not self.exists()
            return
        assert left_behind(self.target, self.scratch) == []
        assert {name for name in facts(self.target) if "." in name} == {"public.mine"}


def _of(side: Facts, names: tuple[str, ...]) -> Facts:
    return {name: side[name] for name in names}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_restore(kept: dict[str, Kept], tmp_path: Path, kind: str, part: int) -> None:
    restores = Restores(kept[KINDS[kind].collection], KINDS[kind], tmp_path)
    with faulty_database(restores.faults) as database:
        restores.run()
        found = places(restores.faults.log, writes=True)
        assert {"die", "fail", "full", "terminate", "lose", "kill"} == {place.harm for place in found}
        restores.faults.clear()
        restores.compare()
        disturbed, died = 0, False
        restores.begin(1)
        for number, place in enumerate(chosen(found, SIZES[kind], 1, part), start=2):
            with at(place):
                sentence = harmed(place, restores.faults, database, restores.run, over=(AlreadyExists,))
                disturbed += sentence is not None
                died |= sentence == ""
                # One that fails before it looks at the target takes back nothing of an earlier one that died.
                if sentence and restores.clean and not died:
                    restores.cleaned()
                if sentence is not None and number % 3 and not ALL:
                    continue  # the next harm is done to the same restore
                restores.end()
                restores.begin(number)
                died = False
        restores.end()
    assert disturbed


@pytest.mark.parametrize("clean", [False, True], ids=["kept", "cleaned up"])
def test_the_last_answer_is_lost(kept: dict[str, Kept], tmp_path: Path, clean: bool) -> None:
    """All is there when the target forgets the restore: it is not told as failed, because its own work would then be in the
    way of the next try."""
    restores = Restores(kept["full"], KINDS["tables"], tmp_path)
    restores.clean = clean
    with faulty_database(restores.faults) as database:
        dropped = "*DROP SCHEMA spanvault_restore*"
        lost: list[bool] = []

        def lose_the_commit() -> None:
            lost.append(True)
            restores.faults.add_fault("database.commit.after", action=database.lose)

        restores.faults.add_fault("database.execute.after", key=dropped, action=lose_the_commit)
        restores.run()
    assert lost
    restores.compare()
