"""A whole database out of a backup of a real server, with everything that a schema may hold."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from spanvault.collection.layout import index_key, manifest_key
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.archive import dump_now, read_archive
from spanvault.database.postgres.target import PROGRESS_SCHEMA
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import abandon_restore, finish_restore, load_batch, plan_restore, restore_schema
from spanvault.errors import AlreadyExists, BadInput, Damaged, Refused
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.faults import KILL, Faults, FaultyStorage
from tests.kit.servers import TestDatabase, drop_database

ZOO = """
    CREATE SCHEMA "odd schema";
    CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'hä');
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE TYPE pair AS (a int, b text);
    CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
    CREATE TABLE audit (what text);
    CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- TOC entry 1 (class 1 OID 1)
        INSERT INTO public.audit VALUES (TG_TABLE_NAME);
        RETURN new;
    END $$;
    CREATE TABLE parent (id serial PRIMARY KEY, m mood, p positive DEFAULT 5, c pair,
                         g int GENERATED ALWAYS AS (p * 2) STORED, "Case" text, "case" text);
    CREATE TABLE child (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pid int REFERENCES parent, d int DEFAULT twice(4),
                        "odd ""col" text);
    CREATE INDEX child_twice ON child (twice(d));
    CREATE TRIGGER tr BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION note_it();
    CREATE TABLE ev (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE ev_2025 PARTITION OF ev FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE ev_2026 PARTITION OF ev FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
    CREATE TABLE ev_2026_rest PARTITION OF ev_2026 DEFAULT;
    CREATE TABLE base (a int);
    CREATE TABLE derived (b int) INHERITS (base);
    CREATE VIEW v AS SELECT c.id, p.m FROM child c JOIN parent p ON p.id = c.pid;
    CREATE MATERIALIZED VIEW mv AS SELECT m, count(*) AS n FROM v GROUP BY m;
    CREATE MATERIALIZED VIEW a_mv_of_mv AS SELECT sum(n) AS total FROM mv;
    CREATE MATERIALIZED VIEW never AS SELECT 1 AS one WITH NO DATA;
    CREATE UNIQUE INDEX ON mv (m);
    CREATE UNLOGGED TABLE ul (x int);
    CREATE TABLE "odd schema"."odd ""table" ("a b" int PRIMARY KEY, "_op" text, "Ünï" numeric(10, 2));
    CREATE TABLE selfref (id int PRIMARY KEY, up int REFERENCES selfref);
    CREATE TABLE nothing ();
    COMMENT ON TABLE child IS 'children''s';
    COMMENT ON COLUMN child.d IS 'd';
    CREATE SEQUENCE lone;
    CREATE SEQUENCE unused;
    CREATE STATISTICS st ON pid, d FROM child;
    ALTER TABLE parent ADD CONSTRAINT nv CHECK (id > 0) NOT VALID;
    ALTER TABLE parent ENABLE ROW LEVEL SECURITY;
    CREATE POLICY pol ON parent USING (true);
    CREATE EXTENSION hstore;
    CREATE TABLE bag (id int PRIMARY KEY, h hstore, x tsvector, r int4range, a text[], j jsonb, b bytea, i interval);

    INSERT INTO parent (m, p, c, "Case", "case")
        SELECT CASE i % 3 WHEN 0 THEN 'sad' WHEN 1 THEN 'hä' END::mood, 1 + i, ROW(i, 'x"' || i)::pair, 'A', NULL
        FROM generate_series(1, 2000) i;
    INSERT INTO child (pid, "odd ""col") SELECT 1 + i % 2000, repeat(md5(i::text), 5) FROM generate_series(1, 6000) i;
    DELETE FROM audit WHERE ctid > '(0,10)';
    INSERT INTO ev SELECT i, date '2025-06-01' + i FROM generate_series(1, 500) i;
    INSERT INTO base VALUES (1), (1), (NULL);
    INSERT INTO derived VALUES (1, 2), (3, NULL);
    INSERT INTO ul VALUES (1);
    INSERT INTO "odd schema"."odd ""table" VALUES (1, 'D', 1.50), (2, NULL, NULL);
    INSERT INTO selfref VALUES (1, 2), (2, 1);
    INSERT INTO nothing SELECT FROM generate_series(1, 3);
    INSERT INTO bag VALUES (1, 'a=>1, b=>NULL', 'a:1 b', '[1,5)', '{a,NULL,""}', '{"k": [1, null]}', '\\x00ff', '1 mon -2 days'),
                           (2, '', NULL, 'empty', '{}', 'null', '', '00:00:00.000001');
    CREATE PUBLICATION other FOR TABLE audit;
    SELECT setval('lone', 77);
    REFRESH MATERIALIZED VIEW mv;
    REFRESH MATERIALIZED VIEW a_mv_of_mv;
"""


@pytest.fixture
def zoo(database: TestDatabase) -> TestDatabase:
    """A database with one of everything, and rows."""
    database.execute(ZOO)
    return database


@pytest.fixture
def target(zoo: TestDatabase) -> Iterator[TestDatabase]:
    """The name under which the zoo is restored; the database does not exist yet."""
    restored = TestDatabase(zoo.server, f"{zoo.name}_restored")
    yield restored
    drop_database(zoo.server, restored.name)


def back_up(database: TestDatabase, folder: Path, **options: Any) -> Manifest:
    """A full backup of one database, in several slices per table."""
    chosen = BackupOptions(**{"protection": "none", "span_bytes": 128 << 10, **options})
    request = BackupRequest(target=DatabaseTarget(names=(database.name,)), into=f"file://{folder}", options=chosen)
    return run_backup(Context(), database.cluster, request, processes=False)


def request_of(zoo: TestDatabase, target: TestDatabase, folder: Path, **options: Any) -> RestoreRequest:
    chosen = RestoreOptions(new_db_name=target.name, **options)
    return RestoreRequest(target=DatabaseTarget(names=(zoo.name,)), collection=f"file://{folder}", options=chosen)


def contents(database: TestDatabase) -> dict[str, Counter[str]]:
    """Every row of every table (partitions on their own, unlogged ones left out) and filled materialized view, as text."""
    found = {}
    with database.connect() as connection:
        tables = connection.execute(
            "SELECT quote_ident(nspname) || '.' || quote_ident(relname)"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relispopulated"
            " AND nspname !~ '^pg_' AND nspname <> 'information_schema'"
        ).fetchall()
        for (name,) in tables:
            rows = connection.execute(f"SELECT t::text FROM ONLY {name} t")
            found[name] = Counter(str(row[0]) for row in rows)
    return found


def sequences(database: TestDatabase) -> dict[str, tuple[int, bool]]:
    names = database.execute("SELECT quote_ident(schemaname) || '.' || quote_ident(sequencename) FROM pg_sequences")
    return {name: database.execute(f"SELECT last_value, is_called FROM {name}")[0] for (name,) in names}


def schema_of(database: TestDatabase, scratch: Path) -> dict[Any, str]:
    """Every object's SQL, as pg_dump prints it; without our publication and what is said about the database itself."""
    archive = scratch / f"{database.name}.dump"
    dump_now(database.endpoint, database.name, archive, scratch)
    return {
        entry.identity: entry.sql.replace(database.name, "DATABASE")
        for entry in read_archive(archive)
        if "spanvault" not in entry.name and not entry.kind.startswith("DATABASE")
    }


def same(zoo: TestDatabase, target: TestDatabase, scratch: Path) -> None:
    assert contents(target) == contents(zoo)
    assert sequences(target) == sequences(zoo)
    assert schema_of(target, scratch) == schema_of(zoo, scratch)
    assert target.execute("SELECT to_regnamespace(%s)", [PROGRESS_SCHEMA]) == [(None,)]


def test_a_database_comes_back_as_it_was(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c", protection="1h", fingerprint=True)
    assert zoo.execute("SELECT count(*) FROM pg_publication WHERE pubname LIKE 'spanvault%'") == [(1,)]
    request = request_of(zoo, target, tmp_path / "c", verify_fingerprint=True)
    result = run_restore(Context(), zoo.cluster, request)
    same(zoo, target, tmp_path)
    assert sum(contents(target)["public.child"].values()) == 6000
    assert target.execute("SELECT count(*) FROM audit") == zoo.execute("SELECT count(*) FROM audit"), "no trigger fired"
    assert target.execute("SELECT count(*) FROM ul") == [(0,)]
    assert target.execute("SELECT pubname FROM pg_publication") == [("other",)]
    assert target.execute("SELECT relispopulated FROM pg_class WHERE relname = 'never'") == [(False,)]
    assert target.execute("INSERT INTO child (pid) VALUES (1) RETURNING id") == [(6001,)]
    assert target.execute("SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'child'") == [(True,)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        target.execute("DELETE FROM parent WHERE id = 1")
    assert result.dicts()[0]["databases"] == target.name
    assert result.dicts()[0]["status"] == "succeeded"


def test_parallel_processes_load_what_one_would(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    zoo.execute(
        "INSERT INTO bag SELECT i, 'a=>1', NULL, NULL, NULL, NULL, sha512(i::text::bytea) FROM generate_series(3, 30000) i"
    )
    back_up(zoo, tmp_path / "c", span_bytes=512 << 10)
    request = request_of(zoo, target, tmp_path / "c", workers=2)
    assert len(plan_restore(Context(), zoo.cluster, request).batches) > 1
    run_restore(Context(), zoo.cluster, request)
    same(zoo, target, tmp_path)


def test_an_existing_empty_database_is_used_and_a_filled_one_is_refused(
    zoo: TestDatabase, target: TestDatabase, tmp_path: Path
) -> None:
    back_up(zoo, tmp_path / "c")
    zoo.execute(f"CREATE DATABASE {target.name} TEMPLATE template0")
    request = request_of(zoo, target, tmp_path / "c")
    run_restore(Context(), zoo.cluster, request, processes=False)
    same(zoo, target, tmp_path)
    before = contents(target)
    with pytest.raises(AlreadyExists, match=f"'{target.name}' is not empty: it has function public"):
        run_restore(Context(), zoo.cluster, request, processes=False)
    assert contents(target) == before


def test_the_database_itself_is_made_alike(zoo: TestDatabase, tmp_path: Path) -> None:
    zoo.execute("CREATE DATABASE \"Latin base\" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    source, copy = TestDatabase(zoo.server, "Latin base"), TestDatabase(zoo.server, "Latin copy")
    try:
        source.execute("CREATE TABLE t (v text); INSERT INTO t VALUES ('gr\u00fc\u00df')")
        back_up(source, tmp_path / "c")
        run_restore(Context(), zoo.cluster, request_of(source, copy, tmp_path / "c"), processes=False)
        assert contents(copy) == {"public.t": Counter({"(gr\u00fc\u00df)": 1})}
        facts = "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()"
        assert copy.execute(facts) == source.execute(facts) == [("LATIN1", "C", "C")]
    finally:
        drop_database(zoo.server, source.name)
        drop_database(zoo.server, copy.name)


@pytest.mark.parametrize(("version", "refused"), [("99.2 (Debian 99.2-1)", True), ("99beta1", True), ("9.6.24", False)])
def test_a_backup_of_a_newer_postgresql_is_refused(database: TestDatabase, tmp_path: Path, version: str, refused: bool) -> None:
    database.execute("CREATE TABLE item (id int PRIMARY KEY)")
    manifest = back_up(database, tmp_path / "c")
    stored = tmp_path / "c" / manifest_key(manifest.subdir)
    stored.write_bytes(
        manifest.model_copy(update={"source": manifest.source.model_copy(update={"server_version": version})}).to_json()
    )
    (tmp_path / "c" / index_key(manifest.subdir, 0)).unlink()  # it remembers the manifest's digest
    copy = TestDatabase(database.server, f"{database.name}_copy")
    request = request_of(database, copy, tmp_path / "c")
    try:
        if refused:
            own = database.execute("SHOW server_version")[0][0]
            with pytest.raises(
                Refused, match=rf"is of PostgreSQL {re.escape(version)}, and the target is PostgreSQL {re.escape(own)}"
            ):
                run_restore(Context(), database.cluster, request, processes=False)
            assert database.execute("SELECT count(*) FROM pg_database WHERE datname = %s", [copy.name]) == [(0,)]
        else:
            run_restore(Context(), database.cluster, request, processes=False)
            assert copy.execute("SELECT count(*) FROM item") == [(0,)]
    finally:
        drop_database(database.server, copy.name)


def test_a_damaged_file_is_named_and_nothing_of_it_can_be_seen(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c", span_bytes=1 << 30)
    request = request_of(zoo, target, tmp_path / "c")
    plan = plan_restore(Context(), zoo.cluster, request)
    child = max((unit for batch in plan.batches for unit in batch.units), key=lambda unit: unit.bytes)
    (stored,) = (tmp_path / "c").rglob(f"{child.unit}.parquet")
    good = stored.read_bytes()
    stored.write_bytes(good[:-5] + bytes(byte ^ 1 for byte in good[-5:]))
    with pytest.raises(Damaged, match=f"{child.unit}.parquet does not have the SHA-256"):
        run_restore(Context(), zoo.cluster, request, processes=False)
    assert target.execute("SELECT count(*) FROM child") == [(0,)]
    stored.write_bytes(good)  # the object is brought back, and the same statement goes on
    run_restore(Context(), zoo.cluster, request, processes=False)
    same(zoo, target, tmp_path)


def test_a_wrong_row_is_found_by_the_fingerprint(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c", fingerprint=True)
    plan = _load_all(zoo.cluster, request_of(zoo, target, tmp_path / "c", verify_fingerprint=True))
    target.execute("UPDATE parent SET \"case\" = 'x' WHERE id = 1000")
    with pytest.raises(Damaged, match=r"public\.parent was restored with other rows"):
        finish_restore(Context(), zoo.cluster, plan)


def test_two_processes_loading_the_same_units_load_each_row_once(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    request = request_of(zoo, target, tmp_path / "c")
    plan = plan_restore(Context(), zoo.cluster, request)
    restore_schema(Context(), zoo.cluster, plan.request)
    for batch in plan.batches:
        summaries: list[Any] = []
        barrier = threading.Barrier(2)

        def load(index: int = batch.index, found: list[Any] = summaries, start: threading.Barrier = barrier) -> None:
            start.wait()
            found.append(load_batch(Context(), zoo.cluster, plan.request, index))

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.skipped for one in summaries) == len(batch.units)
    finish_restore(Context(), zoo.cluster, plan.request)
    same(zoo, target, tmp_path)


def _run_and_die(cluster: Cluster, request: RestoreRequest, point: str, key: str, nth: int) -> None:
    faults = Faults()
    faults.add_fault(point, key=key, nth=nth, action=KILL)
    context = Context(wrap=lambda storage: FaultyStorage(storage, faults), reached=faults.reach)
    run_restore(context, cluster, request, processes=False)


KILLS = [
    ("storage.read_chunks.before", "*.dump", 1),
    ("restore.after_schema", "*", 1),
    ("storage.read_chunks.before", "*/data/*", 1),
    ("storage.read_chunks.chunk", "*/data/*", 6),
    ("storage.read_chunks.after", "*/data/*", 11),
    ("restore.after_load", "*", 1),
    ("storage.read_chunks.after", "*.dump", 2),
]


@pytest.mark.slow
def test_killed_at_any_step_the_same_statement_ends_it(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    """One restore that is killed at one place after the other, each time with a real SIGKILL, and continued."""
    back_up(zoo, tmp_path / "c")
    request = request_of(zoo, target, tmp_path / "c")
    for point, key, nth in KILLS:
        process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(zoo.cluster, request, point, key, nth))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (point, key, nth)
    run_restore(Context(), zoo.cluster, request, processes=False)
    same(zoo, target, tmp_path)


def test_a_finish_that_was_interrupted_goes_on(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    request = _load_all(zoo.cluster, request_of(zoo, target, tmp_path / "c"))
    # As an earlier try left it: some indexes and constraints, and one that it could not make.
    target.execute(f"UPDATE {PROGRESS_SCHEMA}.restores SET state = 'finishing'")
    target.execute("CREATE INDEX child_twice ON public.child USING btree (public.twice(d))")
    target.execute("ALTER TABLE ONLY public.parent ADD CONSTRAINT parent_pkey PRIMARY KEY (id)")
    target.execute("ALTER TABLE public.parent ENABLE ROW LEVEL SECURITY; UPDATE child SET pid = 9999 WHERE id = 1")
    with pytest.raises(Exception, match="child_pid_fkey"):
        finish_restore(Context(), zoo.cluster, request)
    target.execute("UPDATE child SET pid = 2 WHERE id = 1")
    finish_restore(Context(), zoo.cluster, request)
    same(zoo, target, tmp_path)
    finish_restore(Context(), zoo.cluster, request)  # harmless


def test_finish_refuses_while_rows_are_missing(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    plan = plan_restore(Context(), zoo.cluster, request_of(zoo, target, tmp_path / "c"))
    restore_schema(Context(), zoo.cluster, plan.request)
    with pytest.raises(Refused, match="parts are not loaded yet"):
        finish_restore(Context(), zoo.cluster, plan.request)


def test_loading_without_a_restore_under_way_is_refused(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    plan = plan_restore(Context(), zoo.cluster, request_of(zoo, target, tmp_path / "c"))
    zoo.execute(f"CREATE DATABASE {target.name} TEMPLATE template0")
    with pytest.raises(Refused, match="Run the whole RESTORE statement"):
        load_batch(Context(), zoo.cluster, plan.request, 0)


def test_another_unfinished_restore_is_not_mixed_in(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    first = back_up(zoo, tmp_path / "c")
    _load_all(zoo.cluster, request_of(zoo, target, tmp_path / "c"))
    back_up(zoo, tmp_path / "c")
    newer = request_of(zoo, target, tmp_path / "c")
    with pytest.raises(Refused, match=f"unfinished restore of {first.subdir}"):
        run_restore(Context(), zoo.cluster, newer, processes=False)
    older = newer.model_copy(update={"subdir": first.subdir})
    run_restore(Context(), zoo.cluster, older, processes=False)
    same(zoo, target, tmp_path)


def test_on_failure_clean_takes_everything_back(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    for stored in (tmp_path / "c").rglob("data/*.parquet"):
        stored.write_bytes(b"")
    request = request_of(zoo, target, tmp_path / "c", on_failure="clean")
    with pytest.raises(Damaged):
        run_restore(Context(), zoo.cluster, request, processes=False)
    assert zoo.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.name]) == []
    zoo.execute(f"CREATE DATABASE {target.name} TEMPLATE template0")
    with pytest.raises(Damaged):
        run_restore(Context(), zoo.cluster, request, processes=False)
    fresh = {("COMMENT", None, 'SCHEMA "public"'): "COMMENT ON SCHEMA \"public\" IS 'standard public schema';"}
    assert schema_of(target, tmp_path) == fresh, "the database was there before, so it stays, empty"
    abandon_restore(Context(), zoo.cluster, request)  # harmless


def test_a_damaged_schema_leaves_no_database_behind(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    (archive,) = (tmp_path / "c").rglob("schema-*.dump")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(Damaged, match=archive.name):
        run_restore(Context(), zoo.cluster, request_of(zoo, target, tmp_path / "c", on_failure="clean"), processes=False)
    assert zoo.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.name]) == []


def test_schema_only_reads_no_data_and_verification_reads_all(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    checked = request_of(zoo, target, tmp_path / "c", schema_only=True, verify_backup_table_data=True)
    stored = max((tmp_path / "c").rglob("data/*.parquet"), key=lambda file: file.stat().st_size)
    stored.write_bytes(b"")
    with pytest.raises(Damaged, match=stored.name):
        run_restore(Context(), zoo.cluster, checked.model_copy(deep=True), processes=False)
    abandon_restore(Context(), zoo.cluster, checked)
    run_restore(Context(), zoo.cluster, request_of(zoo, target, tmp_path / "c", schema_only=True), processes=False)
    assert schema_of(target, tmp_path) == schema_of(zoo, tmp_path)
    assert sum(sum(rows.values()) for rows in contents(target).values()) == 0


def test_a_dry_run_writes_nothing(zoo: TestDatabase, target: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    result = run_restore(Context(), zoo.cluster, request_of(zoo, target, tmp_path / "c"), dry_run=True)
    assert result.dicts()[0]["status"] == "planned"
    assert zoo.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.name]) == []


def test_a_database_that_the_backup_lacks(zoo: TestDatabase, tmp_path: Path) -> None:
    back_up(zoo, tmp_path / "c")
    request = RestoreRequest(target=DatabaseTarget(names=("nowhere",)), collection=f"file://{tmp_path / 'c'}")
    with pytest.raises(BadInput, match=f"no database 'nowhere'; it holds {zoo.name}"):
        plan_restore(Context(), zoo.cluster, request)


def _load_all(cluster: Cluster, request: RestoreRequest) -> RestoreRequest:
    """All steps before the finish; the request with its backup fixed."""
    plan = plan_restore(Context(), cluster, request)
    restore_schema(Context(), cluster, plan.request)
    for batch in plan.batches:
        load_batch(Context(), cluster, plan.request, batch.index)
    return plan.request
