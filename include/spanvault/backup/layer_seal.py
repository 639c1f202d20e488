"""The seal of incremental layers: the log cut at the layers' ends, and what it does not tell read under a snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from psycopg import errors as pg_errors

from spanvault.backup.captured import CapturedDatabase, capture_schema, snapshot_of
from spanvault.backup.context import Run
from spanvault.backup.exact import compute_fingerprints, fingerprint_of, read_exactly, read_late
from spanvault.backup.layer_capture import LayerCapture
from spanvault.backup.layer_log import LayerLog, LayerPart, LogPlace
from spanvault.backup.live_table import SnapshotTooOld
from spanvault.backup.source_check import check_source
from spanvault.collection.chain import load_manifest_bytes
from spanvault.collection.commit import committed_run
from spanvault.collection.layout import globals_dump_path, object_key
from spanvault.collection.plans import keep_plan
from spanvault.database.postgres.dump import dump_globals
from spanvault.database.postgres.server import server_time
from spanvault.database.postgres.snapshot import SealSnapshot, WritersOpen, catalogs_before_lsn
from spanvault.database.postgres.window import peek
from spanvault.errors import Busy
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import DataFile, Manifest, ManifestDatabase, ObjectReference, PlannedDatabase, SealedLayer
from spanvault.model.target import ClusterTarget
from spanvault.model.units import parse_duration


@dataclass(frozen=True)
class Ends:
    """Where the layers of a run end: the positions, the times that were asked for (None: wherever the seal's snapshot
    is), and whether what the log does not tell is read."""

    cuts: tuple[Cut, ...]
    due: bool
    reads: bool = True


def seal_layers(run: Run) -> tuple[SealedLayer, ...]:
    """Seal the layers of an incremental plan. Raises what the seal of a full raises."""
    parent_of(run)
    run = rest_of(run)
    parent = parent_of(run)
    try:
        with _snapshots(run) as snapshots:
            return _layers_to(run, parent, snapshots)
    except WritersOpen as error:
        if error.need:
            raise
        return _seal_beside_writers(run, parent, error)


def _seal_beside_writers(run: Run, parent: Manifest, writers: WritersOpen) -> tuple[SealedLayer, ...]:
    """The layers without anything that is read at their cut, because transactions do not end: what the log tells, and the
    rest as it was read last. Their changes come with the layer that they commit in.

    Raises WritersOpen for what cannot be put off.
    """
    names = [planned.database.name for planned in run.plan.databases]
    try:
        with catalogs_before_lsn(run.cluster.primary, names, run.wait_seconds, writers) as snapshots:
            layers = _layers_to(run, parent, list(zip(run.plan.databases, snapshots, strict=True)))
    except pg_errors.LockNotAvailable:
        raise WritersOpen(writers.why, "they hold a lock on a table or sequence that must be looked at") from None
    run.progress.note(
        f"The cut was fixed at {layers[-1].end.lsn} beside open writers, whose changes come with a later layer:"
        f" {writers.why}. What must be read at the cut is put off."
    )
    return layers


@contextmanager
def _snapshots(run: Run) -> Iterator[list[tuple[PlannedDatabase, SealSnapshot]]]:
    with ExitStack() as stack:
        yield [(planned, stack.enter_context(snapshot_of(run, planned))) for planned in run.plan.databases]


def _layers_to(run: Run, parent: Manifest, snapshots: Sequence[tuple[PlannedDatabase, SealSnapshot]]) -> tuple[SealedLayer, ...]:
    """The layers to the plan's ends, or to the newest of the snapshots."""
    run.reached("seal.after_snapshot")
    newest = max(snapshot.lsn for _, snapshot in snapshots)
    time = max(snapshot.time for _, snapshot in snapshots)
    cuts = tuple(Cut(lsn=end.lsn, time=end.due) for end in run.plan.ends) or (Cut(lsn=newest, time=time),)
    check_source(run, (), newest)
    reads = all(snapshot.inexact is None for _, snapshot in snapshots)
    return make_layers(run, parent, snapshots, Ends(cuts, due=bool(run.plan.ends), reads=reads))


def parent_of(run: Run) -> Manifest:
    """The manifest that the plan builds on. Raises Busy when the layer before is another one by now."""
    manifest, data = load_manifest_bytes(run.storage, run.plan.subdir, run.plan.number - 1)
    if hashlib.sha256(data).hexdigest() != run.plan.parent_sha256:
        raise Busy(
            f"The layer {run.plan.number - 1} of {run.plan.subdir} is not the one that this run was planned on; start it anew."
        )
    return manifest


