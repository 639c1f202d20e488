"""The end of a backup: the lists of files and the manifests, layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from spanvault.collection.chain import load_manifest_bytes
from spanvault.collection.commit import commit
from spanvault.collection.files import write_files
from spanvault.collection.plans import read_plan
from spanvault.errors import Refused
from spanvault.model.manifest import Manifest, Plan, SealedLayer, SealRecord, Totals
from spanvault.storage.base import Storage


def commit_seal(storage: Storage, plan: Plan, record: SealRecord, clock: Callable[[], datetime]) -> Manifest:
    """Commit the record's layers in order, each by a list of files and then the manifest, whose creation is the commit.

    Layers that an earlier try committed are left as they are. Returns the manifest of the last layer.
    """
    for layer in record.layers:
        own = plan if layer.subdir == plan.subdir else _closing_plan(storage, plan, layer)
        manifest = _commit_layer(storage, own, layer, clock)
    return manifest


def _closing_plan(storage: Storage, plan: Plan, layer: SealedLayer) -> Plan:
    found = read_plan(storage, layer.subdir, layer.number, plan.run_key)
    if found is None:
        raise Refused(f"The plan of layer {layer.number} of {layer.subdir} is gone; seal the backup again.")
    return found


def _commit_layer(storage: Storage, plan: Plan, layer: SealedLayer, clock: Callable[[], datetime]) -> Manifest:
    files = write_files(storage, layer.subdir, layer.number, layer.files)
    options = plan.request.options
    manifest = Manifest(
        kind=layer.kind,
        subdir=layer.subdir,
        number=layer.number,
        first=layer.number,
        collection_id=plan.collection_id,
        run_key=plan.run_key,
        request=plan.request,
        request_text=plan.request_text,
        source=plan.source,
        parent_sha256=_parent_digest(storage, layer),
        revision_history=layer.kind == "incremental" and options.revision_history,
        location=options.incremental_location if layer.kind == "incremental" else None,
        due=layer.due,
        start=layer.start,
        end=layer.end,
        captured=layer.captured,
        databases=layer.databases,
        files=files,
        globals_dump=layer.globals_dump,
        totals=_totals(layer),
        planned_at=plan.planned_at,
        committed_at=clock(),
    )
    return commit(storage, manifest)


def _parent_digest(storage: Storage, layer: SealedLayer) -> str | None:
    if layer.number == 0:
        return None
    return hashlib.sha256(load_manifest_bytes(storage, layer.subdir, layer.number - 1)[1]).hexdigest()


def _totals(layer: SealedLayer) -> Totals:
    tables = [table for entry in layer.databases for table in entry.tables]
    return Totals(
        tables=len(tables),
        rows=sum(table.rows for table in tables),
        file_bytes=sum(file.bytes for file in layer.files),
        files=len(layer.files),
        source_bytes=sum(table.bytes for entry in layer.databases for table in entry.database.tables),
    )
