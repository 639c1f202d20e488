"""Restores from chains of real backups: at each layer's end, at times and positions inside layers, from where a killed
try left off."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from spanvault.config.clusters import Cluster
from spanvault.config.settings import Settings
from spanvault.database.postgres.target import PROGRESS_SCHEMA
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import load_batch, plan_restore, restore_schema
from spanvault.errors import Refused, SpanvaultError
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget
from tests.kit.faults import KILL, Faults, FaultyStorage
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database

pytestmark = pytest.mark.slow

SHOP = """
    CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, amount numeric(10, 2), big text);
    CREATE INDEX by_name ON item (name);
    CREATE TABLE part (item int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE, number int, what text,
                       PRIMARY KEY (item, number));
    CREATE TABLE journal (line text);
    CREATE TABLE twice (v int);
    ALTER TABLE twice REPLICA IDENTITY FULL;
    CREATE SEQUENCE numbers;
    INSERT INTO item SELECT i, 'item ' || i, i * 1.5, repeat(md5(i::text), 300) FROM generate_series(1, 400) i;
    INSERT INTO part SELECT i, n, 'part ' || n FROM generate_series(1, 400) i, generate_series(1, 3) n;
    INSERT INTO journal VALUES ('opened');
    INSERT INTO twice VALUES (1), (1), (2);