def rest_of(run: Run) -> Run:
    """The run without the layers that an earlier try of it committed: the others are built upon these. What that try found
    may not be found again: a table that it could not follow may seem never to have been altered."""
    plan, done = run.plan, 0
    while done < len(plan.ends) - 1:
        layer = committed_run(run.storage, plan.subdir, plan.number + done)
        if layer is None or layer.run_key != plan.run_key:
            break
        done += 1
    if not done:
        return run
    number = plan.number + done
    keep_plan(run.storage, plan, number)  # that try did so, but a sweep may have come since
    digest = hashlib.sha256(load_manifest_bytes(run.storage, plan.subdir, number - 1)[1]).hexdigest()
    rest = plan.model_copy(update={"number": number, "ends": plan.ends[done:], "parent_sha256": digest})
    return replace(run, plan=rest)


def make_layers(
    run: Run, parent: Manifest, snapshots: Sequence[tuple[PlannedDatabase, SealSnapshot]], ends: Ends
) -> tuple[SealedLayer, ...]:
    """The layers from the parent's end to each of `ends`. The snapshots lie at or behind the last one."""
    numbers = [run.plan.number + index for index in range(len(ends.cuts))]
    last = _at_number(run, numbers[-1])
    for number in numbers[1:]:
        keep_plan(run.storage, run.plan, number)
    entries: list[list[ManifestDatabase]] = [[] for _ in numbers]
    files: list[list[DataFile]] = [[] for _ in numbers]
    cuts = list(ends.cuts)
    if not ends.due:  # a chain's ends never run backwards, also when the clock was set back: by them times are found
        cuts[-1] = Cut(lsn=cuts[-1].lsn, time=max(cuts[-1].time, parent.end.time))
    for planned, snapshot in snapshots:
        capture = LayerCapture(
            last, planned, snapshot, parent.database(planned.database.name), run.read_first if ends.reads else ()
        )
        read_exactly(last, capture, capture.first_tables())
        capture_schema(last, capture, capture.parent)
        parts, own_files = _database(last, capture, parent, numbers[0], [cut.lsn for cut in cuts], reads=ends.reads)
        if not ends.due and (newest := parts[-1].window.newest_time) is not None:
            cuts[-1] = Cut(lsn=cuts[-1].lsn, time=max(cuts[-1].time, newest))
        for index, part in enumerate(parts):
            entries[index].append(capture.layer_entry(part, last=index == len(parts) - 1))
            files[index] += own_files[index]
    captured = Cut(lsn=max(s.lsn for _, s in snapshots), time=max(*(s.time for _, s in snapshots), cuts[-1].time))
    roles = globals_of(last)
    starts = [parent.end, *cuts[:-1]]
    return tuple(
        SealedLayer(
            kind="incremental",
            subdir=run.plan.subdir,
            number=number,
            due=cuts[index].time if ends.due else None,
            revision_history=run.plan.request.options.revision_history,
            start=starts[index],
            end=cuts[index],
            captured=captured,
            databases=tuple(entries[index]),
            files=tuple(files[index]),
            globals_dump=roles,
        )
        for index, number in enumerate(numbers)
    )


def _database(
    run: Run, capture: LayerCapture, parent: Manifest, first_number: int, ends: Sequence[Lsn], *, reads: bool
) -> tuple[list[LayerPart], list[list[DataFile]]]:
    """One database's parts of the layers, and their files."""
    log = LayerLog(_place(run, capture, parent), first_number, parent.end.lsn, ends)
    capture.read_shapes(parent.start.time)
    for oid, table in capture.continued.items():
        before = capture.shapes[oid]
        log.track([before], table, capture.entries[oid].since, told=before if oid in capture.chains else None)
    for oid, table in capture.born.items():
        log.track([], table, parent.end.lsn, told=capture.chains[oid].first)
    if capture.ddl_log is not None:
        log.follow_shapes(capture.ddl_log, capture.chains)
    _read_before_log(run, capture, reads=reads)
    late_start = capture.snapshot.lsn
    for table in capture.exact.values():
        if table.logged and late_start < ends[-1]:
            log.track([], table, late_start)
    run.progress.step(f"read the change log of {capture.name}")
    if capture.parent is not None:
        with peek(run.cluster.primary, capture.planned.protection, parent.end.lsn, ends[-1]) as messages:
            log.read(messages)
    run.reached("seal.after_window")
    late = capture.not_explained(log, run.cluster.primary)
    if reads:
        read_late(run, capture, late)
    capture.name_put_off(fingerprints=run.plan.request.options.fingerprint)
    left_out = {table.oid for table in late}
    for part in log.parts:
        part.leave_out(left_out)
    files = [part.files() for part in log.parts]
    if reads and late:
        after = follow_exact(run, capture, log.parts[-1].number, ends[-1], only=left_out)
        log.parts[-1].tables.update(after.tables)
        files[-1] += after.files()
    files[-1] += capture.exact_files
    if reads and run.plan.request.options.fingerprint and late_start == ends[-1]:
        compute_fingerprints(run, capture)
    return log.parts, files


