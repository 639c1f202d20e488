"""From a request to its answer: what the command line and the API call."""

from __future__ import annotations

from spanvault.collection.lookup import find_backup
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
from spanvault.observe.show_backup import show_backup
from spanvault.observe.show_backups import show_backups, show_layers
from spanvault.statement.rules import check

BACKUP_COLUMNS = ("path", "layer", "kind", "status", "tables", "rows", "bytes", "start_time", "end_time", "end_lsn")


def execute(context: Context, request: Request, *, cluster: Cluster | None, dry_run: bool = False) -> Result:
    """Do what is asked and return its rows. Raises BadInput if the request needs a cluster and has none."""
    if isinstance(request, ShowBackupsRequest):
        return _list(context, request)
    if isinstance(request, ShowBackupRequest):
        return _show(context.unlocking(request.encryption), request)
    if isinstance(request, AlterBackupRequest):
        return alter_backup(context, request)
    if cluster is None:
        raise BadInput("BACKUP and RESTORE need a cluster: give --cluster or --url.")
    if isinstance(request, RestoreRequest):
        return run_restore(context, cluster, request, dry_run=dry_run)
    return _backup(context, cluster, request, dry_run=dry_run)


def _list(context: Context, request: ShowBackupsRequest) -> Result:
    check(request)
    storage = context.storage(request.collection)
    if not request.layers:
        return show_backups(storage)
    return show_layers(
        storage,
        newer_than=request.newer_than,
        older_than=request.older_than,
        revision_start_time=request.revision_start_time,
        note=context.progress.note,
    )


def _show(context: Context, request: ShowBackupRequest) -> Result:
    check(request)
    storage = context.storage(request.collection)
    found, number = find_backup(storage, request.subdir)
    context.keyring(request.collection).require(found)
    opened = context.locations(request.collection)
    return show_backup(
        storage,
        found if number is None else request.subdir,
        schemas=request.schemas,
        privileges=request.privileges,
        debug_ids=request.debug_ids,
        check_files=request.check_files,
        as_json=request.as_json,
        open_location=lambda uri: opened(request.incremental_location or uri),
        scratch=context.settings.scratch_dir,
        note=context.progress.note,
    )


def _backup(context: Context, cluster: Cluster, request: BackupRequest, *, dry_run: bool) -> Result:
    if dry_run:
        return estimate(context, cluster, request)
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
