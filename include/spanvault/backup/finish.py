"""The end of a backup: the lists of files and the manifests, layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from spanvault.collection.chain import load_manifest_bytes
from spanvault.collection.commit import commit
from spanvault.collection.files import write_files
from spanvault.collection.plans import read_plan
from spanvault.errors import Refused, Retryable
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.manifest import Manifest, Plan, SealedLayer, SealRecord, Totals
from spanvault.storage.base import Storage


def commit_seal(
    storage: Storage, plan: Plan, record: SealRecord, clock: Callable[[], datetime], reached: Reached = pass_by
) -> Manifest:
    """Commit the record's layers in order, each by a list of files and then the manifest, whose creation is the commit.

    Layers that another try of the run committed are left as they are. Returns the manifest of the last layer. Raises
    Retryable when the record's next layer does not follow from such a one.
    """
    for layer in record.layers:
        own = plan if layer.subdir == plan.subdir else _closing_plan(storage, plan, layer)
        manifest = _commit_layer(storage, own, layer, clock)
        if layer is not record.layers[-1] and manifest.end.lsn != layer.end.lsn:
            raise _other_try(layer)
        reached("commit.after_layer")
    return manifest


def _other_try(layer: SealedLayer) -> Retryable:
    return Retryable(
        f"Another try of this run committed layer {layer.number} of {layer.subdir}, and what this one sealed does not follow"
        " from it; seal the backup again."
    )


def _closing_plan(storage: Storage, plan: Plan, layer: SealedLayer) -> Plan:
    found = read_plan(storage, layer.subdir, layer.number, plan.run_key)
    if found is None:
        raise Refused(f"The plan of layer {layer.number} of {layer.subdir} is gone; seal the backup again.")
    return found


def _commit_layer(storage: Storage, plan: Plan, layer: SealedLayer, clock: Callable[[], datetime]) -> Manifest:
    digest = _parent_digest(storage, layer)
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
        parent_sha256=digest,
        revision_history=layer.revision_history,
        location=options.incremental_location if layer.kind == "incremental" else None,
        due=layer.due,
        start=layer.start,
        end=layer.end,
        captured=layer.captured,
        databases=layer.databases,
        files=files,
        parts=layer.parts,
        globals_dump=layer.globals_dump,
        totals=_totals(layer),
        planned_at=plan.planned_at,
        committed_at=clock(),
    )
    return commit(storage, manifest)


def _parent_digest(storage: Storage, layer: SealedLayer) -> str | None:
    """Of the manifest that the layer is built upon, None for a full.

    A table of the layer must be whole in it, or have the basis that it has in the parent. Two tries of a run that seal and
    commit at the same time may have judged a table differently; then changes of it would be in no layer.
    """
    if layer.number == 0:
        return None
    parent, data = load_manifest_bytes(storage, layer.subdir, layer.number - 1)
    bases = {(entry.database.oid, table.oid): table.basis for entry in parent.databases for table in entry.tables}
    for entry in layer.databases:
        for table in entry.tables:
            if table.basis not in {None, layer.number, bases.get((entry.database.oid, table.oid))}:
                raise _other_try(layer)
    return hashlib.sha256(data).hexdigest()


def _totals(layer: SealedLayer) -> Totals:
    tables = [table for entry in layer.databases for table in entry.tables]
    return Totals(
        tables=len(tables),
        rows=sum(table.rows for table in tables),
        file_bytes=sum(file.bytes for file in layer.files),
        files=len(layer.files),
        source_bytes=sum(table.bytes for entry in layer.databases for table in entry.database.tables),
    )
