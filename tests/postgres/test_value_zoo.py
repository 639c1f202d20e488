"""Every value of every type comes back from every kind of layer: a full, a history, last changes, moments, compacted layers.

The oracle is the source's own text of each row at that moment, and pg_dump's of all rows at the ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.model.cut import Lsn
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit import value_zoo
from tests.kit.dumps import database_text, rows_text
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database
from tests.kit.value_samples import EXTENSIONS, OWN_TYPES, UNREADABLE, UNSUPPORTED, all_types

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Their changes are in no log: a moment inside a layer has the rows that the layer before it has read.
READ_AT_ENDS = (
    *(f"{table}_{kind}" for table in value_zoo.TABLES for kind in ("none", "source")),
    *("naming_key", "naming_whole", "only_none", "nothing", "all_dropped", "of_windows"),
)


@dataclass(frozen=True)
class Moment:
    """The source at a position of its log."""

    lsn: Lsn
    rows: dict[str, list[str]]
    dump: list[str]
    definitions: str


def definitions(database: TestDatabase) -> str:
    """pg_dump of everything but rows."""
    return database_text(database, "--schema-only")


class Zoo:
    """The source, its chain, and the source at the end of each layer and between."""

    def __init__(self, source: TestDatabase, folder: Path) -> None:
        self.source, self.folder = source, folder
        value_zoo.build(source)
        self.full = self._back_up(None)
        value_zoo.change(source, 0)
        self.inside = self._moment()
        value_zoo.change(source, 1)
        self.history = self._back_up("LATEST", revision_history=True)
        value_zoo.change(source, 2)
        self.last = self._back_up("LATEST")

    def _back_up(self, append: str | None, *, revision_history: bool = False) -> Moment:
        options = BackupOptions(protection="1h", workers=1, revision_history=revision_history)
        target = DatabaseTarget(names=(self.source.name,))
        request = BackupRequest(target=target, into=f"file://{self.folder}", append=append, options=options)
        manifest = run_backup(Context(progress=Notes()), self.source.cluster, request, processes=False)
        return Moment(manifest.end.lsn, value_zoo.rows(self.source), rows_text(self.source), definitions(self.source))

    def _moment(self) -> Moment:
        ((lsn,),) = self.source.execute("SELECT pg_current_wal_insert_lsn()::text")
        return Moment(Lsn.parse(lsn), value_zoo.rows(self.source), rows_text(self.source), definitions(self.source))

    def check(self, moment: Moment, *, of_full: tuple[str, ...] = ()) -> None:
        """Restore to the moment, and compare; the rows of some tables are those of the full backup."""
        target = TestDatabase(self.source.server, f"{self.source.name}_r")
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.source.name,)),
            collection=f"file://{self.folder}",
            as_of=moment.lsn,
            options=RestoreOptions(new_db_name=target.name),
        )
        try:
            run_restore(Context(progress=Notes()), self.source.cluster, request, processes=False)
            found = value_zoo.rows(target)
            assert found.keys() == moment.rows.keys()
            for table, rows in found.items():
                assert rows == (self.full if table in of_full else moment).rows[table], table
            if not of_full:
                assert rows_text(target) == moment.dump
                assert definitions(target) == moment.definitions
        finally:
            drop_database(target.server, target.name)


@pytest.fixture(scope="module")
def zoo(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    with fresh_database(postgres) as source:
        yield Zoo(source, tmp_path_factory.mktemp("zoo") / "collection")


def test_a_full_backup(zoo: Zoo) -> None:
    zoo.check(zoo.full)


def test_a_moment_inside_a_history(zoo: Zoo) -> None:
    zoo.check(zoo.inside, of_full=READ_AT_ENDS)


def test_the_end_of_a_history(zoo: Zoo) -> None:
    zoo.check(zoo.history)


def test_a_layer_of_last_changes(zoo: Zoo) -> None:
    zoo.check(zoo.last)


def test_compacted_layers(zoo: Zoo) -> None:
    context, uri = Context(progress=Notes()), f"file://{zoo.folder}"
    compact_backups(context, uri, "LATEST", first=0, number=2)
    zoo.check(zoo.last)


def test_every_type_that_a_column_can_have_has_values(database: TestDatabase) -> None:
    """Also one that a later PostgreSQL or a later extension brings."""
    for extension in EXTENSIONS:
        database.execute(f"CREATE EXTENSION IF NOT EXISTS {extension} CASCADE")
    database.execute(OWN_TYPES)
    found = database.execute(
        """SELECT format_type(t.oid, NULL) FROM pg_type t WHERE typtype IN ('b', 'r', 'm', 'd', 'e')
        AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)"""
    )
    bases = {name.split("(")[0].strip() for name in all_types()} | set(all_types())
    assert {name for (name,) in found} - bases - UNREADABLE - UNSUPPORTED == {"text_multirange", "filled"}


def test_types_that_have_no_values_here_cannot_have_any(database: TestDatabase) -> None:
    for extension in EXTENSIONS:
        database.execute(f"CREATE EXTENSION IF NOT EXISTS {extension} CASCADE")
    with database.connect() as session:
        for name in sorted(UNREADABLE | UNSUPPORTED):
            with pytest.raises(Exception, match=r"cannot accept a value|unsupported XML feature|not implemented"):
                session.execute(f"SELECT '<a/>'::{name}".encode())
