"""What PostgreSQL has by libraries that the wheel's server is built without, on other versions, where they are installed:
collations of ICU, also those for which different texts are equal, and values of xml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.model.cut import Lsn
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget
from tests.kit.dumps import database_text, rows_text
from tests.kit.harness import Notes
from tests.kit.object_zoo import ICU_CHANGES, pieces
from tests.kit.object_zoo_outside import CHANGES, CLUSTER
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase
from tests.kit.value_samples import XML
from tests.kit.versions import VERSIONS, programs, understood

pytestmark = [pytest.mark.slow, pytest.mark.apt]

# As in test_versions.py.
COMPARED = ("--no-unlogged-table-data", "--exclude-table-data=zoo.ddl*", "--exclude-table-data=zoo.by_hash*")
XML_TABLES = """
ALTER DATABASE {name} SET xmloption = document;
CREATE DOMAIN piece AS xml;
CREATE TYPE around AS (i int, x xml);
CREATE TABLE of_key (id int PRIMARY KEY, x xml, list xml[], inside around, d piece);
CREATE TABLE of_whole (id int, x xml);
ALTER TABLE of_whole REPLICA IDENTITY FULL;
CREATE TABLE of_none (x xml, id int);
"""
XML_CHANGES = (
    "UPDATE of_key SET x = (SELECT o.x FROM of_key o WHERE o.id = of_key.id + 1) WHERE id % 3 = 0",
    "UPDATE of_key SET id = id + 100 WHERE id % 4 = 1",
    "DELETE FROM of_whole WHERE id % 3 = 1; UPDATE of_whole SET x = NULL WHERE id = 2",
    "INSERT INTO of_whole SELECT id, x FROM of_none; DELETE FROM of_none WHERE id = 0",
)


@dataclass(frozen=True)
class Moment:
    """What pg_dump says of a database at a position of its log."""

    lsn: Lsn
    text: list[str]


@dataclass(frozen=True)
class Chain:
    """A database and its collection."""

    database: TestDatabase
    uri: str

    def backup(self, append: str | None, *, revision_history: bool = False) -> Moment:
        options = BackupOptions(protection="1h", workers=1, revision_history=revision_history)
        target = DatabaseTarget(names=(self.database.name,))
        request = BackupRequest(target=target, into=self.uri, append=append, options=options)
        manifest = run_backup(Context(progress=Notes()), self.database.cluster, request, processes=False)
        return Moment(manifest.end.lsn, self.text(self.database))

    def now(self) -> Moment:
        ((lsn,),) = self.database.execute("SELECT pg_current_wal_insert_lsn()::text")
        return Moment(Lsn.parse(lsn), self.text(self.database))

    def restored(self, moment: Moment, number: int) -> list[str]:
        """The text of what a restore to the moment makes."""
        name = f"{self.database.name}_{number}"
        request = RestoreRequest(
            target=DatabaseTarget(names=(self.database.name,)),
            collection=self.uri,
            as_of=moment.lsn,
            options=RestoreOptions(new_db_name=name, grants=True),
        )
        run_restore(Context(progress=Notes()), self.database.cluster, request, processes=False)
        return self.text(TestDatabase(self.database.server, name))

    @staticmethod
    def text(database: TestDatabase) -> list[str]:
        return [*database_text(database, "--schema-only").splitlines(), *rows_text(database, *COMPARED)]


@pytest.fixture(scope="module", params=VERSIONS, ids="postgresql-{}".format)
def server(request: pytest.FixtureRequest, servers_folder: Path) -> Iterator[PostgresServer]:
    found = programs(request.param)
    with PostgresServer(servers_folder / f"v{request.param}", settings=SOURCE_SETTINGS, programs=found) as server:
        yield server


def chain_of(server: PostgresServer, name: str, folder: Path) -> Chain:
    TestDatabase(server, "postgres").execute(f"CREATE DATABASE {name} TEMPLATE template0")
    return Chain(TestDatabase(server, name), f"file://{folder}")


def test_collations_of_icu_come_back(server: PostgresServer, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    main = TestDatabase(server, "postgres")
    if main.execute("SELECT count(*) FROM pg_collation WHERE collprovider = 'i'") == [(0,)]:
        pytest.skip("NO TEST OF ICU: this PostgreSQL is built without it.")
    version = int(main.execute("SHOW server_version_num")[0][0]) // 10000
    chain = chain_of(server, "zoo", tmp_path)

    def run(database: TestDatabase, *texts: str) -> None:
        for text in texts:
            with psycopg.connect(database.url, autocommit=True) as connection:
                connection.execute(understood(text, version).encode())

    run(main, CLUSTER)
    run(chain.database, *pieces(version, icu=True).values())
    full = chain.backup(None)
    run(chain.database, CHANGES, ICU_CHANGES)
    last = chain.backup("LATEST", revision_history=True)
    for number, moment in enumerate((full, last)):
        assert chain.restored(moment, number) == moment.text
    for name in ("AnnA", "CARL", "Ahorn", "deterministic = false", '"of_phonebooks"'):
        assert [line for line in last.text if name in line], name


def test_values_of_xml_come_back(server: PostgresServer, tmp_path: Path) -> None:
    chain = chain_of(server, "marked_up", tmp_path)
    source = chain.database
    source.execute(XML_TABLES.format(name=source.name))
    with source.connect() as session:
        try:
            session.execute("SET xmloption = content; SELECT '<a/>'::xml")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("NO TEST OF XML: this PostgreSQL is built without libxml2.")
        for number, value in enumerate([*XML, None]):
            session.execute(
                "INSERT INTO of_key VALUES (%(n)s, %(x)s, ARRAY[NULL, %(x)s::xml, %(x)s::xml], (%(n)s, %(x)s::xml), %(x)s::xml)",
                {"n": number, "x": value},
            )
        session.execute("INSERT INTO of_whole SELECT id, x FROM of_key; INSERT INTO of_none SELECT x, id FROM of_key")
    chain.backup(None)
    for change in XML_CHANGES[:2]:
        source.execute(change)
    moments = [chain.now(), chain.backup("LATEST", revision_history=True)]
    for change in XML_CHANGES[2:]:
        source.execute(change)
    for number, moment in enumerate(moments):
        assert chain.restored(moment, number) == moment.text
    last = chain.backup("LATEST")
    compact_backups(Context(progress=Notes()), chain.uri, "LATEST", first=0, number=2)
    assert chain.restored(last, 9) == last.text
    check_documents_only(chain)


def check_documents_only(chain: Chain) -> None:
    """Pieces of content come into a database whose sessions read documents."""
    there = TestDatabase(chain.database.server, "documents")
    TestDatabase(there.server, "postgres").execute(f"CREATE DATABASE {there.name}")
    there.execute(f"ALTER DATABASE {there.name} SET xmloption = document")
    request = RestoreRequest(
        target=TableTarget(patterns=(TablePattern(database=chain.database.name, name="of_key"),)),
        collection=chain.uri,
        options=RestoreOptions(into_db=there.name),
    )
    run_restore(Context(progress=Notes()), there.cluster, request, processes=False)
    rows = "SELECT k::text FROM of_key k ORDER BY id"
    assert there.execute(rows) == chain.database.execute(rows)
