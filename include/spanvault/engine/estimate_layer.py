"""What an incremental would be, without taking it: the log since the chain's end, and the tables that it does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spanvault.backup.captured import query_of
from spanvault.backup.plan import databases_of
from spanvault.backup.prepare import require_possible
from spanvault.backup.prepare_layer import (
    check_identities,
    explained,
    require_past_end,
    require_same_places,
    require_whole,
    uncovered,
)
from spanvault.backup.sealing import has_user_types
from spanvault.collection.chain import head
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.continuity import look
from spanvault.database.postgres.preflight import require
from spanvault.database.postgres.server import flush_lsn
from spanvault.engine.context import Context
from spanvault.engine.steps import require_extendable
from spanvault.errors import BrokenChain
from spanvault.model.manifest import Manifest, ManifestDatabase, PlannedDatabase
from spanvault.model.request import BackupRequest
from spanvault.model.result import Result
from spanvault.model.schema import Table
from spanvault.model.sentences import few
from spanvault.storage.base import Storage

# In benchmarks/ some 30,000 changes a second were decoded and written, of rows that take some 500 bytes of the log.
_LOG_BYTES_PER_SECOND = 15_000_000
_SHOWN = 20  # names in a note

COLUMNS = ("path", "layer", "databases", "tables", "whole_tables", "whole_bytes", "log_bytes", "seconds")


class _Whole(NamedTuple):
    table: Table
    why: str


def estimate_layer(context: Context, cluster: Cluster, request: BackupRequest, table_speed: int) -> Result:
    """One row: the layer, and what would be read for it, of tables at `table_speed` bytes/s.

    Raises BrokenChain when the chain cannot go on, so that a full would follow, and what planning the incremental raises.
    """
    require_extendable(request)
    context = context.unlocking(request.encryption)
    storage = context.storage(request.into)
    parent, _ = head(storage, request.append or "LATEST")
    require_whole(storage, parent)
    require_same_places(parent, request)
    times = (request.as_of,) if request.as_of is not None else ()
    if times:
        require_past_end(cluster, parent, request)
    uncovered(storage, parent, request, times)
    with connect(cluster.primary, purpose="estimate") as connection:
        require(connection)
        names = databases_of(request.target, user_databases(query_of(connection)), cluster.primary.database)
        written = max(0, flush_lsn(connection) - parent.end.lsn)
    planned = require_possible(cluster, request, names)
    check_identities(request, planned)
    whole = [one for each in planned for one in _whole_tables(context, cluster, storage, parent, request, each)]
    for why in dict.fromkeys(one.why for one in whole):
        context.progress.note(
            f"Read whole, because {why}: {few([one.table.qualified for one in whole if one.why == why], _SHOWN)}."
        )
    size = sum(one.table.bytes for one in whole)
    seconds = max(1, round(written * len(names) / _LOG_BYTES_PER_SECOND + size / table_speed))
    stored = sum(table.capture != "none" for each in planned for table in each.database.tables)
    row = (parent.subdir, parent.number + 1, len(names), stored, len(whole), size, written, seconds)
    return Result(columns=COLUMNS, rows=(row,))


def _whole_tables(
    context: Context, cluster: Cluster, storage: Storage, parent: Manifest, request: BackupRequest, present: PlannedDatabase
) -> Iterator[_Whole]:
    """The tables that the layer would read whole, each with a reason."""
    entry = parent.database(present.database.name)
    left: set[int] = set()
    if entry is not None:
        with connect(cluster.primary, present.database.name, purpose="estimate") as connection:
            try:
                state, left = look(connection, entry, parent.end.lsn, parent.source)
            except BrokenChain as error:
                raise explained(storage, parent, error) from None
        if state.confirmed is not None and state.confirmed < parent.end.lsn:
            context.progress.note(
                f"The slot {state.name!r} is behind the chain's end, as after a crash: whether the log is the chain's is found"
                " out when the backup begins."
            )
    skip = request.options.without_identity == "skip"
    for table in present.database.tables:
        why = _why_whole(table, entry, present.types_version, left)
        if why is not None and table.capture != "none" and not (skip and table.lacks_identity):
            yield _Whole(table, why)


def _why_whole(table: Table, entry: ManifestDatabase | None, types: str, left: set[int]) -> str | None:
    """The reason for reading the table whole; None if the log tells it. The seal looks closer, and may find that a TRUNCATE
    explains another file, or that a table which only it reads has not changed."""
    before = entry.database.table(table.oid) if entry is not None else None
    held = next((one for one in entry.tables if one.oid == table.oid), None) if entry is not None else None
    if not table.logged:
        return "the log does not tell their changes (unless nothing changed)"
    if before is None or held is None or held.basis is None or entry is None:
        return "the chain does not hold them yet"
    if table.oid in left:
        return "they were out of the publication meanwhile"
    if (before.capture, before.key, before.replica_identity) != (table.capture, table.key, table.replica_identity):
        return "their key or replica identity is another"
    kinds = {one.attnum: (one.type_oid, one.typmod, one.collation_oid, one.generated) for one in before.columns}
    changed = any(
        kinds.get(one.attnum, kind) != kind
        for one in table.columns
        for kind in [(one.type_oid, one.typmod, one.collation_oid, one.generated)]
    )
    if changed or (types != entry.types_version and has_user_types(table)):
        return "a type of theirs changed"
    return "they were rewritten or truncated" if before.filenode != table.filenode else None
