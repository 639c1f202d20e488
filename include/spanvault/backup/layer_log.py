"""From a window of the change log to the change files of one layer or of several that follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from spanvault.backup.captured import SchemaMoved
from spanvault.backup.change_files import ChangeFiles
from spanvault.backup.changelog import collector_paused
from spanvault.backup.clock_steps import CommitTimes
from spanvault.backup.layer_changes import LayerChanges
from spanvault.backup.shape_log import ShapeChain, ShapeLog
from spanvault.collection.commits import CommitsWriter
from spanvault.database.postgres.pgoutput import TableSink, commit_time, decode
from spanvault.database.postgres.pgoutput import Window as DecodedWindow
from spanvault.errors import BrokenChain
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Commit, DataFile, ObjectReference, Window
from spanvault.model.progress import Progress, Silent
from spanvault.model.schema import Table
from spanvault.storage.base import Storage

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass
class TableTotals:
    """What a layer's log did to a table: change rows, rows added less rows removed, whether a TRUNCATE came first."""

    changes: int = 0
    rows_added: int = 0
    truncated: bool = False
    files: list[DataFile] = field(default_factory=list)


@dataclass
class LayerPart:
    """One database's part of a layer that the log gives: `[start, end)`."""

    number: int
    start: Lsn
    end: Lsn
    tables: dict[int, TableTotals] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    commits: ObjectReference | None = None

    def leave_out(self, tables: Iterable[int]) -> None:
        """Forget what the log says of these tables: they are read instead."""
        for oid in tables:
            self.tables.pop(oid, None)

    def files(self) -> list[DataFile]:
        """The change files."""
        return [file for totals in self.tables.values() for file in totals.files]


@dataclass(frozen=True)
class LogPlace:
    """Where change files and lists of commits go, and what the log must say first. `latest` is the server's clock behind the
    window, `tolerant` says that no time inside matters (see CommitTimes). `tier` is the locality whose URI gets the change
    files. `unseen` are transactions that the catalogs were looked at without: none of them may be in the log."""

    data: Storage
    storage: Storage
    subdir: str
    database: str
    database_oid: int
    last_commit: Commit | None
    start_time: datetime
    revisions: bool
    max_clock_skew: timedelta
    latest: datetime | None = None
    tolerant: bool = False
    progress: Progress = field(default_factory=Silent)
    chunk_bytes: int = 128 << 20
    tier: str | None = None
    unseen: frozenset[int] = frozenset()


