"""Tables whose rows are excluded from backups: never read, not in the log, restored empty; what happens when the marker
comes and goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from spanvault.collection.files import read_files
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.estimate import estimate
from spanvault.engine.maintenance import collection_check, compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput, Refused
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget, Target
from spanvault.observe.show_backup import show_backup
from tests.kit.harness import Backup, Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database

WORD = "spanvault.exclude_data"
SOURCE = f"""
    CREATE TABLE kept (id int PRIMARY KEY, v text);
    CREATE TABLE broken (id int PRIMARY KEY, v text);
    COMMENT ON TABLE broken IS 'Of no worth. {WORD} It is made anew each night.';
    CREATE TABLE audit (id int PRIMARY KEY, v text);
    COMMENT ON TABLE audit IS '{WORD}=true';
    CREATE TABLE late (id int PRIMARY KEY, v text);
    CREATE TABLE tmp_one (id int PRIMARY KEY, v text);
    CREATE TABLE keyless (id int, v text);
    COMMENT ON TABLE keyless IS '{WORD}';
    CREATE TABLE ev (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    COMMENT ON TABLE ev IS '{WORD}';
    CREATE TABLE ev_low PARTITION OF ev FOR VALUES FROM (0) TO (100);
    CREATE SCHEMA scratch;
    COMMENT ON SCHEMA scratch IS '{WORD}';
    CREATE TABLE scratch.one (id int PRIMARY KEY, v text);
    CREATE TABLE scratch.wanted (id int PRIMARY KEY, v text);
    COMMENT ON TABLE scratch.wanted IS '{WORD}=false';
    CREATE TABLE spoken (id int PRIMARY KEY, v text);
    COMMENT ON TABLE spoken IS 'my{WORD} {WORD}.not';
    CREATE TABLE refers (id int PRIMARY KEY, low int REFERENCES ev);
    COMMENT ON TABLE refers IS '{WORD}'
"""
TABLES = ("kept", "broken", "audit", "late", "tmp_one", "keyless", "ev", "scratch.one", "scratch.wanted", "spoken")
EXCLUDED = {"public.broken", "public.audit", "public.tmp_one", "public.keyless", "public.ev_low", "scratch.one", "public.refers"}


@dataclass(frozen=True)
class Excluding(TestDatabase):
    """A database of a cluster whose clusters.yaml excludes tables as well."""

    @property
    def cluster(self) -> Cluster:
        return super().cluster.model_copy(update={"exclude_data": ("*.public.tmp_*",)})


@dataclass
class Chain:
    """A full, and layers between which markers came and went, with what the source held at each end."""

    backup: Backup
    layers: list[Manifest] = field(default_factory=list)
    held: list[dict[str, list[str]]] = field(default_factory=list)
    published: list[set[str]] = field(default_factory=list)
    inside: datetime | None = None

    def note(self, manifest: Manifest) -> None:
        """Remember the source, which stands at the layer's end."""
        database = self.backup.database
        self.layers.append(manifest)
        self.held.append({table: self.backup.source_rows(table) for table in ("kept", "audit", "late")})
        rows = database.execute("SELECT schemaname || '.' || tablename FROM pg_publication_tables")
        self.published.append({row[0] for row in rows})

    def excluded(self, number: int) -> set[str]:
        (entry,) = self.layers[number].databases
        return {table.qualified for table in entry.database.tables if table.excluded}

    def restore(self, target: Target, options: RestoreOptions, **at: object) -> list[str]:
        """Restore and return what was said."""
        notes = Notes()
        request = RestoreRequest(target=target, collection=self.backup.uri, options=options).model_copy(update=at)
        context = self.backup.context
        run_restore(replace(context, progress=notes), self.backup.database.cluster, request, processes=False)
        return notes.notes


@pytest.fixture(scope="module")
def chain(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The chain; its source is a copy that no buffer holds, with a table whose pages are no pages."""
    with fresh_database(postgres) as model:
        model.execute(SOURCE)
        for table in TABLES:
            model.execute(f"INSERT INTO {table} SELECT i, md5(i::text) FROM generate_series(1, 50) i")
        database = Excluding(postgres, f"{model.name}_copy")
        with connect(model.endpoint, "postgres", purpose="test") as session:
            session.execute(f"CREATE DATABASE {database.name} TEMPLATE {model.name} STRATEGY file_copy".encode())
        try:
            yield _taken(Chain(Backup(database, tmp_path_factory.mktemp("excluded") / "c")), postgres)
        finally:
            with connect(model.endpoint, database.name, purpose="test") as session:
                for (slot,) in session.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"):
                    session.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
            drop_database(postgres, database.name)


def _taken(chain: Chain, postgres: PostgresServer) -> Chain:
    backup, database = chain.backup, chain.backup.database
    heap = postgres.data / database.execute("SELECT pg_relation_filepath('broken')")[0][0]
    heap.write_bytes(b"\xff" * heap.stat().st_size)
    chain.note(backup.take())
    for table in ("kept", "audit", "late", "tmp_one", "keyless", "scratch.one"):
        database.execute(f"INSERT INTO {table} VALUES (60, 'second'); UPDATE {table} SET v = 'x' WHERE id = 1")
    chain.note(backup.increment(revision_history=True))
    database.execute("COMMENT ON TABLE audit IS NULL; UPDATE audit SET v = 'y' WHERE id = 2; DELETE FROM late WHERE id = 3")
    chain.note(backup.increment(revision_history=True))
    database.execute("INSERT INTO audit VALUES (61, 'third'); INSERT INTO late VALUES (61, 'third')")
    chain.inside = database.execute("SELECT clock_timestamp()")[0][0]
    database.execute(
        f"COMMENT ON TABLE late IS '{WORD}'; INSERT INTO kept VALUES (61, 'third'); INSERT INTO late VALUES (62, '')"
    )
    chain.note(backup.increment(revision_history=True))
    database.execute("DELETE FROM audit WHERE id = 60; INSERT INTO late VALUES (63, 'never')")
    chain.note(backup.increment())
    return chain


def test_what_is_marked_is_excluded_by_comment_schema_partition_root_or_clusters_file(chain: Chain) -> None:
    assert chain.excluded(0) == chain.excluded(1) == EXCLUDED
    assert chain.excluded(2) == EXCLUDED - {"public.audit"}
    assert chain.excluded(3) == chain.excluded(4) == EXCLUDED - {"public.audit"} | {"public.late"}


def test_no_layer_has_a_row_or_a_change_of_an_excluded_table(chain: Chain) -> None:
    for number, manifest in enumerate(chain.layers):
        (entry,) = manifest.databases
        oids = {table.oid for table in entry.database.tables if table.excluded}
        assert oids
        assert oids.isdisjoint(table.oid for table in entry.tables)
        assert oids.isdisjoint(file.table_oid for file in read_files(chain.backup.storage, manifest.subdir, manifest.files))
        assert chain.excluded(number).isdisjoint(chain.published[number])
        assert {"public.kept", "scratch.wanted", "public.spoken"} <= chain.published[number]
        assert any(WORD in phrase and "public.audit" in phrase for phrase in entry.omitted) == (number < 2)


def test_excluded_tables_are_never_read(chain: Chain) -> None:
    database = chain.backup.database
    with pytest.raises(psycopg.errors.DataCorrupted):
        database.execute("SET enable_indexscan = off; SELECT count(v) FROM broken")
    query = (
        "SELECT relname, coalesce(seq_scan, 0) + coalesce(idx_scan, 0), heap_blks_read FROM pg_stat_user_tables"
        " JOIN pg_statio_user_tables USING (relid, relname) WHERE pg_stat_user_tables.schemaname || '.' || relname = ANY (%s)"
    )
    scans = {name: (scans, blocks) for name, scans, blocks in database.execute(query, (["public.ev_low", "public.refers"],))}
    assert scans == {"ev_low": (0, 0), "refers": (0, 0)}


def test_a_table_that_loses_the_marker_is_introduced_whole_and_goes_on_by_its_log(chain: Chain) -> None:
    for number in (2, 3, 4):
        assert chain.backup.rows(chain.layers[number], "audit") == chain.held[number]["audit"]
    assert chain.backup.capture(chain.layers[2], "audit") == "exact"
    assert [chain.backup.capture(chain.layers[number], "audit") for number in (3, 4)] == ["log", "log"]


def test_a_table_that_gets_the_marker_keeps_its_earlier_states(chain: Chain) -> None:
    for number in (0, 1, 2):
        assert chain.backup.rows(chain.layers[number], "late") == chain.held[number]["late"]


def restored(chain: Chain, number: int | None, **more: object) -> tuple[dict[str, list[str]], dict[str, int], list[str]]:
    """A restore at the end of a layer: rows of three tables, the counts of others, and what was said."""
    database = chain.backup.database
    name = f"{database.name}_restored"
    options = RestoreOptions.model_validate({"new_db_name": name, "workers": 1, **more})
    at = {} if number is None else {"as_of": chain.layers[number].end.lsn}
    try:
        notes = chain.restore(DatabaseTarget(names=(database.name,)), options, **at)
        there = Backup(TestDatabase(database.server, name), chain.backup.folder)
        rows = {table: there.source_rows(table) for table in ("kept", "audit", "late")}
        counts = {table: there.database.execute(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}
        return rows, counts, notes
    finally:
        drop_database(database.server, name)


@pytest.mark.parametrize("number", [1, 3])
def test_a_restore_has_the_rows_of_all_others_and_says_which_are_empty(chain: Chain, number: int) -> None:
    rows, counts, notes = restored(chain, number)
    empty = {1: "audit", 3: "late"}[number]
    assert rows == {**chain.held[number], empty: []}
    none = dict.fromkeys(("broken", "tmp_one", "keyless", "ev", "scratch.one"), 0)
    assert counts == {**counts, **none, "scratch.wanted": 50, "spoken": 50}
    (note,) = [note for note in notes if "excluded" in note]
    assert f"public.{empty}" in note
    assert "public.broken" in note


def test_a_table_named_by_itself_is_restored_empty_and_that_is_said(chain: Chain) -> None:
    with fresh_database(chain.backup.database.server) as target:
        patterns = tuple(TablePattern(database=None, schema_name="public", name=name) for name in ("broken", "spoken"))
        options = RestoreOptions(into_db=target.name, workers=1)
        notes = chain.restore(TableTarget(patterns=patterns), options)
        assert target.execute("SELECT (SELECT count(*) FROM broken), (SELECT count(*) FROM spoken)") == [(0, 50)]
        assert any("restored empty" in note and "public.broken" in note and "late" not in note for note in notes)


def test_a_time_inside_the_layer_in_which_the_marker_came_is_refused_with_the_table_s_name(chain: Chain) -> None:
    with pytest.raises(Refused, match=r"public\.late .*restorable up to"):
        chain.restore(
            DatabaseTarget(names=(chain.backup.database.name,)), RestoreOptions(new_db_name="never_made"), as_of=chain.inside
        )


def test_show_backup_has_no_count_of_excluded_rows(chain: Chain) -> None:
    shown = {
        (row["parent_schema_name"], row["object_name"]): row["rows"]
        for row in show_backup(chain.backup.storage).dicts()
        if row["object_type"] == "table" and row["backup_type"] == "full"
    }
    assert {".".join(map(str, name)) for name, rows in shown.items() if rows is None} == EXCLUDED
    assert shown["public", "kept"] == 50


def test_a_compacted_chain_gives_the_same_and_is_whole(chain: Chain) -> None:
    compact_backups(chain.backup.context, chain.backup.uri, "LATEST", first=0, number=4)
    assert chain.backup.resolved().manifest.compacted
    for table in ("kept", "audit"):
        assert chain.backup.rows(chain.layers[4], table) == chain.held[4][table]
    outcome = collection_check(chain.backup.context, chain.backup.uri, "checksums").dicts()
    assert {row["outcome"] for row in outcome} == {"pass"}


def test_an_estimate_leaves_them_out(chain: Chain) -> None:
    (row,) = estimate(chain.backup.context, chain.backup.database.cluster, chain.backup.request).dicts()
    assert row["tables"] == len({"kept", "audit", "scratch.wanted", "spoken"})


@pytest.fixture
def small(database: TestDatabase, tmp_path: Path) -> Backup:
    """Two tables, one that refers to the other."""
    database.execute(
        "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1);"
        "CREATE TABLE b (id int PRIMARY KEY, a int CONSTRAINT points REFERENCES a); INSERT INTO b VALUES (1, 1)"
    )
    return Backup(database, tmp_path / "c", options=BackupOptions(workers=1))


def test_a_foreign_key_into_an_excluded_table_is_refused_before_anything_is_written(small: Backup) -> None:
    small.database.execute(f"COMMENT ON TABLE a IS '{WORD}'")
    with pytest.raises(Refused, match=r"public\.a are excluded .* foreign key points of public\.b"):
        small.take()
    assert not list(small.folder.glob("2*"))
    with pytest.raises(Refused, match="points"):
        estimate(small.context, small.database.cluster, small.request)
    small.database.execute("COMMENT ON TABLE a IS NULL")
    small.take()
    small.database.execute(f"COMMENT ON TABLE a IS '{WORD}'")
    with pytest.raises(Refused, match="points"):
        small.increment()
    small.database.execute("ALTER TABLE b DROP CONSTRAINT points, ADD CONSTRAINT points FOREIGN KEY (a) REFERENCES a NOT VALID")
    assert small.increment().number == 1


def test_a_marker_that_cannot_be_read_is_told_with_its_table(small: Backup) -> None:
    small.database.execute(f"COMMENT ON TABLE b IS '{WORD}=yes'")
    with pytest.raises(BadInput, match=rf"public\.b .*write {WORD}, {WORD}=true or {WORD}=false, not '{WORD}=yes'"):
        small.take()


def test_a_marker_that_comes_while_the_backup_runs_counts(small: Backup) -> None:
    small.database.execute("ALTER TABLE b DROP CONSTRAINT points; COMMENT ON TABLE b IS '" + WORD + "'")
    hooks = {"export.all": lambda: small.database.execute(f"COMMENT ON TABLE a IS '{WORD}'; COMMENT ON TABLE b IS NULL")}
    made = Backup(small.database, small.folder, at=hooks, options=small.options).take()
    (entry,) = made.databases
    assert [table.qualified for table in entry.database.tables if table.excluded] == ["public.a"]
    assert small.rows(made, "b") == ["(1,1)"]
