"""From a request to its answer: what the command line and the API call."""

from __future__ import annotations

from spanvault.backup.prepare import redacted
from spanvault.collection.lookup import find_subdir
from spanvault.config.clusters import Cluster
from spanvault.engine.alter import alter_backup
from spanvault.engine.context import Context
from spanvault.engine.estimate import estimate
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest
from spanvault.model.request import (
    AlterBackupRequest,
    BackupRequest,
    Request,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.result import Result
from spanvault.observe.show_backup import show_backup, show_backups

BACKUP_COLUMNS = ("path", "layer", "kind", "status", "tables", "rows", "bytes", "start_time", "end_time", "end_lsn")


def execute(context: Context, request: Request, *, cluster: Cluster | None, dry_run: bool = False) -> Result:
    """Do what is asked and return its rows. Raises BadInput if the request needs a cluster and has none."""
    if isinstance(request, ShowBackupsRequest):
        return show_backups(context.storage(request.collection))
    if isinstance(request, ShowBackupRequest):
        return _show(context.unlocking(request.encryption), request)
    if isinstance(request, AlterBackupRequest):
        return alter_backup(context, request)
    if cluster is None:
        raise BadInput("BACKUP and RESTORE need a cluster: give --cluster or --url.")
    if isinstance(request, RestoreRequest):
        return run_restore(context, cluster, request, dry_run=dry_run)
    return _backup(context, cluster, request, dry_run=dry_run)


def _show(context: Context, request: ShowBackupRequest) -> Result:
    storage = context.storage(request.collection)
    found = find_subdir(storage, request.subdir)
    context.keyring(request.collection).require(found)
    return show_backup(
        storage,
        found,
        check_files=request.check_files,
        as_json=request.as_json,
        open_location=context.locations(request.collection),
        note=context.progress.note,
    )


def _backup(context: Context, cluster: Cluster, request: BackupRequest, *, dry_run: bool) -> Result:
    if dry_run:
        return estimate(context, cluster, redacted(request))
    manifest = run_backup(context, cluster, request)
    return Result(columns=BACKUP_COLUMNS, rows=(_backup_row(manifest),))


def _backup_row(manifest: Manifest) -> tuple[str | int, ...]:
    return (
        manifest.subdir,
        manifest.number,
        manifest.kind,
        "succeeded",
        manifest.totals.tables,
        manifest.totals.rows,
        manifest.totals.file_bytes,
        format_time(manifest.start.time),
        format_time(manifest.end.time),
        str(manifest.end.lsn),
    )