class LayerLog:
    """Reads a database's log and cuts it into layers at `ends`; a `pgoutput.TransactionSink`.

    What does not fit into `chunk_bytes` of memory is written as it comes: each table's changes of a layer are one or more
    segments. `parts` are the layers after `read`.
    """

    def __init__(self, place: LogPlace, first_number: int, start: Lsn, ends: Sequence[Lsn]) -> None:
        self._place = place
        starts = [start, *ends[:-1]]
        self.parts = [
            LayerPart(first_number + index, begin, end) for index, (begin, end) in enumerate(zip(starts, ends, strict=True))
        ]
        self._at = 0
        self._held_bytes = self._transactions = 0
        self._tables: dict[int, LayerChanges] = {}
        self._ddl_log: int | None = None
        self.shapes = ShapeLog({}, lambda oid, shape: None)
        self._files = self._change_files()
        self._times = CommitTimes(place.start_time, place.max_clock_skew, place.latest, start_lsn=start, tolerant=place.tolerant)
        self._commits: CommitsWriter | None = None
        self._commits_stack = ExitStack()
        self._pending: tuple[int, int, int] | None = None
        self._pending_is_local = True
        self._last_repeated: Commit | None = None
        self._transactions_before = 0
        self._first_time: datetime | None = None
        self._newest_time: datetime | None = None
        self._last: tuple[int, int, datetime] | None = None

    def track(self, known: Sequence[Table], table: Table, since: Lsn, told: Table | None = None) -> None:
        """Follow a table from `since` on; the changes of tables that are not followed are skipped. `told`: the shape that
        the DDL log begins with."""
        self._tables[table.oid] = LayerChanges(
            known, table, since, revisions=self._place.revisions, on_growth=self._grow, told=told
        )

    def follow_shapes(self, ddl_log: int, chains: Mapping[int, ShapeChain]) -> None:
        """Read the shapes of these tables, which are tracked, from the changes of the DDL log's table."""
        self._ddl_log = ddl_log
        self.shapes = ShapeLog(chains, lambda oid, shape: self._tables[oid].reshape(shape))

    @property
    def reshaped(self) -> set[int]:
        """The tables whose columns the log could not tell."""
        return {oid for oid, changes in self._tables.items() if changes.reshaped} | self.shapes.broken

    def read(self, messages: Iterable[bytes]) -> None:
        """Decode it all and write it out. Raises BrokenChain when the log is not the one that the last layer was made of."""
        sinks: dict[int, TableSink] = dict(self._tables)
        if self._ddl_log is not None:
            sinks[self._ddl_log] = self.shapes
        with collector_paused(), self._commits_stack:
            self._open_commits()
            decode(self._flushing(messages), sinks, self.parts[0].start, self.parts[-1].end, DecodedWindow(), self)
            self._settle()
            while True:
                self._end_part()
                if self._at + 1 == len(self.parts):
                    return
                self._next_part()

    def begin(self, lsn: int, xid: int, time: int) -> None:
        """A transaction: perhaps the first of the next layer."""
        if xid in self._place.unseen:
            raise SchemaMoved(f"The transaction {xid} had committed, and its end was not visible yet.")
        self._settle()
        while lsn >= self.parts[self._at].end:
            self._end_part()
            self._next_part()
        self._pending = (lsn, xid, time)
        self._pending_is_local = True

    def origin(self) -> None:
        """The time of the transaction that just began is another server's."""
        self._pending_is_local = False

    def repeated(self, lsn: int, xid: int, time: int) -> None:
        """The slot lags behind the last layer, after a crash of the server."""
        self._last_repeated = Commit(lsn=Lsn(lsn), xid=xid, time=commit_time(time))

    def _settle(self) -> None:
        """Note the transaction that began last, now that its origin is known."""
        if self._pending is None:
            return
        if self._transactions == 0:
            self._check_repeats()
        lsn, xid, time = self._pending
        self._pending = None
        self._transactions += 1
        stamp = commit_time(time)
        moment = self._times.local(lsn, stamp) if self._pending_is_local else self._times.foreign()
        self._first_time = moment if self._first_time is None else min(self._first_time, moment)
        self._newest_time = moment if self._newest_time is None else max(self._newest_time, moment)
        self._last = (lsn, xid, stamp)
        if self._commits is not None:
            self._commits.add(lsn, xid, (moment - _UNIX_EPOCH) // _MICROSECOND)

    def _check_repeats(self) -> None:
        """What the slot repeats must end with the last commit that is on storage; else the source went back in time, and
        what is in the log since then is not what follows."""
        expected, repeated = self._place.last_commit, self._last_repeated
        if repeated is not None and expected is not None and repeated != expected:
            raise BrokenChain(
                f"The source was rolled back to an older state: its log has the transaction {repeated.xid} at {repeated.lsn},"
                f" where the last backup saw {expected.xid} at {expected.lsn}. The chain ends here; take a new full backup."
            )

    def _flushing(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        for message in messages:
            if self._held_bytes > self._place.chunk_bytes:
                self._flush()
            yield message

    def _grow(self, size: int) -> None:
        self._held_bytes += size

    def _flush(self) -> None:
        """End every table's segment."""
        part = self.parts[self._at]
        for oid, changes in self._tables.items():
            if not changes.pending:
                continue
            totals = part.tables.setdefault(oid, TableTotals())
            if changes.voids_earlier_segments:
                totals.files.clear()
            totals.files.append(self._files.write(changes.table, list(changes.take())))
            self._place.progress.advance(rows=totals.files[-1].rows, bytes_=totals.files[-1].bytes)
        self._held_bytes = 0

    def _end_part(self) -> None:
        self._flush()
        part = self.parts[self._at]
        for oid, changes in self._tables.items():
            if changes.changes:
                totals = part.tables.setdefault(oid, TableTotals())
                totals.changes, totals.rows_added, totals.truncated = changes.changes, changes.rows_added, changes.truncated
                changes.changes, changes.rows_added, changes.truncated = 0, 0, False
        last = self._last
        part.window = Window(
            transactions=self._transactions - self._transactions_before,
            changes=sum(totals.changes for totals in part.tables.values()),
            first_time=self._first_time,
            newest_time=self._newest_time,
            last_commit=Commit(lsn=Lsn(last[0]), xid=last[1], time=last[2]) if last else None,
        )
        self._transactions_before = self._transactions
        self._first_time = self._newest_time = self._last = None
        if self._commits is not None:
            self._commits_stack.close()
            part.commits = self._commits.reference

    def _next_part(self) -> None:
        self._at += 1
        self._files = self._change_files()
        self._open_commits()

    def _change_files(self) -> ChangeFiles:
        place = self._place
        return ChangeFiles(place.data, place.subdir, self.parts[self._at].number, place.database, place.tier)

    def _open_commits(self) -> None:
        place = self._place
        if place.revisions:
            writer = CommitsWriter(place.storage, place.subdir, self.parts[self._at].number, place.database_oid)
            self._commits = self._commits_stack.enter_context(writer)
