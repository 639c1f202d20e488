"""Loading a batch: each unit is one transaction that also records itself, so that no row comes in twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import pyarrow as pa

from spanvault.database.postgres.large_objects import load_pages
from spanvault.database.postgres.load import load_unit
from spanvault.database.postgres.target import Connection, find_record
from spanvault.errors import Damaged, Refused
from spanvault.merge.history import TableHistory
from spanvault.merge.table import TableState, Unit, units_of
from spanvault.model.base import Value
from spanvault.model.progress import Progress
from spanvault.restore.batches import LoadBatch, LoadUnit, table_of
from spanvault.restore.origin import AtCut, TableKey
from spanvault.restore.sources import table_histories
from spanvault.restore.work import Work, is_finished


class LoadSummary(Value):
    """What a call of load_batch did. `skipped` units were in already; `bytes` are those of files."""

    index: int
    units: int
    skipped: int
    rows: int
    bytes: int


def load_batch(work: Work, index: int) -> LoadSummary:
    """Load the units of a batch that are not in yet; with schema_only, read and check them all.

    Raises Damaged naming the object when stored bytes are not what was written, Refused when the restore is not under
    way in its target, or another plan counted the batches.
    """
    if index >= len(work.plan.batches):
        raise Refused(
            f"The restore of {work.plan.subdir} has no part {index + 1}: it was planned from other layers, which were compacted"
            " meanwhile. Run the whole RESTORE statement."
        )
    batch = work.plan.batches[index]
    if work.plan.loads and is_finished(work.records()):
        return LoadSummary(index=index, units=len(batch.units), skipped=len(batch.units), rows=0, bytes=0)
    histories = _histories(work, batch)
    units = skipped = rows = loaded_bytes = 0
    with ExitStack() as stack:
        connections: dict[str, Connection] = {}
        for key, group in itertools.groupby(batch.units, key=lambda unit: (unit.database, unit.table_oid)):
            if work.plan.loads and key[0] not in connections:
                connections[key[0]] = stack.enter_context(_connect(work, key[0]))
            for unit, count in _load_table(work, list(group), histories[key], connections.get(key[0])):
                units += 1
                skipped += count is None
                rows += count or 0
                loaded_bytes += unit.bytes if count is not None else 0
                work.progress.advance(units=1, bytes_=unit.bytes)
    return LoadSummary(index=index, units=units, skipped=skipped, rows=rows, bytes=loaded_bytes)


def _histories(work: Work, batch: LoadBatch) -> Mapping[TableKey, TableHistory]:
    wanted = {(unit.database, unit.table_oid) for unit in batch.units}
    origins = AtCut(work.resolved).origins
    return table_histories(work.storage, work.resolved, {key: origins[key] for key in wanted})


def _connect(work: Work, source: str) -> Connection:
    target = next(database.target for database in work.plan.databases if database.source == source)
    connection = work.connect(target)
    if find_record(connection, work.plan.id) is None:
        connection.close()
        raise Refused(
            f"The database {target!r} is not being loaded by this restore: its schema was not restored yet, or the restore"
            " is finished. Run the whole RESTORE statement."
        )
    return connection


def _load_table(
    work: Work, wanted: Sequence[LoadUnit], history: TableHistory, connection: Connection | None
) -> Iterator[tuple[LoadUnit, int | None]]:
    table = table_of(work.manifest, wanted[0].database, wanted[0].table_oid)
    units = {unit.id: unit for unit in units_of(history)}
    with TableState(history, work.scratch) as state:
        for one in wanted:
            batches = _watched(state.batches(_unit(units, one, work)), work.progress)
            if connection is None:
                yield one, sum(batch.num_rows for batch in batches)
            else:
                load = load_pages if table.of_large_objects else load_unit
                yield one, load(connection, work.plan.id, one.id, table, batches)


def _unit(units: dict[str, Unit], wanted: LoadUnit, work: Work) -> Unit:
    if wanted.unit not in units:
        raise Damaged(f"The file list of the backup {work.plan.subdir} is not the one that the restore was planned with.")
    return units[wanted.unit]


def _watched(batches: Iterator[pa.RecordBatch], progress: Progress) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        progress.advance(rows=batch.num_rows)