def _read_before_log(run: Run, capture: LayerCapture, *, reads: bool) -> None:
    """Read what the log does not tell, as far as is known before it is read."""
    if reads:
        settle_keyless(run, capture)
        read_exactly(run, capture, capture.introduced())
    elif capture.puts_off:
        skip_keyless(run, capture)


def follow_exact(run: Run, capture: CapturedDatabase, number: int, end: Lsn, *, only: set[int] | None = None) -> LayerPart:
    """The changes between the snapshot and `end` of logged tables that were read under the snapshot."""
    start = capture.snapshot.lsn
    tables = [table for oid, table in capture.exact.items() if table.logged and (only is None or oid in only)]
    if not tables or start >= end:
        return LayerPart(number, start, end)
    log = LayerLog(
        LogPlace(
            data=run.data,
            storage=run.storage,
            subdir=run.plan.subdir,
            database=capture.name,
            database_oid=capture.planned.database.oid,
            last_commit=None,
            start_time=capture.snapshot.time,
            revisions=False,
            max_clock_skew=timedelta.max,
            tolerant=True,
            tier=run.tier,
        ),
        number,
        start,
        [end],
    )
    for table in tables:
        log.track([], table, start)
    with peek(run.cluster.primary, capture.planned.protection, start, end) as messages:
        log.read(messages)
    if log.reshaped:
        raise SnapshotTooOld("A table changed its columns at this very moment.")
    return log.parts[0]


def settle_keyless(run: Run, capture: LayerCapture) -> None:
    """Decide what happens to the tables whose changes the log does not tell: those that did not change since they were
    read keep their rows; the others are read again, or skipped."""
    skip_keyless(run, capture)
    for table in capture.readable_tables():
        if table.capture != "exact" or table.oid in capture.skipped:
            continue
        proof = fingerprint_of(run, capture, table)
        capture.fingerprints[table.oid] = proof
        before, shape = capture.entries.get(table.oid), capture.shapes.get(table.oid)
        known = before.fingerprint if before is not None and before.basis is not None else None
        same_shape = shape is not None and shape.fingerprint() == table.fingerprint()
        if known is not None and same_shape and (known.rows, known.hash) == (proof.rows, proof.hash):
            capture.unchanged.add(table.oid)


def skip_keyless(run: Run, capture: LayerCapture) -> None:
    """Leave out the tables without identity, if that is asked for."""
    if run.plan.request.options.without_identity != "skip":
        return
    skipped = [table for table in capture.readable_tables() if table.lacks_identity]
    capture.skipped = {table.oid for table in skipped}
    names = ", ".join(table.qualified for table in skipped)
    capture.omitted += (f"the rows of tables without identity ({names})",) if skipped else ()


def _place(run: Run, capture: LayerCapture, parent: Manifest) -> LogPlace:
    options = run.plan.request.options
    return LogPlace(
        data=run.data,
        storage=run.storage,
        subdir=run.plan.subdir,
        database=capture.name,
        database_oid=capture.planned.database.oid,
        last_commit=capture.parent.window.last_commit if capture.parent else None,
        start_time=parent.end.time,
        revisions=options.revision_history,
        max_clock_skew=parse_duration(options.max_clock_skew),
        latest=server_time(capture.snapshot.holder),
        # Where no time is asked for, and none can be later, a clock that was set does no harm.
        tolerant=not (options.revision_history or run.plan.ends),
        progress=run.progress,
        tier=run.tier,
        unseen=capture.unseen if capture.puts_off else frozenset(),
    )


def _at_number(run: Run, number: int) -> Run:
    return replace(run, plan=run.plan.model_copy(update={"number": number}))


def globals_of(run: Run) -> ObjectReference | None:
    """The roles and settings of the cluster, stored, if the backup is of a whole cluster."""
    if not isinstance(run.plan.request.target, ClusterTarget):
        return None
    path = globals_dump_path(run.plan.number)
    endpoint = run.cluster.primary
    return dump_globals(endpoint, endpoint.database, run.storage, object_key(run.plan.subdir, path), path)
