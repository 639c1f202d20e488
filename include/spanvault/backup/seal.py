"""The seal: fixing the cut, healing the fuzzy export with the change log, reading what must be read exactly.

Two phases. First each database in turn gets a snapshot at a known position, under which everything that the log does
not carry is read. The cut E is the last of these positions; then each database's log is decoded up to E. A seal that
meets a change of schema at the wrong moment starts over with a new cut and keeps all exported spans.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack

from spanvault.backup.changelog import ChangeLog
from spanvault.backup.context import Run
from spanvault.backup.exact import compute_fingerprints, read_exactly
from spanvault.backup.export import SnapshotTooOld
from spanvault.backup.orphans import follow, read_orphans
from spanvault.backup.protection import give_up
from spanvault.backup.sealing import DatabaseSeal, SchemaMoved, open_database_seal
from spanvault.collection.layout import globals_dump_path, object_key
from spanvault.collection.receipts import read_receipts
from spanvault.collection.seals import put_seal
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.dump import dump_globals
from spanvault.database.postgres.server import flush_lsn, timeline
from spanvault.database.postgres.window import UndecodableLog, peek
from spanvault.errors import BrokenChain, Busy, Retryable
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import DataFile, ManifestDatabase, ManifestTable, ObjectReference, Receipt, SealRecord
from spanvault.model.target import ClusterTarget

_FLUSH_WAIT_SECONDS = 30.0


def seal(run: Run) -> str:
    """Fix the cut and write everything but the manifest; returns the key of the seal record.

    Raises Busy when open transactions do not let the cut be fixed, BrokenChain when the source is no longer the one
    that was exported, Retryable when DDL did not leave a quiet moment in `seal_tries` tries.
    """
    tries = 0
    while True:
        tries += 1
        try:
            record = _try_seal(run)
            run.reached("seal.before_record")
            return put_seal(run.storage, record)
        except UndecodableLog:
            give_up(run.cluster, run.plan)  # else the next run would continue this one, and fail the same way
            raise
        except (SnapshotTooOld, SchemaMoved) as error:
            if tries >= run.seal_tries:
                raise Retryable(f"{error} The seal was tried {tries} times; run the backup again.") from None
            run.progress.note(f"{error} Sealing again with a new cut.")


def _try_seal(run: Run) -> SealRecord:
    receipts = read_receipts(run.storage, run.plan.subdir, run.plan.number)
    with ExitStack() as stack:
        seals: list[DatabaseSeal] = []
        for planned in run.plan.databases:
            seals.append(stack.enter_context(open_database_seal(run, planned, receipts)))
            run.reached("seal.after_snapshot")
            read_exactly(run, seals[-1], seals[-1].exact_tables())
            if run.plan.request.options.fingerprint:
                compute_fingerprints(run, seals[-1])
        end = max(entry.snapshot.lsn for entry in seals)
        _check_source(run, receipts.values(), end)
        run.progress.step("heal", total_units=len(seals))
        databases, files, newest = [], [], max(entry.snapshot.time for entry in seals)
        for entry in seals:
            _heal(run, entry, end)
            databases.append(_manifest_database(entry, end))
            files += entry.files()
            newest = max(newest, entry.newest_commit())
            run.progress.advance(units=1)
        return SealRecord(
            subdir=run.plan.subdir,
            number=run.plan.number,
            start=Cut(lsn=min(planned.protection.start for planned in run.plan.databases), time=run.plan.planned_at),
            end=Cut(lsn=end, time=newest),
            databases=tuple(databases),
            files=tuple(files),
            globals_dump=_globals(run),
            sealed_at=run.clock(),
        )


def _check_source(run: Run, receipts: Iterable[Receipt], end: Lsn) -> None:
    """The cut must lie beyond everything that any span can have seen, on the same timeline, and be durable."""
    timelines, newest = {run.plan.source.timeline}, Lsn(0)
    for receipt in receipts:
        timelines.add(receipt.timeline)
        newest = max(newest, receipt.seen_lsn)
    connection = connect(run.cluster.primary, purpose="seal")
    try:
        timelines.add(timeline(connection))
        if len(timelines) > 1:
            raise BrokenChain(
                "The source was promoted during the backup (timelines "
                f"{', '.join(map(str, sorted(timelines)))}): its spans may show what is no longer there. Start a new full backup."
            )
        if newest > end:
            raise BrokenChain(
                f"A span saw the log up to {newest}, but the source is at {end}: it was rolled back. Start a new full backup."
            )
        deadline = time.monotonic() + _FLUSH_WAIT_SECONDS
        while flush_lsn(connection) < end:
            if time.monotonic() > deadline:
                raise Busy(f"The source's log was not flushed up to {end} within {_FLUSH_WAIT_SECONDS:g} s.")
            time.sleep(0.02)
    finally:
        connection.close()


def _heal(run: Run, entry: DatabaseSeal, end: Lsn) -> None:
    """Decode the database's window, read anew what the log cannot heal, and fill in what it left out."""
    start, own_end = entry.planned.protection.start, entry.snapshot.lsn
    with peek(run.cluster.primary, entry.planned.protection, start, own_end) as messages:
        entry.changes.read(messages, start, own_end)
    run.reached("seal.after_window")
    entry.distrust(run.cluster.primary)
    read_exactly(run, entry, entry.unhealed_tables())
    read_orphans(run, entry)
    run.reached("seal.after_orphans")
    if own_end < end:
        _follow(run, entry, end)


