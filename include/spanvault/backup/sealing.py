"""One database's part of a seal: its snapshot, what was read under it, and which tables the log can heal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from spanvault.backup.changelog import ChangeLog, files_of
from spanvault.backup.changes import TableChanges
from spanvault.backup.context import Run
from spanvault.backup.plan import select_tables
from spanvault.collection.layout import object_key, schema_dump_path
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.catalog import (
    Query,
    omissions,
    read_database,
    read_sequences,
    read_tables,
    read_views,
    types_version,
)
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.dump import dump_schema
from spanvault.database.postgres.fingerprint import catalog_fingerprint
from spanvault.database.postgres.pgoutput import commit_time
from spanvault.database.postgres.protect import changed_tables
from spanvault.database.postgres.server import Connection
from spanvault.database.postgres.snapshot import SealSnapshot, snapshot_at_known_lsn
from spanvault.errors import Retryable, StateUnknown
from spanvault.model.manifest import DataFile, ObjectReference, PlannedDatabase, Receipt, View
from spanvault.model.schema import Database, Fingerprint, SequenceValue, Table

_FIRST_USER_OID = 16384  # FirstNormalObjectId: types above it are made by users or extensions


class SchemaMoved(Retryable):
    """The catalogs changed while the schema was read."""


class DatabaseSeal:
    """What the seal knows of one database. `exact` holds the tables that were read under the snapshot, by OID;
    `distrusted` the OIDs of tables whose log has a hole."""

    def __init__(self, run: Run, planned: PlannedDatabase, snapshot: SealSnapshot, receipts: Mapping[str, Receipt]) -> None:
        self.planned = planned
        self.snapshot = snapshot
        self.name = snapshot.database
        self.exact: dict[int, Table] = {}
        self.exact_files: list[DataFile] = []
        self.distrusted: set[int] = set()
        self.fingerprints: dict[int, Fingerprint] = {}
        self.sequences: tuple[SequenceValue, ...] = ()
        self.changes = ChangeLog(run.storage, run.plan.subdir, run.plan.number, self.name)
        query = query_of(snapshot.holder)
        target, connected = run.plan.request.target, run.cluster.primary.database
        known = {table.oid for table in planned.database.tables}
        tables = read_tables(query)
        named = {table.oid for table in select_tables(target, self.name, connected, tables)}
        self._types_moved = types_version(query) != planned.types_version
        self._tables = tuple(table for table in tables if table.oid in named | known)
        self._properties = read_database(query)
        self.views: tuple[View, ...] = read_views(query)
        self.omitted: tuple[str, ...] = omissions(query)
        self.catalogs = catalog_fingerprint(query)
        self._receipts = self._by_table(run, receipts)
        self._log_tables = [table for table in self._tables if self._healable(table)]
        self.changes.track(self._log_tables)
        self.schema_dump: ObjectReference

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
        if planned is None or table.capture != "log" or planned.capture != "log":
            return False
        if planned.fingerprint() != table.fingerprint() or (self._types_moved and _has_user_types(table)):
            return False
        receipts = self._receipts.get(table.oid, [])
        if not receipts or None in receipts:
            raise StateUnknown(f"Not all slices of {self.name}.{table.qualified} are exported; export them before the seal.")
        return all(receipt is not None and receipt.table_fingerprint == table.fingerprint() for receipt in receipts)

    def exact_tables(self) -> list[Table]:
        """The tables that no log heals, known before it is read."""
        log = {table.oid for table in self._log_tables}
        return [table for table in self._tables if table.capture != "none" and table.oid not in log]

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

    def add_exact(self, table: Table, files: Iterable[DataFile]) -> None:
        """The table was read under the snapshot: its slices and its log count no more."""
        self.exact[table.oid] = table
        self.exact_files += files

    def files(self) -> list[DataFile]:
        """The data files that count, in no particular order."""
        log = {oid: changes for oid, changes in self.changes.tables.items() if oid not in self.exact}
        base = [
            receipt.file for oid, changes in log.items() if not changes.truncated for receipt in self._receipts[oid] if receipt
        ]
        return base + files_of(log) + self.exact_files

    @property
    def database(self) -> Database:
        """The database at the cut; `capture` says how each table's rows really came."""
        tables = tuple(
            table.model_copy(update={"capture": "exact"}) if table.oid in self.exact else table for table in self._tables
        )
        return self._properties.model_copy(update={"tables": tables})

    def newest_commit(self) -> datetime:
        """The time stamp of the window's newest commit; the snapshot's time if there was none."""
        newest = self.changes.window.newest_time
        return commit_time(newest) if newest else self.snapshot.time

    def read_sequences(self, endpoint: Endpoint) -> None:
        """Read the sequences as they are now; those dropped meanwhile keep what was read before."""
        with connect(endpoint, self.name, purpose="seal") as connection:
            present = read_sequences(query_of(connection))
        values = {(value.schema_name, value.name): value for value in (*self.sequences, *present)}
        self.sequences = tuple(values[key] for key in sorted(values))

    def check_catalogs(self, endpoint: Endpoint) -> None:
        """Raise SchemaMoved if any DDL committed since the snapshot."""
        with connect(endpoint, self.name, purpose="seal") as connection:
            present = catalog_fingerprint(query_of(connection))
        if present != self.catalogs:
            raise SchemaMoved(f"The schema of database {self.name!r} changed while it was read.")

    def readable_tables(self) -> list[Table]:
        """The tables whose rows belong to the backup."""
        return [table for table in self._tables if table.capture != "none"]


@contextmanager
def open_database_seal(run: Run, planned: PlannedDatabase, receipts: Mapping[str, Receipt]) -> Iterator[DatabaseSeal]:
    """A snapshot of the database at a known position, its schema stored, catalogs unchanged in between.

    Raises SchemaMoved when DDL got in between: pg_dump prints definitions from the live catalogs, so that a dump
    across DDL silently mixes old and new.
    """
    endpoint, name = run.cluster.primary, planned.database.name
    run.progress.step(f"fix the cut of {name}")
    with snapshot_at_known_lsn(endpoint, name, run.wait_seconds) as snapshot:
        entry = DatabaseSeal(run, planned, snapshot, receipts)
        run.reached("seal.before_schema")
        path = schema_dump_path(run.plan.number, planned.database.oid)
        key = object_key(run.plan.subdir, path)
        entry.schema_dump = dump_schema(endpoint, name, snapshot.name, run.storage, key, path)
        run.reached("seal.after_schema")
        entry.read_sequences(endpoint)
        entry.check_catalogs(endpoint)
        yield entry


def query_of(connection: Connection) -> Query:
    """A psycopg session as the catalogs' query function."""
    return lambda text: connection.execute(text.encode()).fetchall()


def _has_user_types(table: Table) -> bool:
    return any(column.type_oid >= _FIRST_USER_OID or re.fullmatch(r"_?record", column.base_type) for column in table.columns)
