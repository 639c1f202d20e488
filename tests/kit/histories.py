"""A random history of one database and its backups, and what the backups hold of it against PostgreSQL's own recovery."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from spanvault.backup import layer_seal, sealing
from spanvault.backup.changelog import ChangeLog
from spanvault.backup.layer_log import LogPlace
from spanvault.collection.chain import Resolved, original_layers
from spanvault.collection.commits import read_commits
from spanvault.collection.lookup import complete_subdirs
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import qualified, quote
from spanvault.database.postgres.window import UndecodableLog
from spanvault.engine.maintenance import compact_backups
from spanvault.errors import AlreadyCovered, BrokenChain, Busy, Refused, Retryable, SpanvaultError
from spanvault.merge.table import table_at
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Commit, Manifest
from spanvault.model.request import BackupOptions
from spanvault.model.schema import Table
from spanvault.restore.origin import AtCut
from spanvault.restore.sources import table_histories
from tests.kit.faults import Killed
from tests.kit.harness import Backup
from tests.kit.pitr import Recovery
from tests.kit.servers import TestDatabase
from tests.kit.writers import Writers, fill

POINTS = (
    "plan.after_plan",
    "export.after_data",
    "export.after_receipt",
    "export.all",
    "seal.after_snapshot",
    "seal.before_schema",
    "seal.after_schema",
    "seal.after_window",
    "seal.before_record",
    "commit.after_manifest",
    "protection.after_advance",
)


@dataclass(frozen=True)
class Held:
    """What the backups hold of the tables at one cut: `rows` are digests of rows by (table OID, attnums). A `moment` was
    asked for, or else the position itself; `commits` are those around that the layer lists."""

    position: Lsn
    label: str
    rows: dict[int, tuple[Table, list[str]]]
    tables: frozenset[int]
    moment: datetime | None = None
    commits: tuple[Commit, ...] = ()
    whole: bool = False


@dataclass
class History:
    """A database that is written to while backups of it are taken, killed and merged; then the backups are compared.

    `log` tells what happened, for the message of a failure; `happened` counts its events. `pause` is how long each writer
    rests between transactions (s, on average): the slower the machine, the more is written beside a backup, which takes the
    longer for it.
    """

    database: TestDatabase
    recovery: Recovery
    folder: Path
    seed: int
    crash: Callable[[], None] | None = None
    pause: float = 0.015
    log: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    left_out: int = 0
    ends: dict[tuple[str, int], datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.writers = Writers(self.database, self.seed, pause=self.pause)
        self.backup = Backup(self.database, self.folder, options=BackupOptions(span_bytes=96 << 10, workers=1))

    def run(self, steps: int) -> None:
        """Write and back up."""
        fill(self.database)
        self.recovery.take_base()
        with self.writers:
            self._step("full", self.backup.take)
            for _ in range(steps):
                self.writers.pause_for(self.chance.uniform(0.1, 0.4))
                for _ in range(self.chance.choice([0, 0, 1, 1, 2])):
                    self.writers.reshape(self.chance)
                self._random_step()
            self._step("incremental", self.backup.increment)
        assert not self.writers.failures, self.writers.failures
        assert self.writers.done > 20, "the writers hardly wrote, so the test shows nothing"
        self.happened.update({"change": self.writers.done, "DDL": len(self.writers.reshaped)})
        self.recovery.finish_log()

    def _note(self, text: str) -> None:
        self.log.append(f"{datetime.now(UTC):%H:%M:%S.%f} {text}")

    def _random_step(self) -> None:
        history = self.chance.random() < 0.6
        kind = self.chance.choices(
            ["incremental", "due", "full", "compact", "beside", "crash"], [50, 15, 8, 12, 8, 5 if self.crash else 0]
        )[0]
        if kind == "full":
            self._step("full", self.backup.take)
        elif kind == "compact":
            self._compact()
        elif kind == "crash" and self.crash is not None:
            self._note("crash of the server")
            self.happened["crash"] += 1
            self.crash()
        elif kind == "beside":
            point = self.chance.choice(POINTS)
            self._step(
                f"incremental, another at {point}",
                partial(self.backup.increment, revision_history=history),
                {point: self._beside},
            )
        else:
            as_of = None
            if kind == "due":
                back = self.chance.uniform(0, 0.4)
                as_of = datetime.now(UTC) - timedelta(seconds=back)
            what = f"{kind}{' with revision history' if history else ''} {as_of or ''}"
            self._step(what, partial(self.backup.increment, as_of=as_of, revision_history=history))

    def _beside(self) -> None:
        other = Backup(self.database, self.folder, options=self.backup.options)
        try:
            manifest = other.increment(revision_history=self.chance.random() < 0.5)
            self._note(f"  beside: layer {manifest.number} of {manifest.subdir}")
        except (SpanvaultError, UndecodableLog) as error:
            self._note(f"  beside: {error!r}")

    def _step(self, what: str, call: Callable[[], Manifest], at: dict[str, Callable[[], object]] | None = None) -> None:
        hooks = dict(at or {})
        if not hooks and self.chance.random() < 0.35:
            point = self.chance.choice(POINTS)
            hooks[point] = _kill
            what += f", killed at {point}"
        elif not hooks and self.chance.random() < 0.3:
            point = self.chance.choice(POINTS)
            hooks[point] = partial(self.writers.reshape, self.chance)
            what += f", DDL at {point}"
        beside_writer = what.startswith(("incremental", "due")) and self.chance.random() < 0.3
        self._note(f"{what}{', beside a writer that stays open' if beside_writer else ''}")
        with self._chunks():
            for _ in range(8):
                self.backup.at, self.backup.visits = hooks, {}
                hooks = {}
                try:
                    with self._open_writer() if beside_writer else nullcontext():
                        beside_writer = False
                        manifest = call()
                    self._note(f"  layer {manifest.number} of {manifest.subdir} up to {manifest.end}")
                    return
                except Killed:
                    self.happened["kill"] += 1
                    if len(self.log) > 1 and self.chance.random() < 0.3:
                        self._note("  not tried again")
                        return
                except (AlreadyCovered, BrokenChain, Refused, Busy, Retryable, UndecodableLog) as error:
                    self._note(f"  {error!r}")
                    if isinstance(error, AlreadyCovered):
                        return
                    if not isinstance(error, Retryable):
                        call = self.backup.take

    @contextmanager
    def _open_writer(self) -> Iterator[None]:
        """A transaction that does not end while a layer is made, and holds no lock that anybody waits for."""
        patience, self.backup.wait = self.backup.wait, 0.3
        try:
            with self.database.connect(autocommit=False) as writer:
                writer.execute("select pg_logical_emit_message(true, 'test', 'open')")
                yield
        finally:
            self.backup.wait = patience

    @contextmanager
    def _chunks(self) -> Iterator[None]:
        """Memory for few changes, so that one layer has many segments."""
        with ExitStack() as stack:
            if self.chance.random() < 0.5:
                size = self.chance.choice([200_000, 800_000])
                stack.enter_context(mock.patch.object(layer_seal, "LogPlace", partial(LogPlace, chunk_bytes=size)))
                stack.enter_context(mock.patch.object(sealing, "ChangeLog", partial(ChangeLog, chunk_bytes=size)))
            yield

    def _compact(self) -> None:
        layers = self._originals(self.chance.choice(list(complete_subdirs(self.backup.storage))))
        last = layers[-1].number
        if last < 1:
            return
        first = self.chance.randint(0, last - 1)
        number = self.chance.randint(first + 1, last)
        self._note(f"compact {first} to {number} of {layers[0].subdir}")
        compact_backups(self.backup.context, self.backup.uri, layers[0].subdir, first=first, number=number)
        self.happened["compaction"] += 1

    def _originals(self, subdir: str) -> list[Manifest]:
        return [
            layer.manifest for layer in original_layers(self.backup.storage, subdir, open_location=self.backup.context.storage)
        ]

    def compare(self, count: int, tables: int = 100) -> None:
        """Compare `count` random cuts, of each at most that many random `tables`; raises AssertionError with the history for
        the first that is wrong."""
        chains = {subdir: self._originals(subdir) for subdir in complete_subdirs(self.backup.storage)}
        wanted = [choice for subdir, layers in chains.items() for choice in self._choices(subdir, layers)]
        held = [self._held(chains, tables, *choice) for choice in self.chance.sample(wanted, min(count, len(wanted)))]
        for one in sorted(held, key=lambda one: (one.position, one.moment is not None)):
            self._compare(one)

    def _choices(self, subdir: str, layers: list[Manifest]) -> Iterator[tuple[str, Manifest, datetime | Lsn]]:
        for layer in layers:
            yield subdir, layer, layer.end.lsn
            if layer.due is not None:
                yield subdir, layer, layer.due
            if layer.number and layer.revision_history:
                commits = self._commits(layer)
                for _ in range(2):
                    if layer.end.lsn > layer.start.lsn + 1:
                        yield subdir, layer, Lsn(self.chance.randint(layer.start.lsn + 1, layer.end.lsn - 1))
                    if commits:
                        yield subdir, layer, self.chance.choice(commits).lsn
                        stamp = self.chance.choice(commits).time
                        yield subdir, layer, stamp - timedelta(microseconds=self.chance.choice([0, 0, 1, 500]))

    def _commits(self, layer: Manifest) -> tuple[Commit, ...]:
        reference = layer.databases[0].commits
        return () if reference is None else tuple(read_commits(self.backup.storage, layer.subdir, reference))

    def _held(self, chains: dict[str, list[Manifest]], tables: int, subdir: str, layer: Manifest, as_of: datetime | Lsn) -> Held:
        resolved = self.backup.resolved(subdir, as_of)
        at_cut = AtCut(resolved)
        label = f"{as_of} in layer {layer.number} of {subdir}, read from {self._cover(resolved)}"
        self._check_left_out(chains[subdir], resolved, at_cut, label)
        exact = {key: origin for key, origin in at_cut.origins.items() if origin.as_of == resolved.cut.lsn}
        chosen = self.chance.sample(sorted(exact), min(tables, len(exact)))
        histories = table_histories(self.backup.storage, resolved, {key: exact[key] for key in chosen})
        rows = {}
        with connect(self.database.endpoint, purpose="test") as session:
            for (_, oid), history in histories.items():
                columns = history.table.data_columns
                session.execute("DROP TABLE IF EXISTS pg_temp.held")
                session.execute(
                    f"CREATE TEMP TABLE held ({', '.join(f'{quote(c.name)} {c.type_name}' for c in columns)})".encode()
                )
                copy_batches(session, "pg_temp.held", columns, table_at(history, None))
                rows[oid] = (history.table, _digests(session, "pg_temp.held", [c.name for c in columns]))
        return Held(
            position=resolved.cut.lsn,
            label=label,
            rows=rows,
            tables=frozenset(oid for _, oid in (*at_cut.origins, *at_cut.missing)),
            moment=as_of if isinstance(as_of, datetime) else None,
            commits=self._commits(resolved.manifest if resolved.inner else layer),
            whole=not resolved.inner and layer.due is None,
        )

    def _cover(self, resolved: Resolved) -> str:
        return " ".join(f"{layer.manifest.first}-{layer.manifest.number}" for layer in resolved.layers)

    def _check_left_out(self, layers: list[Manifest], resolved: Resolved, at_cut: AtCut, label: str) -> None:
        """Only what the log does not tell may lack rows: tables that DDL touched around the layer, that are new to it, or
        whose changes are not logged."""
        number = resolved.manifest.number
        before = layers[max(0, number - 1)]
        since = (before.start.time if number else before.end.time).timestamp() - 1
        until = layers[number].committed_at.timestamp() + 1
        touched = {name.partition(":")[0] for began, ended, name in self.writers.reshaped if ended >= since and began <= until}
        known = {table.name for table in before.databases[0].database.tables}
        for missing in at_cut.missing.values():
            self.left_out += 1
            name = missing.name
            reasons = (
                name in touched or (name.startswith("parts_") and "parts" in touched),
                name == "keyless",
                name not in known,
                name.startswith("c"),  # tables that the writers made, and alter right after
                "put off" in missing.why,  # beside a writer that stayed open
            )
            assert any(reasons), self._story(f"{label}: {missing} is left out, and nothing happened to it")

    def _compare(self, held: Held) -> None:
        if held.moment is not None:
            server = self.recovery.at_time(held.moment)
            reached = self.recovery.replayed()
            assert reached <= held.position, self._story(f"{held.label}: PostgreSQL goes on to {reached}, beyond {held.position}")
            between = [commit for commit in held.commits if reached <= commit.lsn < held.position]
            if between:  # a transaction that is not in the log of changes came first, with a later stamp
                assert all(commit.time <= held.moment for commit in between), self._story(held.label)
                server = self.recovery.at_position(held.position)
        else:
            server = self.recovery.at_position(held.position)
        with psycopg.connect(server.url(self.database.name), autocommit=True) as session:
            for table, rows in held.rows.values():
                self._compare_table(session, held, table, rows)
            if held.whole:
                there = {row[0] for row in session.execute(_USER_TABLES)}
                assert there <= held.tables, self._story(f"{held.label}: lacks the tables {there - held.tables}")

    def _compare_table(self, session: psycopg.Connection[Any], held: Held, table: Table, rows: list[str]) -> None:
        label = f"{held.label}: {table.qualified} ({table.capture})"
        found = session.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = %s",
            (table.oid,),
        ).fetchone()
        assert found is not None, self._story(f"{label} was not there")
        names = dict(
            session.execute(
                "SELECT attnum, attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped", (table.oid,)
            ).fetchall()
        )
        columns = [column.attnum for column in table.data_columns]
        if not set(columns) <= names.keys():
            assert not held.whole, self._story(f"{label} has columns that were not there")
            return  # the schema is from later, and so is the column
        there = _digests(session, qualified(*found), [names[attnum] for attnum in columns])
        self.compared += 1
        if there != rows:
            more, less = set(rows) - set(there), set(there) - set(rows)
            raise AssertionError(
                self._story(f"{label}: {len(rows)} rows held, {len(there)} right; {len(more)} wrong, {len(less)} lacking")
            )

    def _story(self, what: str) -> str:
        ddl = [f"{datetime.fromtimestamp(ended, UTC):%H:%M:%S.%f} {name}" for _, ended, name in self.writers.reshaped]
        return "\n".join([f"seed {self.seed}: {what}", *self.log, f"DDL: {ddl}"])


_USER_TABLES = (
    "SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE relkind = 'r' AND relpersistence = 'p' AND nspname = 'public'"
)


def _digests(session: psycopg.Connection[Any], table: str, columns: list[str]) -> list[str]:
    """Digests of the rows' text, sorted."""
    row = f"ROW({', '.join(map(quote, columns))})::text"
    query = f"SELECT md5({row}) || ' ' || left({row}, 40) FROM ONLY {table} ORDER BY 1"
    return [found[0] for found in session.execute(query.encode())]


def _kill() -> None:
    raise Killed