def _follow(run: Run, entry: DatabaseSeal, end: Lsn) -> None:
    """Bring a database whose snapshot was taken before the cut up to the cut."""
    small = ChangeLog(run.storage, run.plan.subdir, run.plan.number, entry.name)
    small.track(changes.table for changes in entry.healed())
    small.window.changes = entry.changes.window.changes + 1
    with peek(run.cluster.primary, entry.planned.protection, entry.snapshot.lsn, end) as messages:
        chunks = small.read_small(messages, entry.snapshot.lsn, end)
    follow(run, entry, small, chunks)
    entry.read_sequences(run.cluster.primary)
    entry.check_catalogs(run.cluster.primary)


def _globals(run: Run) -> ObjectReference | None:
    if not isinstance(run.plan.request.target, ClusterTarget):
        return None
    path = globals_dump_path(run.plan.number)
    endpoint = run.cluster.primary
    return dump_globals(endpoint, endpoint.database, run.storage, object_key(run.plan.subdir, path), path)


def _manifest_database(entry: DatabaseSeal, end: Lsn) -> ManifestDatabase:
    files = entry.files()
    by_table: dict[int, list[DataFile]] = {}
    for file in files:
        by_table.setdefault(file.table_oid, []).append(file)
    tables = tuple(
        _manifest_table(entry, table.oid, by_table.get(table.oid, []), end)
        for table in entry.database.tables
        if table.capture != "none"
    )
    return ManifestDatabase(
        database=entry.database,
        protection=entry.planned.protection,
        schema_dump=entry.schema_dump,
        tables=tables,
        sequences=entry.sequences,
        views=entry.views,
        omitted=entry.omitted,
    )


def _manifest_table(entry: DatabaseSeal, oid: int, files: list[DataFile], end: Lsn) -> ManifestTable:
    changed = any(file.role == "change" for file in files)
    fingerprint = entry.fingerprints.get(oid)
    rows = sum(file.rows for file in files if file.role != "change")
    return ManifestTable(
        oid=oid,
        rows=fingerprint.rows if fingerprint else rows,
        rows_exact=fingerprint is not None or not changed,
        bytes=sum(file.bytes for file in files),
        as_of=entry.snapshot.lsn if oid in entry.exact else end,
        fingerprint=fingerprint,
    )