"""
ROUNDS = (
    "UPDATE item SET name = 'renamed' WHERE id % 50 = 0; DELETE FROM item WHERE id = 7; INSERT INTO twice VALUES (1)",
    "UPDATE item SET id = id + 1000 WHERE id BETWEEN 20 AND 25; INSERT INTO item VALUES (20, 'new 20', 1, 'short')",
    "DELETE FROM twice WHERE ctid IN (SELECT ctid FROM twice WHERE v = 1 LIMIT 2); UPDATE part SET what = NULL WHERE number = 2",
    "TRUNCATE part; INSERT INTO part VALUES (1, 1, 'after the truncate'); UPDATE item SET amount = NULL WHERE id < 10",
)
LOGGED = ("item", "part", "twice")

Rows = dict[str, list[str]]


@dataclass
class Moment:
    """The source between two transactions: where, when, and the rows of every table."""

    lsn: Lsn
    time: datetime
    rows: Rows


@dataclass
class Chain:
    """A database, its collection in a folder, and what was seen."""

    source: TestDatabase
    folder: Path
    moments: list[Moment] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """The collection."""
        return f"file://{self.folder}"

    def back_up(self, append: str | None = "LATEST", as_of: datetime | None = None, **options: Any) -> Manifest:
        """One layer, up to now or to a time; without revision history unless asked for."""
        chosen = BackupOptions(**{"protection": "1h", "span_bytes": 64 << 10, "workers": 1, **options})
        target = DatabaseTarget(names=(self.source.name,))
        request = BackupRequest(target=target, append=append, into=self.uri, as_of=as_of, options=chosen)
        context = Context(settings=Settings(wait_for_writers=20))
        return run_backup(context, self.source.cluster, request, processes=False)

    def change(self, statement: str) -> Moment:
        """A transaction, and the source after it."""
        self.source.execute(f"BEGIN; {statement}; COMMIT")
        return self.look()

    def look(self) -> Moment:
        """The source now, and a moment later than its last commit."""
        time.sleep(0.01)
        ((lsn, at),) = self.source.execute("SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()")
        self.moments.append(Moment(Lsn.parse(lsn), at, rows_of(self.source)))
        time.sleep(0.01)
        return self.moments[-1]

    def request(self, target: TestDatabase, as_of: datetime | Lsn | None = None, **options: Any) -> RestoreRequest:
        """A restore of the whole database under another name."""
        chosen = RestoreOptions(new_db_name=target.name, **options)
        return RestoreRequest(target=DatabaseTarget(names=(self.source.name,)), collection=self.uri, as_of=as_of, options=chosen)

    def restored(self, as_of: datetime | Lsn | None = None, **options: Any) -> tuple[Rows, list[str]]:
        """The rows of a restore, and its notes."""
        target, notes = TestDatabase(self.source.server, f"{self.source.name}_r"), Notes()
        context = Context(progress=notes)
        try:
            run_restore(context, self.source.cluster, self.request(target, as_of, **options), processes=False)
            assert target.execute("SELECT to_regnamespace(%s)", [PROGRESS_SCHEMA]) == [(None,)]
            return rows_of(target), notes.notes
        finally:
            drop_database(self.source.server, target.name)


def rows_of(database: TestDatabase) -> Rows:
    """Every table's rows as PostgreSQL prints them, sorted."""
    with database.connect() as session:
        tables = session.execute("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        return {name: [row[0] for row in session.execute(f'SELECT t::text FROM "{name}" t ORDER BY 1')] for (name,) in tables}


def logged(rows: Rows) -> Rows:
    """The tables whose every change is in the log."""
    return {name: rows[name] for name in LOGGED}


@pytest.fixture
def chain(database: TestDatabase, tmp_path: Path) -> Chain:
    """The shop, with its full backup."""
    database.execute(SHOP)
    made = Chain(database, tmp_path / "c")
    made.back_up(None)
    made.look()
    return made


@pytest.fixture
def target(chain: Chain) -> Iterator[TestDatabase]:
    """The name of a database that does not exist yet."""
    made = TestDatabase(chain.source.server, f"{chain.source.name}_t")
    yield made
    drop_database(chain.source.server, made.name)


def test_every_layers_end_comes_back(chain: Chain) -> None:
    ends = [(chain.back_up(fingerprint=True), moment) for moment in map(chain.change, ROUNDS)]
    for manifest, moment in ends:
        for as_of in (manifest.end.time, manifest.end.lsn):
            rows, notes = chain.restored(as_of, strict=True, verify_fingerprint=True)
            assert rows == moment.rows
            assert notes == []
    assert chain.restored()[0] == ends[-1][1].rows


def test_any_time_and_position_inside_layers_with_revision_history_comes_back(chain: Chain) -> None:
    for number, statement in enumerate(ROUNDS):
        chain.change(statement)
        if number % 2:
            chain.back_up(revision_history=True)
    for moment in chain.moments:
        for as_of in (moment.time, moment.lsn):
            assert logged(chain.restored(as_of)[0]) == logged(moment.rows)


def test_inside_a_layer_what_is_read_is_of_before_and_said_so(chain: Chain) -> None:
    chain.change("SELECT nextval('numbers'); UPDATE item SET name = 'inner' WHERE id = 1")
    inner = chain.moments[-1]
    chain.change("INSERT INTO journal VALUES ('later'); SELECT nextval('numbers')")
    chain.back_up(revision_history=True)
    rows, notes = chain.restored(inner.lsn)
    assert rows == inner.rows, "the journal is that of the full backup"
    (note,) = notes
    assert "public.journal as of" in note
    assert f"sequences of {chain.source.name} as of" in note
    assert "schema" not in note, "no DDL came in between"
    with pytest.raises(Refused, match=r"strict takes nothing from elsewhere: public\.journal as of"):
        chain.restored(inner.lsn, strict=True)
    assert chain.restored(strict=True)[1] == []


def test_the_end_of_a_layer_that_ends_at_a_time(chain: Chain) -> None:
    due = chain.change(ROUNDS[0])
    chain.source.execute("CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)")
    later = chain.change("INSERT INTO journal VALUES ('later'); SELECT nextval('numbers'); DELETE FROM item WHERE id = 9")
    manifest = chain.back_up(as_of=due.time)
    assert manifest.end.time == due.time
    rows, (note,) = chain.restored(due.time)
    assert logged(rows) == logged(due.rows)
    assert (rows["journal"], rows["fresh"]) == (later.rows["journal"], later.rows["fresh"])
    read = f"public.fresh, public.journal as of {manifest.captured}; schema and sequences of {chain.source.name} as of"
    assert note.startswith(f"Not everything is as of {manifest.end}: {read}")


def test_between_a_commit_and_a_layers_end_what_the_log_does_not_tell_is_of_before(chain: Chain) -> None:
    first = chain.look()
    chain.change("UPDATE item SET name = 'inner' WHERE id = 1")
    last = chain.moments[-1]
    chain.change("INSERT INTO journal VALUES ('later')")
    chain.source.execute("ALTER TABLE part ADD COLUMN extra int")
    chain.back_up(revision_history=True)
    for moment in (first, last):
        rows, notes = chain.restored(moment.time, skip_unrestorable_tables=True)
        assert (rows["item"], rows["journal"]) == (moment.rows["item"], moment.rows["journal"])
        assert rows["part"] == [], "it may have had the column"
        assert "public.part (its columns or key changed meanwhile" in notes[0]
        assert "public.journal as of" in notes[1]


def test_tables_that_came_changed_or_went_inside_a_layer(chain: Chain, target: TestDatabase) -> None:
    chain.source.execute("CREATE TABLE going (id int PRIMARY KEY); INSERT INTO going VALUES (1)")
    before = chain.back_up()
    inner = chain.change("UPDATE item SET name = 'inner' WHERE id = 1")
    chain.source.execute("CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1); DROP TABLE going")
    end = chain.change("ALTER TABLE part ADD COLUMN extra int DEFAULT 5; UPDATE part SET extra = 6 WHERE item = 1")
    manifest = chain.back_up(revision_history=True)
    with pytest.raises(Refused) as refused:
        plan_restore(Context(), chain.source.cluster, chain.request(target, inner.lsn))
    assert f"public.going (gone afterwards; restorable up to {before.end})" in str(refused.value)
    assert f"public.part (its columns or key changed meanwhile; restorable from {manifest.end})" in str(refused.value)
    assert "public.fresh (restorable from" in str(refused.value)
    rows, notes = chain.restored(inner.lsn, skip_unrestorable_tables=True)
    assert rows["item"] == inner.rows["item"]
    assert (rows["part"], rows["fresh"]) == ([], [])
    assert "going" not in rows
    assert notes[0].startswith("Left out, because there are no rows as of")
    only_item = TableTarget(patterns=(TablePattern(name="item"),))
    with fresh_database(chain.source.server, "part") as other:
        options = RestoreOptions(into_db=other.name)
        request = RestoreRequest(target=only_item, collection=chain.uri, as_of=inner.lsn, options=options)
        run_restore(Context(), chain.source.cluster, request, processes=False)
        assert rows_of(other) == {"item": inner.rows["item"]}
    assert chain.restored()[0] == end.rows


def test_a_fingerprint_is_compared_only_where_it_stands(chain: Chain) -> None:
    inner = chain.change(ROUNDS[0])
    chain.change(ROUNDS[1])
    chain.back_up(revision_history=True, fingerprint=True)
    _, notes = chain.restored(inner.lsn, verify_fingerprint=True)
    (note,) = [note for note in notes if note.startswith("Not compared")]
    assert all(f"public.{name}" in note for name in LOGGED)


def test_data_files_that_moved_are_read_where_the_restore_says(chain: Chain, tmp_path: Path) -> None:
    moment = chain.change(ROUNDS[0])
    elsewhere = tmp_path / "elsewhere"
    chain.back_up(incremental_location=f"file://{elsewhere}")
    assert not list(chain.folder.rglob("000001/data/*.parquet"))
    assert chain.restored()[0] == moment.rows
    shutil.move(elsewhere, tmp_path / "moved")
    with pytest.raises(SpanvaultError):
        chain.restored()
    assert chain.restored(incremental_location=f"file://{tmp_path / 'moved'}")[0] == moment.rows


def begin(chain: Chain, request: RestoreRequest) -> None:
    """As a try that was killed after its first batch."""
    plan = plan_restore(Context(), chain.source.cluster, request)
    restore_schema(Context(), chain.source.cluster, plan.request)
    load_batch(Context(), chain.source.cluster, plan.request, 0)


def test_an_unfinished_restore_is_gone_on_with_when_a_newer_layer_is_there(chain: Chain, target: TestDatabase) -> None:
    moment = chain.change(ROUNDS[0])
    manifest = chain.back_up()
    request = chain.request(target, strict=True)
    begin(chain, request)
    chain.back_up(as_of=chain.change(ROUNDS[3]).time)
    with pytest.raises(Refused, match="strict takes nothing from elsewhere"):
        chain.restored(strict=True)
    pinned = plan_restore(Context(), chain.source.cluster, request).request
    assert pinned.as_of == manifest.end.lsn
    with pytest.raises(Refused, match=r"has no part 100: .* Run the whole RESTORE statement"):
        load_batch(Context(), chain.source.cluster, pinned, 99)
    notes = Notes()
    result = run_restore(Context(progress=notes), chain.source.cluster, request, processes=False)
    assert rows_of(target) == moment.rows
    assert notes.notes[0].startswith(f"An unfinished restore as of {manifest.end} is gone on with")
    assert result.dicts()[0]["rows"] == sum(map(len, moment.rows.values()))


def _run_and_die(cluster: Cluster, request: RestoreRequest, nth: int) -> None:
    faults = Faults()
    faults.add_fault("storage.read_chunks.after", key="*/data/*", nth=nth, action=KILL)
    context = Context(wrap=lambda storage: FaultyStorage(storage, faults), reached=faults.reach)
    run_restore(context, cluster, request, processes=False)


def test_a_killed_restore_reads_the_layers_that_it_began_with(chain: Chain, target: TestDatabase) -> None:
    for _ in range(3):
        chain.change("UPDATE item SET big = repeat(md5(big), 300), amount = amount + 1 WHERE id < 300")
        chain.back_up()
    for nth in (2, 6):
        arguments = (chain.source.cluster, chain.request(target), nth)
        process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    compact_backups(Context(), chain.uri, "LATEST", first=1, number=3)
    fresh = chain.request(TestDatabase(chain.source.server, "fresh"))
    assert plan_restore(Context(), chain.source.cluster, fresh).layers == ("0-0", "1-3")
    assert plan_restore(Context(), chain.source.cluster, chain.request(target)).layers == ("0-0", "1-1", "2-2", "3-3")
    run_restore(Context(), chain.source.cluster, chain.request(target), processes=False)
    assert rows_of(target) == chain.moments[-1].rows
    assert chain.restored()[0] == chain.moments[-1].rows, "from the compacted layer"


def test_an_unfinished_restore_whose_layers_are_gone_says_so(chain: Chain, target: TestDatabase) -> None:
    for _ in range(3):
        chain.change("UPDATE item SET big = repeat(md5(big), 300), amount = amount + 1 WHERE id < 300")
        chain.back_up()
    compact_backups(Context(), chain.uri, "LATEST", first=1, number=3)
    begin(chain, chain.request(target))
    (compacted,) = chain.folder.rglob("chain/000001-000003.json")
    compacted.unlink()
    with pytest.raises(Refused, match="reads the layer 1-3, which is gone; drop what it restored"):
        run_restore(Context(), chain.source.cluster, chain.request(target), processes=False)
    drop_database(chain.source.server, target.name)
    run_restore(Context(), chain.source.cluster, chain.request(target), processes=False)
    assert rows_of(target) == chain.moments[-1].rows


def test_a_dry_run_names_the_cut_and_the_layers(chain: Chain, target: TestDatabase) -> None:
    chain.change(ROUNDS[0])
    manifest = chain.back_up()
    notes = Notes()
    result = run_restore(Context(progress=notes), chain.source.cluster, chain.request(target), dry_run=True)
    assert notes.notes == [f"Would be restored as of {manifest.end}, from layers 0, 1 of {manifest.subdir}."]
    assert result.dicts()[0]["status"] == "planned"
    assert chain.source.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.name]) == []


def test_a_schema_alone_comes_back_from_any_cut(chain: Chain) -> None:
    inner = chain.change(ROUNDS[0])
    chain.source.execute("CREATE TABLE fresh (id int PRIMARY KEY)")
    chain.back_up(revision_history=True)
    rows, notes = chain.restored(inner.time, schema_only=True)
    assert set(rows) == {"item", "part", "journal", "twice", "fresh"}
    assert not any(rows.values())
    assert len(notes) == 1
    assert f"schema of {chain.source.name} as of" in notes[0]
