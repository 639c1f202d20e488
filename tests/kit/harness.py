"""Backups under the test's control: whatever the test wants to happen at a named point happens there.

`Backup` runs the engine's steps in this process. `at` maps a checkpoint's name to a call; a list is worked off one call
a visit. `rows` is what the backup holds of a table, `source_rows` what PostgreSQL itself prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from spanvault.collection.chain import Resolved, resolve
from spanvault.collection.files import read_files
from spanvault.config.settings import Settings
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.quoting import qualified, quote
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.merge.history import histories
from spanvault.merge.table import table_at
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest
from spanvault.model.target import DatabaseTarget, Target
from spanvault.storage.base import Storage
from tests.kit.servers import TestDatabase

Hook = Callable[[], object] | Sequence[Callable[[], object]]


@dataclass
class Notes:
    """Progress that keeps what it is told."""

    notes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """Keep the step's name."""
        self.steps.append(name)

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Keep the note."""
        self.notes.append(text)


@dataclass
class Backup:
    """One database, one collection in a folder, and hooks."""

    database: TestDatabase
    folder: Path
    at: Mapping[str, Hook] = field(default_factory=dict)
    target: Target | None = None
    options: BackupOptions = field(default_factory=lambda: BackupOptions(span_bytes=192 << 10, workers=1))
    wait: float = 20
    progress: Notes = field(default_factory=Notes)
    visits: dict[str, int] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The collection's URI."""
        return f"file://{self.folder}"

    @property
    def context(self) -> Context:
        """The engine's context with this backup's hooks."""
        settings = Settings(wait_for_writers=self.wait)
        return Context(settings=settings, progress=self.progress, reached=self._reached)

    @property
    def storage(self) -> Storage:
        """The collection's storage."""
        return self.context.storage(self.uri)

    @property
    def request(self) -> BackupRequest:
        """The request."""
        target = self.target or DatabaseTarget(names=(self.database.name,))
        return BackupRequest(target=target, into=self.uri, options=self.options)

    def take(self) -> Manifest:
        """Take the backup in this process."""
        return run_backup(self.context, self.database.cluster, self.request, processes=False)

    def _reached(self, name: str) -> None:
        hook = self.at.get(name)
        visit = self.visits.get(name, 0)
        self.visits[name] = visit + 1
        if hook is None:
            return
        if not callable(hook):
            if visit < len(hook):
                hook[visit]()
        elif visit == 0:
            hook()

    def increment(self, append: str = "LATEST", as_of: datetime | None = None, **options: object) -> Manifest:
        """Take an incremental backup in this process; its newest layer."""
        changed = self.options.model_copy(update=options)
        request = self.request.model_copy(update={"append": append, "as_of": as_of, "options": changed})
        return run_backup(self.context, self.database.cluster, request, processes=False)

    def resolved(self, subdir: str = "LATEST", as_of: datetime | Lsn | None = None) -> Resolved:
        """What gives a state of the collection."""
        return resolve(self.storage, subdir, as_of, open_location=self.context.locations(self.uri))

    def rows(self, manifest: Manifest, table_name: str, schema: str = "public", at: datetime | Lsn | None = None) -> list[str]:
        """The rows of a table at the end of the layer, or at another cut of its chain, loaded into PostgreSQL and printed
        by it, sorted."""
        resolved = self.resolved(manifest.subdir, at if at is not None else manifest.end.lsn)
        entry = resolved.manifest.database(self.database.name)
        assert entry is not None
        table = next(t for t in entry.database.tables if (t.schema_name, t.name) == (schema, table_name))
        history = histories(self.storage, resolved, lambda _, oid: oid == table.oid)[self.database.name, table.oid]
        with connect(self.database.endpoint, purpose="test") as session:
            columns = ", ".join(f"{quote(column.name)} {column.type_name}" for column in table.data_columns)
            session.execute(f"CREATE TEMP TABLE held ({columns})".encode())
            copy_batches(session, "pg_temp.held", table.data_columns, table_at(history, None))
            return [row[0] for row in session.execute("SELECT held::text FROM pg_temp.held ORDER BY 1")]

    def source_rows(self, table_name: str, schema: str = "public") -> list[str]:
        """The same of the source as it is now, without generated columns."""
        with connect(self.database.endpoint, purpose="test") as session:
            names = session.execute(
                "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                (qualified(schema, table_name),),
            ).fetchall()
            columns = ", ".join(quote(row[0]) for row in names)
            query = f"SELECT t::text FROM (SELECT {columns} FROM ONLY {qualified(schema, table_name)}) t ORDER BY 1"
            return [row[0] for row in session.execute(query.encode())]

    def capture(self, manifest: Manifest, table_name: str) -> str:
        """How a table's rows reached the layer: `exact` if they were read under the cut's snapshot, else `log`."""
        entry = manifest.database(self.database.name)
        assert entry is not None
        oid = next(table.oid for table in entry.database.tables if table.name == table_name)
        files = read_files(self.storage, manifest.subdir, manifest.files)
        return "exact" if any(file.role == "exact" for file in files if file.table_oid == oid) else "log"
