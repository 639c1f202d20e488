"""Security labels come back on whatever has them, by pg_dump's text of both servers; where their provider is not loaded, it is
told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import Permanent
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget, TablePattern, TableTarget, Target
from tests.kit.dumps import database_text, globals_text
from tests.kit.harness import Notes
from tests.kit.label_provider import PROVIDER, label_provider
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase

pytestmark = [pytest.mark.slow, pytest.mark.apt]

OBJECTS = """
CREATE SCHEMA s;
CREATE TABLE s.t (id serial PRIMARY KEY, v text);
INSERT INTO s.t (v) VALUES ('one'), ('two');
CREATE TABLE s.other (id int PRIMARY KEY);
CREATE VIEW s.view AS SELECT v FROM s.t;
CREATE MATERIALIZED VIEW s.filled AS SELECT v FROM s.t;
CREATE FOREIGN DATA WRAPPER nothing;
CREATE SERVER far FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE s.distant (id int) SERVER far;
CREATE FUNCTION s.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE s.p() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE s.total(int) (SFUNC = int4pl, STYPE = int);
CREATE FUNCTION s.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER ended ON ddl_command_end EXECUTE FUNCTION s.on_ddl();
CREATE DOMAIN s.few AS int CHECK (VALUE < 9);
CREATE TYPE s.mood AS ENUM ('sad');
CREATE FUNCTION s.handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE LANGUAGE ours HANDLER s.handler;
CREATE PUBLICATION theirs FOR TABLE s.t;
CREATE SUBSCRIPTION theirs_too CONNECTION 'host=192.0.2.1' PUBLICATION p WITH (connect = false, slot_name = NONE);
SELECT lo_from_bytea(4711, 'a large object');
"""
# What may have a label; in a label anything may stand.
LABELLED = (
    *("SCHEMA s", "TABLE s.t", "COLUMN s.t.v", "SEQUENCE s.t_id_seq", "VIEW s.view", "COLUMN s.view.v", "TABLE s.other"),
    *("MATERIALIZED VIEW s.filled", "FOREIGN TABLE s.distant", "FUNCTION s.f(int)", "PROCEDURE s.p()", "AGGREGATE s.total(int)"),
    *("EVENT TRIGGER ended", "DOMAIN s.few", "TYPE s.mood", "PUBLICATION theirs", "SUBSCRIPTION theirs_too", "LANGUAGE ours"),
    *("LARGE OBJECT 4711", "DATABASE labelled", 'ROLE "the; owner"', "TABLESPACE fast"),
)
LABEL = "top; ''secret'' of {} ON TABLESPACE nowhere -- \"all\""
# Without those of the whole server, which are seen from every database.
INSIDE = """SELECT objtype, objname, label FROM pg_seclabels WHERE provider = %s AND objoid IN (SELECT objoid FROM pg_seclabel)
ORDER BY 1, 2"""


def prepared(server: PostgresServer) -> TestDatabase:
    """The server's main database; it has the tablespace that the source has."""
    main = TestDatabase(server, "postgres")
    with main.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE fast LOCATION ''")
    return main


def labels(database: TestDatabase) -> list[tuple[str, str, str]]:
    return [(kind, name, label) for kind, name, label in database.execute(INSIDE, [PROVIDER])]


@pytest.fixture(scope="module")
def settings(servers_folder: Path) -> dict[str, str]:
    return {**SOURCE_SETTINGS, **label_provider(servers_folder)}


@pytest.fixture(scope="module")
def source(settings: dict[str, str], servers_folder: Path) -> Iterator[TestDatabase]:
    with PostgresServer(servers_folder / "labels", settings=settings) as server:
        main = prepared(server)
        main.execute('CREATE ROLE "the; owner"')
        main.execute("CREATE DATABASE labelled TEMPLATE template0")
        database = TestDatabase(server, "labelled")
        database.execute(OBJECTS)
        for one in LABELLED:
            database.execute(f"SECURITY LABEL FOR \"{PROVIDER}\" ON {one} IS '{LABEL.format(one)}'")
        yield database


@pytest.fixture(scope="module")
def uri(source: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The collection of a full backup and of one in which nothing but labels changed."""
    uri, main = f"file://{tmp_path_factory.mktemp('labels')}", TestDatabase(source.server, "postgres")
    for append in (None, "LATEST"):
        request = BackupRequest(target=ClusterTarget(), into=uri, append=append, options=BackupOptions(protection="1h"))
        run_backup(Context(progress=Notes()), main.cluster, request, processes=False)
        source.execute(f"SECURITY LABEL FOR \"{PROVIDER}\" ON TABLE s.other IS 'changed'")
        source.execute(f"SECURITY LABEL FOR \"{PROVIDER}\" ON LARGE OBJECT 4711 IS 'changed, too'")
        source.execute(f'SECURITY LABEL FOR "{PROVIDER}" ON DOMAIN s.few IS NULL')
    return uri


def restored(main: TestDatabase, uri: str, target: Target, **given: object) -> list[str]:
    notes = Notes()
    request = RestoreRequest(target=target, collection=uri, options=RestoreOptions.model_validate(given))
    run_restore(Context(progress=notes), main.cluster, request, processes=False)
    return notes.notes


def test_a_cluster_comes_back_with_its_labels(
    source: TestDatabase, uri: str, settings: dict[str, str], servers_folder: Path
) -> None:
    assert len(source.execute("SELECT 1 FROM pg_seclabels")) == len(LABELLED) - 1, "one was removed"
    with PostgresServer(servers_folder / "other", settings=settings) as server:
        main = prepared(server)
        restored(main, uri, ClusterTarget())
        copy = TestDatabase(server, "labelled")
        assert labels(copy) == labels(source)
        assert database_text(copy, "--create") == database_text(source, "--create")
        assert globals_text(main) == globals_text(TestDatabase(source.server, "postgres"))


def test_a_database_comes_back_with_its_labels_under_another_name(source: TestDatabase, uri: str) -> None:
    restored(TestDatabase(source.server, "postgres"), uri, DatabaseTarget(names=("labelled",)), new_db_name="again")
    copy = TestDatabase(source.server, "again")
    assert labels(copy) == labels(source)
    assert database_text(copy, "--create").replace("again", "labelled") == database_text(source, "--create")


def test_a_table_comes_back_with_its_own_labels_only(source: TestDatabase, uri: str) -> None:
    main = TestDatabase(source.server, "postgres")
    main.execute("CREATE DATABASE part")
    table = TableTarget(patterns=(TablePattern(database="labelled", schema_name="s", name="t"),))
    restored(main, uri, table, into_db="part")
    inside = {name for _, name, _ in labels(TestDatabase(source.server, "part"))}
    assert inside == {"s", "s.t", "s.t.v", "s.t_id_seq"}


def test_without_their_provider_labels_are_refused(source: TestDatabase, uri: str, postgres: PostgresServer) -> None:
    main = TestDatabase(postgres, "postgres")
    with pytest.raises(Permanent, match=rf'^Creating security label .* "{PROVIDER}" is not loaded'):
        restored(main, uri, DatabaseTarget(names=("labelled",)), new_db_name="unlabelled", on_failure="clean")
    assert main.execute("SELECT count(*) FROM pg_database WHERE datname = 'unlabelled'") == [(0,)]
