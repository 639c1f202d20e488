"""One database at a seal's snapshot: its schema, stored, and what was read under the snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from spanvault.backup.context import Run
from spanvault.backup.exclusion import phrases, with_exclusions
from spanvault.backup.plan import select_tables, takes_whole
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
from spanvault.database.postgres.publication import as_published, publishable
from spanvault.database.postgres.server import Connection, open_transactions
from spanvault.database.postgres.snapshot import SealSnapshot, WritersOpen, limit_lock_waits, snapshot_at_known_lsn
from spanvault.errors import Retryable
from spanvault.model.manifest import DataFile, ManifestDatabase, ManifestTable, ObjectReference, PlannedDatabase, View
from spanvault.model.schema import Database, Fingerprint, SequenceValue, Table
from spanvault.model.sentences import few

_SHOWN = 20  # names in a sentence


class SchemaMoved(Retryable):
    """The catalogs changed while the schema was read."""


class CapturedDatabase:
    """A database under a snapshot. `tables` are those that the backup is of; `exact` holds the tables that were read
    under the snapshot, by OID. `read_first` are the OIDs of those that an earlier try could not read any more. `unseen`
    are the transactions that had not ended when the catalogs were looked at again, `unpublished` the tables that the log
    would tell if the role could publish them."""

    def __init__(
        self, run: Run, planned: PlannedDatabase, snapshot: SealSnapshot, read_first: Iterable[tuple[str, int]] = ()
    ) -> None:
        self.planned = planned
        self.snapshot = snapshot
        self.name = snapshot.database
        self.read_first = frozenset(oid for database, oid in read_first if database == self.name)
        self.exact: dict[int, Table] = {}
        self.exact_files: list[DataFile] = []
        self.fingerprints: dict[int, Fingerprint] = {}
        self.sequences: tuple[SequenceValue, ...] = ()
        self.unseen: frozenset[int] = frozenset()
        self._wait_seconds = run.wait_seconds
        query = query_of(snapshot.holder)
        target, connected = run.plan.request.target, run.cluster.primary.database
        known = {table.oid for table in planned.database.tables}
        tables = read_tables(query)
        named = {table.oid for table in select_tables(target, self.name, connected, tables)}
        self.types_version = types_version(query)
        own = (table for table in tables if table.oid in named | known)
        found = with_exclusions(query, run.cluster, self.name, own)
        self.tables = as_published(found, planned.protection, publishable(snapshot.holder, found))
        self.unpublished = [one.qualified for one, table in zip(self.tables, found, strict=True) if one != table]
        self.views: tuple[View, ...] = read_views(query)
        self.omitted: tuple[str, ...] = (*omissions(query, whole=takes_whole(target)), *phrases(self.tables))
        self.catalogs = catalog_fingerprint(query)
        self.schema_dump: ObjectReference
        self._properties = read_database(query)

    @property
    def database(self) -> Database:
        """The database with its tables, at the snapshot."""
        return self._properties.model_copy(update={"tables": self.tables})

    def add_exact(self, table: Table, files: Iterable[DataFile]) -> None:
        """The table was read under the snapshot."""
        self.exact[table.oid] = table
        self.exact_files += files

    def readable_tables(self) -> list[Table]:
        """The tables whose rows belong to the backup."""
        return [table for table in self.tables if table.capture != "none"]

    def first_tables(self) -> list[Table]:
        """The readable tables of `read_first`."""
        return [table for table in self.readable_tables() if table.oid in self.read_first]

    def read_sequences(self, endpoint: Endpoint) -> None:
        """Read the sequences as they are now; those dropped meanwhile keep what was read before."""
        with self._session(endpoint) as connection:
            present = read_sequences(query_of(connection))
        values = {(value.schema_name, value.name): value for value in (*self.sequences, *present)}
        self.sequences = tuple(values[key] for key in sorted(values))

    def check_catalogs(self, endpoint: Endpoint) -> None:
        """Raise SchemaMoved if any DDL committed since the snapshot, as far as transactions other than `unseen` go."""
        with self._session(endpoint) as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            present = catalog_fingerprint(query_of(connection))
            self.unseen = open_transactions(connection)
        if present != self.catalogs:
            raise SchemaMoved(f"The schema of database {self.name!r} changed while it was read.")

    @contextmanager
    def _session(self, endpoint: Endpoint) -> Iterator[Connection]:
        """A session that sees the present. Beside writers that stay open it must not wait for their locks."""
        with connect(endpoint, self.name, purpose="seal") as connection:
            if self.snapshot.inexact is not None:
                limit_lock_waits(connection, self._wait_seconds)
            yield connection

    def manifest_entry(self, tables: Iterable[ManifestTable]) -> ManifestDatabase:
        """The database's part of a manifest with these tables."""
        return ManifestDatabase(
            database=self.database,
            protection=self.planned.protection,
            captured=self.snapshot.lsn,
            catalogs=self.catalogs,
            types_version=self.types_version,
            schema_dump=self.schema_dump,
            tables=tuple(tables),
            sequences=self.sequences,
            views=self.views,
            omitted=self.omitted,
        )


@contextmanager
def snapshot_of(run: Run, planned: PlannedDatabase) -> Iterator[SealSnapshot]:
    """A snapshot of the database at a known position."""
    run.progress.step(f"fix the cut of {planned.database.name}")
    with snapshot_at_known_lsn(run.cluster.primary, planned.database.name, run.wait_seconds) as snapshot:
        yield snapshot


def capture_schema(run: Run, entry: CapturedDatabase, known: ManifestDatabase | None = None) -> None:
    """Store the database's schema, and read its sequences. `known` is the database in the chain's last layer: what was
    stored then serves again as long as no catalog changed.

    Raises SchemaMoved when DDL got in between: pg_dump prints definitions from the live catalogs, so that a dump across
    DDL silently mixes old and new. Raises WritersOpen where the snapshot serves no dump and there is none to serve again.
    """
    endpoint = run.cluster.primary
    run.reached("seal.before_schema")
    if known is not None and known.catalogs == entry.catalogs:
        entry.schema_dump = known.schema_dump
    elif entry.snapshot.inexact is not None:
        what = "changed since the layer before" if known is not None else "is in no layer yet"
        raise WritersOpen(entry.snapshot.inexact.why, f"the schema of {entry.name} {what}, and must be read at the cut")
    else:
        path = schema_dump_path(run.plan.number, entry.planned.database.oid)
        key = object_key(run.plan.subdir, path)
        entry.schema_dump = dump_schema(endpoint, entry.name, entry.snapshot.name, run.storage, key, path)
    run.reached("seal.after_schema")
    if entry.unpublished:
        run.progress.note(
            f"Tables of {entry.name} that the backup's role may not publish count as without identity:"
            f" {few(entry.unpublished, _SHOWN)}. `spanvault cluster preflight` prints the statements that change this."
        )
    entry.read_sequences(endpoint)
    entry.check_catalogs(endpoint)


def query_of(connection: Connection) -> Query:
    """A psycopg session as the catalogs' query function."""
    return lambda text: connection.execute(text.encode()).fetchall()
