"""What the steps of a restore need to be told of their surroundings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spanvault.collection.chain import Resolved
from spanvault.collection.layout import object_key
from spanvault.columnar.read import verified_file
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.archive import Entry, read_archive
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.target import Connection, Record, database_names, find_record, maintenance_connection
from spanvault.errors import NotFound
from spanvault.model.manifest import Manifest, ManifestDatabase, ObjectReference
from spanvault.model.progress import Progress, Silent
from spanvault.model.request import RestoreRequest
from spanvault.restore.plan import RestorePlan, make_plan
from spanvault.restore.sources import table_histories
from spanvault.storage.base import Storage


@dataclass(frozen=True)
class Work:
    """One restore: of the cut `resolved` of a chain in `storage`, by `plan`, into `cluster`. `scratch` is the folder for
    temporary files."""

    cluster: Cluster
    storage: Storage
    resolved: Resolved
    plan: RestorePlan
    progress: Progress = field(default_factory=Silent)
    scratch: Path | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest of the last layer, which the schema comes from."""
        return self.resolved.manifest

    @property
    def purpose(self) -> str:
        """What the sessions of this restore are called in pg_stat_activity, behind `spanvault`."""
        return f"restore {self.plan.id}"

    @property
    def finishing(self) -> str:
        """The same for sessions that make indexes and constraints."""
        return f"finish {self.plan.id}"

    def connect(self, database: str) -> Connection:
        """A session on a database of the target."""
        return connect(self.cluster.primary, database, purpose=self.purpose)

    def records(self) -> dict[str, Record | None]:
        """What each database of the plan remembers of this restore; databases that do not exist are left out."""
        with maintenance_connection(self.cluster.primary) as control:
            names = database_names(control)
        found: dict[str, Record | None] = {}
        for database in self.plan.databases:
            if database.target in names:
                with self.connect(database.target) as connection:
                    found[database.target] = find_record(connection, self.plan.id)
        return found

    def source(self, name: str) -> ManifestDatabase:
        """The database `name` as the backup has it."""
        found = self.manifest.database(name)
        if found is None:
            raise NotFound(f"The backup {self.manifest.subdir} has no database {name!r}.")
        return found


def is_finished(records: Mapping[str, Record | None]) -> bool:
    """Whether all that is left is to forget the restore: that begins when every database is finished, so one that has
    forgotten it beside one that is finished is finished too."""
    states = {record.state if record else None for record in records.values()}
    return "finished" in states and states <= {"finished", None}


def planned_work(
    storage: Storage, resolved: Resolved, cluster: Cluster, request: RestoreRequest, *, progress: Progress, scratch: Path | None
) -> Work:
    """The restore that `request` asks of the resolved cut. Reads the collection; writes nothing.

    Raises what `make_plan` raises.
    """
    plan = make_plan(
        resolved,
        lambda origins: table_histories(storage, resolved, origins),
        request,
        lambda source: read_entries(storage, resolved.manifest, source, scratch),
        cluster.primary.database,
    )
    return Work(cluster=cluster, storage=storage, resolved=resolved, plan=plan, progress=progress, scratch=scratch)


@contextmanager
def local_archive(storage: Storage, manifest: Manifest, source: str, scratch: Path | None) -> Iterator[Path]:
    """A checked local copy of a database's schema archive. Raises Damaged and NotFound."""
    database = manifest.database(source)
    if database is None:
        raise NotFound(f"The backup {manifest.subdir} has no database {source!r}.")
    with local_object(storage, manifest, database.schema_dump, scratch) as archive:
        yield archive


def local_object(
    storage: Storage, manifest: Manifest, reference: ObjectReference, scratch: Path | None
) -> AbstractContextManager[Path]:
    """A checked local copy of an object that the manifest names. Entering it raises Damaged."""
    key = object_key(manifest.subdir, reference.path)
    return verified_file(storage, key, sha256=reference.sha256, size=reference.bytes, scratch=scratch)


def read_entries(storage: Storage, manifest: Manifest, source: str, scratch: Path | None) -> tuple[Entry, ...]:
    """The entries of a database's schema archive."""
    with local_archive(storage, manifest, source, scratch) as archive:
        return read_archive(archive)
