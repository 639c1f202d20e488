"""One database's part of the seal of a full backup: which tables the change log can heal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta

from spanvault.backup.captured import CapturedDatabase, capture_schema, snapshot_of
from spanvault.backup.changelog import ChangeLog, files_of
from spanvault.backup.changes import TableChanges
from spanvault.backup.context import Run
from spanvault.backup.exact import read_exactly
from spanvault.backup.layer_log import LayerPart
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.pgoutput import Window as DecodedWindow
from spanvault.database.postgres.pgoutput import commit_time, microseconds_of
from spanvault.database.postgres.protect import changed_tables
from spanvault.database.postgres.server import server_time
from spanvault.database.postgres.snapshot import SealSnapshot
from spanvault.errors import StateUnknown
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Commit, DataFile, PlannedDatabase, Receipt, Window
from spanvault.model.schema import Table

_FIRST_USER_OID = 16384  # FirstNormalObjectId: types above it are made by users or extensions


class DatabaseSeal(CapturedDatabase):
    """What the seal of a full knows of one database. `distrusted` are the OIDs of tables whose log has a hole."""

    def __init__(self, run: Run, planned: PlannedDatabase, snapshot: SealSnapshot, receipts: Mapping[str, Receipt]) -> None:
        super().__init__(run, planned, snapshot, run.read_first)
        self.distrusted: set[int] = set()
        self.followed: LayerPart | None = None
        self.followed_window: DecodedWindow | None = None
        self.changes = ChangeLog(run.storage, run.plan.subdir, run.plan.number, self.name, tier=run.tier)
        self._types_moved = self.types_version != planned.types_version
        self._receipts = self._by_table(run, receipts)
        self._log_tables = [table for table in self.tables if self._healable(table)]
        self.changes.track(self._log_tables)

    def _by_table(self, run: Run, receipts: Mapping[str, Receipt]) -> dict[int, list[Receipt | None]]:
        """Each planned table's receipts, None for a span without one."""
        found: dict[int, list[Receipt | None]] = {}
        for batch in run.plan.batches:
            for span in batch.spans:
                if span.database == self.name:
                    found.setdefault(span.table_oid, []).append(receipts.get(span.id))
        return found

    def _healable(self, table: Table) -> bool:
        """Whether the table's slices and log fit together: planned, of one shape from the plan to the cut.

        Raises StateUnknown if the shape stayed and yet a slice is missing: the export has not ended.
        """
        planned = self.planned.database.table(table.oid)
        if planned is None or table.capture != "log" or planned.capture != "log" or table.oid in self.read_first:
            return False
        if planned.fingerprint() != table.fingerprint() or (self._types_moved and has_user_types(table)):
            return False
        receipts = self._receipts.get(table.oid, [])
        if not receipts or None in receipts:
            raise StateUnknown(f"Not all slices of {self.name}.{table.qualified} are exported; export them before the seal.")
        return all(receipt is not None and receipt.table_fingerprint == table.fingerprint() for receipt in receipts)

    def exact_tables(self) -> list[Table]:
        """The tables that no log heals, known before it is read."""
        log = {table.oid for table in self._log_tables}
        return [table for table in self.readable_tables() if table.oid not in log | self.exact.keys()]

    def unhealed_tables(self) -> list[Table]:
        """The tables that the log turned out not to heal.

        All slices and the cut must show one file of the table: VACUUM FULL, CLUSTER and rewrites move rows without a
        change in the log. Only a TRUNCATE that the log holds explains another file, as it voids the slices anyway.
        """
        found = []
        for table in self._log_tables:
            changes = self.changes.tables[table.oid]
            files = {receipt.filenode for receipt in self._receipts[table.oid] if receipt} | {table.filenode}
            moved = len(files) > 1 and not changes.truncated
            if changes.shape_changed or table.oid in self.distrusted or moved:
                found.append(table)
        return found

    def distrust(self, endpoint: Endpoint) -> None:
        """Note the tables that left the publication meanwhile. Called after the log was read, so nothing slips between."""
        with connect(endpoint, self.name, purpose="seal") as connection:
            changed = changed_tables(connection, self.planned.protection)
        self.distrusted = {table.oid for table in self._log_tables} if changed is None else changed

    def healed(self) -> Iterator[TableChanges]:
        """The change side of every table that the log heals."""
        return (changes for oid, changes in self.changes.tables.items() if oid not in self.exact)

    def files(self) -> list[DataFile]:
        """The data files that count, in no particular order."""
        log = {oid: changes for oid, changes in self.changes.tables.items() if oid not in self.exact}
        base = [
            receipt.file for oid, changes in log.items() if not changes.truncated for receipt in self._receipts[oid] if receipt
        ]
        return base + files_of(log) + self.exact_files + (self.followed.files() if self.followed else [])

    def window(self) -> Window:
        """What the log of the export came to."""
        own = self.changes.window
        later = self.followed_window
        last = (later.last_commit if later else None) or own.last_commit
        return Window(
            transactions=own.transactions,
            changes=own.changes,
            newest_time=self._newest_time(),
            last_commit=Commit(lsn=Lsn(last[0]), xid=last[1], time=commit_time(last[2])) if last else None,
        )

    def newest_commit(self) -> datetime:
        """The time stamp of the newest commit before the cut, as far as the clock of now can have written it; the snapshot's
        time if there was none."""
        return self._newest_time() or self.snapshot.time

    def _newest_time(self) -> datetime | None:
        windows = (self.changes.window, self.followed_window)
        newest = max(window.newest_time for window in windows if window is not None)
        return commit_time(newest) if newest else None

    def latest_time(self, max_skew: timedelta) -> int:
        """The latest stamp that is believed of a commit of up to now, as a Begin message has it: a clock that was ahead by
        more than `max_skew` must not say when the backup is of."""
        return microseconds_of(server_time(self.snapshot.holder)) + max_skew // timedelta(microseconds=1)


@contextmanager
def open_database_seal(run: Run, planned: PlannedDatabase, receipts: Mapping[str, Receipt]) -> Iterator[DatabaseSeal]:
    """A snapshot of the database at a known position, its schema stored, catalogs unchanged in between.

    Raises SchemaMoved when they changed.
    """
    with snapshot_of(run, planned) as snapshot:
        entry = DatabaseSeal(run, planned, snapshot, receipts)
        read_exactly(run, entry, entry.first_tables())
        capture_schema(run, entry)
        yield entry


def has_user_types(table: Table) -> bool:
    """Whether the text of the table's values depends on types that users can alter."""
    return any(column.type_oid >= _FIRST_USER_OID or re.fullmatch(r"_?record", column.base_type) for column in table.columns)
