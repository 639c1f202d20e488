"""The end of a backup: the manifest, and the protection that moves on behind it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from spanvault.backup.prepare import protection_length
from spanvault.collection.commit import commit
from spanvault.collection.files import write_files
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import Owner, advance, mark, release
from spanvault.model.manifest import Manifest, Plan, SealRecord, Totals
from spanvault.storage.base import Storage


def commit_seal(storage: Storage, plan: Plan, record: SealRecord, clock: Callable[[], datetime]) -> Manifest:
    """Write the list of files, then the manifest; the manifest's creation is the commit."""
    files = write_files(storage, plan.subdir, plan.number, record.files)
    manifest = Manifest(
        subdir=plan.subdir,
        number=plan.number,
        collection_id=plan.collection_id,
        run_key=plan.run_key,
        request=plan.request,
        request_text=plan.request_text,
        source=plan.source,
        start=record.start,
        end=record.end,
        captured=record.end,
        databases=record.databases,
        files=files,
        globals_dump=record.globals_dump,
        totals=_totals(plan, record),
        planned_at=plan.planned_at,
        committed_at=clock(),
    )
    return commit(storage, manifest)


def _totals(plan: Plan, record: SealRecord) -> Totals:
    tables = [table for entry in record.databases for table in entry.tables]
    return Totals(
        tables=len(tables),
        rows=sum(table.rows for table in tables),
        file_bytes=sum(file.bytes for file in record.files),
        files=len(record.files),
        source_bytes=sum(table.bytes for planned in plan.databases for table in planned.database.tables),
    )


def move_protection(cluster: Cluster, manifest: Manifest, collection: str, clock: Callable[[], datetime]) -> None:
    """After the commit: move every slot to the layer's end, or give the protection up if the backup asked for that.

    Idempotent; a slot is never moved backwards.
    """
    keep = manifest.request.options.protection != "none"
    for entry in manifest.databases:
        protection = entry.protection
        with connect(cluster.primary, protection.database, purpose="protection") as connection:
            if not keep:
                release(connection, protection.slot, protection.publication)
                continue
            advance(connection, protection.slot, manifest.end.lsn)
            expires_at = clock() + protection_length(manifest.request)
            owner = Owner(collection_id=manifest.collection_id, collection=collection, expires_at=expires_at)
            mark(connection, protection.publication, owner)
