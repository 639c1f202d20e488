"""`schema_only`: a backup's schema is restored, without rows, into a PostgreSQL that exists for that only.

`verify_backup_table_data` also reads the rows as a restore does, and throws them away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spanvault.collection.chain import OpenLocation, Resolved, no_locations, resolve
from spanvault.collection.files import own_objects
from spanvault.collection.lookup import find_subdir
from spanvault.columnar.scratch import scratch_folder
from spanvault.config.clusters import Cluster, cluster_from_url
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import create_database, database_names
from spanvault.embedded.postgres import PostgresServer
from spanvault.merge.table import TableState, units_of
from spanvault.model.manifest import Manifest
from spanvault.model.progress import Progress, Silent
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import SchemaTarget, TableTarget
from spanvault.restore.finish import finish_restore
from spanvault.restore.origin import AtCut
from spanvault.restore.schema import restore_schema
from spanvault.restore.sources import table_histories
from spanvault.restore.work import planned_work
from spanvault.storage.base import Storage
from spanvault.verify.result import Findings, VerificationResult


def check_schema(
    storage: Storage,
    subdir: str = "LATEST",
    *,
    rows: bool = False,
    open_location: OpenLocation = no_locations,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> VerificationResult:
    """Create everything but rows of a backup's newest valid layer: databases, roles, tables, functions, indexes,
    constraints. The server is made on `scratch` (default: the system's temporary folder) and deleted afterwards.

    With `rows` every file that a restore of this layer needs is read, compared with its digest, and merged to the rows that
    would be loaded; none of them is. They are counted.

    A changed schema fails the verification. What the scratch server refuses means that it could not be done: the server
    has no extensions but PostgreSQL's own. Raises NotFound and BadInput when there is no such backup to check.
    """
    findings = Findings("verify_backup_table_data" if rows else "schema_only")
    found = find_subdir(storage, subdir)
    with findings.guard():
        # Without rows no data file is read.
        resolved = resolve(storage, found, open_location=open_location if rows else lambda _: storage)
        _restore(storage, resolved, scratch, progress or Silent())
        if rows:
            _read_rows(storage, resolved, findings, scratch, progress or Silent())
        for reference in own_objects(resolved.manifest):
            if reference.path.endswith((".dump", ".sql")):
                findings.looked_at(bytes_=reference.bytes)
    return findings.result()


@translated("Restoring the schema into a scratch server")
def _restore(storage: Storage, resolved: Resolved, scratch: Path | None, progress: Progress) -> None:
    progress.step("restore schema")
    manifest = resolved.manifest
    with _scratch_cluster(scratch) as cluster:
        if isinstance(manifest.request.target, SchemaTarget | TableTarget):
            _make_databases(cluster, manifest)
        request = RestoreRequest(
            target=manifest.request.target,
            subdir=manifest.subdir,
            collection=storage.display_uri,
            options=RestoreOptions(schema_only=True),
        )
        work = planned_work(storage, resolved, cluster, request, progress=progress, scratch=scratch)
        restore_schema(work)
        finish_restore(work)


def _read_rows(storage: Storage, resolved: Resolved, findings: Findings, scratch: Path | None, progress: Progress) -> None:
    """Every table's rows, merged out of all layers. Tables that the layer rightly has no rows of are told."""
    at_cut = AtCut(resolved)
    for missing in at_cut.missing.values():
        findings.note(f"Of {missing} the newest layer has no rows.")
    histories = table_histories(storage, resolved, at_cut.origins)
    progress.step("read rows", total_units=sum(len(units_of(history)) for history in histories.values()))
    for history in histories.values():
        with findings.guard(), TableState(history, scratch) as state:
            for unit in units_of(history):
                findings.looked_at(bytes_=unit.bytes, rows=sum(batch.num_rows for batch in state.batches(unit)))
                progress.advance(units=1)


def _make_databases(cluster: Cluster, manifest: Manifest) -> None:
    """Schemas and tables are restored into databases that exist."""
    with connect(cluster.primary, purpose="schema check") as connection:
        there = database_names(connection)
        for database in (entry.database for entry in manifest.databases):
            if database.name not in there:
                create_database(connection, database, database.name, owner=None)


@contextmanager
def _scratch_cluster(scratch: Path | None) -> Iterator[Cluster]:
    """A PostgreSQL that is deleted afterwards."""
    with scratch_folder("schema", scratch) as folder:
        folder.chmod(0o755)  # the server may run as another user
        with PostgresServer(folder / "server", name="schema-check") as server:
            yield cluster_from_url(server.url(), "schema-check")
