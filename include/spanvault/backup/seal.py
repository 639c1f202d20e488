"""The seal: fixing the cut, healing the fuzzy export with the change log, reading what must be read exactly.

Two phases. First each database in turn gets a snapshot at a known position, under which everything that the log does
not carry is read. The cut E is the last of these positions; then each database's log is decoded up to E. A seal that
meets a change of schema at the wrong moment starts over with a new cut and keeps all exported spans.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta

from spanvault.backup.captured import SchemaMoved
from spanvault.backup.changelog import ChangeLog
from spanvault.backup.close_chain import closing_layers
from spanvault.backup.context import Run
from spanvault.backup.exact import compute_fingerprints, read_exactly, read_late
from spanvault.backup.layer_seal import follow_exact, globals_of, seal_layers
from spanvault.backup.live_table import SnapshotTooOld
from spanvault.backup.orphans import follow, read_orphans
from spanvault.backup.protection import give_up
from spanvault.backup.sealing import DatabaseSeal, open_database_seal
from spanvault.backup.source_check import check_source
from spanvault.collection.parts import write_part
from spanvault.collection.receipts import read_receipts
from spanvault.collection.seals import put_seal
from spanvault.database.postgres.window import UndecodableLog, peek
from spanvault.errors import Retryable
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import DataFile, ManifestDatabase, ManifestTable, Part, SealedLayer, SealRecord
from spanvault.model.units import parse_duration


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
    layers = seal_layers(run) if run.plan.kind == "incremental" else _seal_full(run)
    layers = tuple(layer.model_copy(update={"parts": _parts(run, layer)}) for layer in layers)
    return SealRecord(subdir=run.plan.subdir, number=run.plan.number, layers=layers, sealed_at=run.clock())


def _parts(run: Run, layer: SealedLayer) -> tuple[Part, ...]:
    """What the layer has at localities' URIs, described there. What a full's run adds to the chain before is in the chain."""
    data = run.data if layer.subdir == run.plan.subdir else run.storage
    return tuple(
        write_part(
            data,
            collection_id=run.plan.collection_id,
            subdir=layer.subdir,
            number=layer.number,
            run_key=run.plan.run_key,
            locality=tier,
            files=layer.files,
        )
        for tier, _ in run.places.others
    )


def _seal_full(run: Run) -> tuple[SealedLayer, ...]:
    """The full, behind the layer that brings the chain before it up to the same cut."""
    receipts = read_receipts(run.storage, run.plan.subdir, run.plan.number)
    with ExitStack() as stack:
        seals: list[DatabaseSeal] = []
        for planned in run.plan.databases:
            seals.append(stack.enter_context(open_database_seal(run, planned, receipts)))
            run.reached("seal.after_snapshot")
            read_exactly(run, seals[-1], seals[-1].exact_tables())
            compute_fingerprints(run, seals[-1], whole_only=not run.plan.request.options.fingerprint)
        end = max(entry.snapshot.lsn for entry in seals)
        check_source(run, receipts.values(), end)
        run.progress.step("heal", total_units=len(seals))
        for entry in seals:
            _heal(run, entry, end)
            run.progress.advance(units=1)
        newest = max(max(entry.snapshot.time, entry.newest_commit()) for entry in seals)
        cut = Cut(lsn=end, time=newest)
        full = SealedLayer(
            subdir=run.plan.subdir,
            number=run.plan.number,
            start=cut,
            end=cut,
            captured=cut,
            databases=tuple(_manifest_database(entry, end) for entry in seals),
            files=tuple(file for entry in seals for file in entry.files()),
            globals_dump=globals_of(run),
        )
        return (*closing_layers(run, [(entry.planned, entry.snapshot) for entry in seals], cut), full)


def _heal(run: Run, entry: DatabaseSeal, end: Lsn) -> None:
    """Decode the database's window, read anew what the log cannot heal, and fill in what it left out."""
    start, own_end = entry.planned.protection.start, entry.snapshot.lsn
    entry.changes.window.latest = entry.latest_time(_max_skew(run))
    with peek(run.cluster.primary, entry.planned.protection, start, own_end) as messages:
        entry.changes.read(messages, start, own_end)
    run.reached("seal.after_window")
    entry.distrust(run.cluster.primary)
    read_late(run, entry, entry.unhealed_tables())
    read_orphans(run, entry)
    run.reached("seal.after_orphans")
    if own_end < end:
        _follow(run, entry, end)
        entry.followed = follow_exact(run, entry, run.plan.number, end)


def _follow(run: Run, entry: DatabaseSeal, end: Lsn) -> None:
    """Bring a database whose snapshot was taken before the cut up to the cut."""
    small = ChangeLog(run.storage, run.plan.subdir, run.plan.number, entry.name, tier=run.tier)
    small.track(changes.table for changes in entry.healed())
    # What follows lies behind every orphan, each of which has a place of its own.
    orphans = max((len(changes.open_holes) for changes in entry.healed()), default=0)
    small.window.latest = entry.latest_time(_max_skew(run))
    small.window.changes = entry.changes.window.changes + 1 + orphans
    with peek(run.cluster.primary, entry.planned.protection, entry.snapshot.lsn, end) as messages:
        chunks = small.read_small(messages, entry.snapshot.lsn, end)
    follow(run, entry, small, chunks)
    entry.followed_window = small.window
    entry.read_sequences(run.cluster.primary)
    entry.check_catalogs(run.cluster.primary)


def _max_skew(run: Run) -> timedelta:
    return parse_duration(run.plan.request.options.max_clock_skew)


def _manifest_database(entry: DatabaseSeal, end: Lsn) -> ManifestDatabase:
    by_table: dict[int, list[DataFile]] = {}
    for file in entry.files():
        by_table.setdefault(file.table_oid, []).append(file)
    tables = [_manifest_table(entry, table.oid, by_table.get(table.oid, []), end) for table in entry.readable_tables()]
    return entry.manifest_entry(tables).model_copy(update={"window": entry.window()})


def _manifest_table(entry: DatabaseSeal, oid: int, files: list[DataFile], end: Lsn) -> ManifestTable:
    followed = entry.followed.tables.get(oid) if entry.followed else None
    changed = followed is None and any(file.role == "change" for file in files)
    fingerprint = None if followed else entry.fingerprints.get(oid)
    rows = sum(file.rows for file in files if file.role != "change") + (followed.rows_added if followed else 0)
    return ManifestTable(
        oid=oid,
        rows=fingerprint.rows if fingerprint else rows,
        rows_exact=fingerprint is not None or not changed,
        bytes=sum(file.bytes for file in files),
        as_of=entry.snapshot.lsn if oid in entry.exact else end,
        since=end if oid in entry.changes.tables and oid not in entry.exact else entry.snapshot.lsn,
        fingerprint=fingerprint,
    )
