"""The end of a backup: the list of files and the manifest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from spanvault.collection.commit import commit
from spanvault.collection.files import write_files
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
