"""Everything around backups that people and schedules ask for: checks, index, sweep, expiry, protections, preflight."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from spanvault.backup.compact import Compaction
from spanvault.collection.chain import load_manifest, original_layers
from spanvault.collection.expire import expire
from spanvault.collection.identity import read_collection
from spanvault.collection.index import rebuild
from spanvault.collection.lookup import complete_subdirs, find_subdir, latest
from spanvault.collection.parts import missing_parts
from spanvault.collection.retention import Policy
from spanvault.collection.sweep import SAFE_AGE
from spanvault.collection.sweep import sweep as sweep_garbage
from spanvault.collection.windows import restorable_windows
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.preflight import examine
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.engine.ddl_logs import remove_ddl_log
from spanvault.engine.own_places import require_own_places
from spanvault.engine.protections import all_held, protection_table, release_all, release_expired, release_slot
from spanvault.engine.sound import require_sound
from spanvault.errors import BadInput, Damaged, Permanent, Retryable
from spanvault.model.cut import format_time
from spanvault.model.places import Places
from spanvault.model.result import Cell, DamagedInPart, Incomplete, Result
from spanvault.model.sentences import counted, few
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from spanvault.verify.files import check_files
from spanvault.verify.result import BACKUP_LEVELS, VerificationResult
from spanvault.verify.schema import check_schema

_OTHER_KEYS = " The others were looked at; for backups that these keys do not open, run it again with their own."


def collection_check(context: Context, uri: str, level: str, subdir: str | None = None) -> Result:
    """Check identity, index and every chain; at level `checksums` read every byte of every chain too, at `schema_only`
    restore the newest one's schema, at `verify_backup_table_data` read its rows as well. With `subdir` (a path or LATEST)
    check that backup only.

    Raises DamagedInPart when anything is wrong; Incomplete or Retryable when something could not be looked at, and why.
    """
    _require_level(level)
    require_own_places(context, uri)
    storage = context.storage(uri)
    if subdir is not None:
        found = find_subdir(storage, subdir)
        context.keyring(uri).require(found)
        results = [(found, _verified(context, uri, found, level))]
    else:
        results = [("collection", _collection_verified(context, uri))]
        deeper: Iterable[str] = ()
        if level != "check_files":
            deeper = complete_subdirs(storage) if level == "checksums" else [latest(storage)]
        results += [(each, _verified(context, uri, each, level)) for each in deeper if _opens(context, uri, each)]
    found_out = Result(
        columns=("checked", "level", "outcome", "objects", "bytes", "rows", "notes"),
        rows=tuple(_verification_row(name, result) for name, result in results),
    )
    for _, result in sorted(results, key=lambda pair: pair[1].outcome != "fail"):  # damage first
        try:
            result.require_pass()
        except Damaged as error:
            raise DamagedInPart(str(error), found_out) from None
        except Permanent as error:
            raise Incomplete(f"{error}{_way_out(context, uri) if subdir is None else ''}", found_out) from None
    return found_out


def _collection_verified(context: Context, uri: str) -> VerificationResult:
    """The check of the whole collection. Who gives keys is told which backups are not encrypted: they need none."""
    storage = context.storage(uri)
    checked = check_collection(storage, open_location=context.locations(uri), progress=context.progress)
    plain: list[str] = []
    if context.encryption.given:
        plain = [each for each in complete_subdirs(storage) if not context.keyring(uri).is_encrypted(each)]
    notes = (f"Not encrypted: {few(plain, 3)}.",) if plain else ()
    return checked.model_copy(update={"notes": (*checked.notes, *notes)})


def _opens(context: Context, uri: str, subdir: str) -> bool:
    """Whether what is given opens the chain; it need not be encrypted."""
    try:
        context.keyring(uri).unlock(subdir)
    except Permanent:
        return False
    return True


def _way_out(context: Context, uri: str) -> str:
    """What to do, if there are backups that what is given does not open."""
    return "" if all(_opens(context, uri, each) for each in complete_subdirs(context.storage(uri))) else _OTHER_KEYS


def validate_backup(context: Context, uri: str, subdir: str, *, level: str, number: int | None = None) -> str:
    """Validate one backup at one of BACKUP_LEVELS; its path. Raises as above.

    With `number` only that layer, as its own run does: a layer that is found damaged is marked invalid, so that nothing is
    built upon it nor restored from it.
    """
    _require_level(level)
    require_own_places(context, uri)
    storage = context.storage(uri)
    found = find_subdir(storage, subdir)
    context.keyring(uri).require(found)
    result = _verified(context, uri, found, level, number)
    require_sound(context, uri, found, number, result)
    layer = found if number is None else f"{found} layer {number}"
    read = f"{counted(result.objects, 'object')}, {counted(result.bytes, 'byte')}, {counted(result.rows, 'row')}"
    context.progress.note(f"{layer}: {level} passed, {read}.")
    return found


def restorable(context: Context, uri: str) -> Result:
    """From when to when each chain can be restored, oldest first as in SHOW BACKUPS: a row for each exact end, and for each
    interval in which any time will do. Raises Incomplete when chains cannot be read."""
    require_own_places(context, uri)
    storage = context.storage(uri)
    read_collection(storage)
    rows: list[tuple[Cell, ...]] = []
    problems: list[str] = []
    for subdir in sorted(complete_subdirs(storage)):
        try:
            layers = original_layers(storage, subdir, open_location=context.locations(uri))
        except Permanent as error:
            problems.append(str(error))
            continue
        rows += [
            (subdir, format_time(window.start.time), format_time(window.end.time), str(window.end.lsn), window.any_time)
            for window in restorable_windows(layers)
        ]
    found = Result(columns=("path", "restorable_from", "restorable_to", "to_position", "any_time"), rows=tuple(rows))
    return _complete(context, uri, found, problems)


def _complete(context: Context, uri: str, found: Result, problems: Iterable[str]) -> Result:
    """The result; raises Incomplete where there were problems, each named once."""
    sentences = " ".join(dict.fromkeys(problems))
    if sentences:
        raise Incomplete(f"{sentences}{_way_out(context, uri)}", found)
    return found


def compact_backups(context: Context, uri: str, subdir: str, *, first: int | None, number: int | None) -> Result:
    """Merge the layers `first` (default 1) to `number` (default the newest) of a chain into one; from 0 on it is a full.

    The source is not read, and the merged layers stay. Raises BadInput for layers that are not there.
    """
    storage = context.storage(uri)
    found = find_subdir(storage, subdir)
    context.keyring(uri).require(found)
    layers = original_layers(storage, found, open_location=context.locations(uri))
    begin, end = 1 if first is None else first, layers[-1].manifest.number if number is None else number
    if not 0 <= begin < end < len(layers):
        raise BadInput(
            f"The chain {layers[0].manifest.subdir} has the layers 0 to {len(layers) - 1}; layers {begin} to {end} of it cannot"
            " be merged."
        )
    digest = layers[begin - 1].sha256 if begin else None
    chosen = layers[begin : end + 1]
    merge = Compaction(
        storage, chosen, digest, scratch=context.settings.scratch_dir, progress=context.progress, clock=context.clock
    )
    made = merge.run()
    return Result(
        columns=("path", "first", "last", "kind", "rows", "bytes"),
        rows=((made.subdir, made.first, made.number, made.kind, made.totals.rows, made.totals.file_bytes),),
    )


def _require_level(level: str) -> None:
    if level not in BACKUP_LEVELS:
        raise BadInput(f"There is no level {level!r}; choose {', '.join(BACKUP_LEVELS[:-1])} or {BACKUP_LEVELS[-1]}.")


def _verified(context: Context, uri: str, subdir: str, level: str, number: int | None = None) -> VerificationResult:
    storage = context.storage(uri)
    scratch, progress = context.settings.scratch_dir, context.progress
    if level == "check_files":
        return check_files(storage, subdir, number, open_location=context.locations(uri), progress=progress)
    if level == "checksums":
        return check_data(storage, subdir, number, open_location=context.locations(uri), scratch=scratch, progress=progress)
    rows = level == "verify_backup_table_data"
    return check_schema(storage, subdir, rows=rows, open_location=context.locations(uri), scratch=scratch, progress=progress)


def _verification_row(name: str, result: VerificationResult) -> tuple[Cell, ...]:
    notes = " ".join(result.notes)
    return (name, result.level, result.outcome, result.objects, result.bytes, result.rows, notes)


def rebuild_index(context: Context, uri: str) -> Result:
    """Write the index anew. Raises Incomplete, after the rest is done, when manifests cannot be read or contradict it."""
    require_own_places(context, uri)
    counts = rebuild(context.storage(uri))
    troubles = [*counts.problems, *(f"The index entry {key} contradicts its manifest." for key in counts.differing)]
    found = Result(columns=("written", "kept", "removed"), rows=((counts.written, counts.kept, counts.removed),))
    return _complete(context, uri, found, troubles)


def sweep(context: Context, uri: str, *, dry_run: bool = True, older_than: timedelta = SAFE_AGE) -> Result:
    """Count garbage, and remove it unless `dry_run`. Raises Incomplete, after the rest is done, when backups cannot be read."""
    require_own_places(context, uri, deleting=True)
    report = sweep_garbage(
        context.storage(uri), now=context.clock(), older_than=older_than, dry_run=dry_run, open_location=context.locations(uri)
    )
    for problem in report.problems[report.unread :]:
        context.progress.note(problem)
    _tell_places(context, uri)
    row = (report.objects, report.bytes, report.unfinished, report.dry_run)
    found = Result(columns=("objects", "bytes", "unfinished_uploads", "dry_run"), rows=(row,))
    return _complete(context, uri, found, report.problems[: report.unread])


def _tell_places(context: Context, uri: str) -> None:
    """Say which localities have files of the collection at places that are not given."""
    storage, given = context.storage(uri), [tier for tier, _ in Places.parse(uri).others]
    lacking: set[str] = set()
    for subdir in complete_subdirs(storage):
        try:
            lacking.update(missing_parts(storage, load_manifest(storage, subdir)))
        except (Permanent, Retryable):
            continue  # what cannot be read is told by the sweep
    if names := sorted(lacking.difference(given)):
        seen = 1 + len(given)
        context.progress.note(
            f"{seen} of {seen + len(names)} places of the collection {'was' if seen == 1 else 'were'} looked at: the URIs of"
            f" {', '.join(names)} are not given, and what is garbage there is neither counted nor removed."
        )


def expire_backups(
    context: Context, uri: str, *, keep_last: int | None, window: timedelta | None, dry_run: bool = True
) -> Result:
    """Decide on each chain, and delete what expires unless `dry_run`; `decision` is expire, keep, or of what would expire
    locked, which object locks protect, or failed, which could not be deleted."""
    policy = Policy(keep_last=keep_last, window=window)
    require_own_places(context, uri, deleting=True)
    report = expire(context.storage(uri), policy, now=context.clock(), dry_run=dry_run, open_location=context.locations(uri))
    for problem in report.problems:
        context.progress.note(problem)
    stayed = {lock.subdir: ("locked", lock.reason) for lock in report.locked}
    stayed |= {chain.subdir: ("failed", chain.reason) for chain in report.undeleted}
    rows = tuple(
        (
            decision.chain.subdir,
            *stayed.get(decision.chain.subdir, ("expire" if decision.expire else "keep", decision.reason)),
            report.dry_run,
        )
        for decision in report.decisions
    )
    return Result(columns=("path", "decision", "reason", "dry_run"), rows=rows)


@translated("Listing the protections")
def protection_list(context: Context, cluster: Cluster) -> Result:
    """All protections of the cluster; those that have expired are released first."""
    release_expired(context, cluster)
    return protection_table(context, cluster, all_held(cluster))


@translated("Releasing the protection")
def protection_release(context: Context, cluster: Cluster, slot: str) -> Result:
    """Release one protection, and with it the possibility to add to its chains."""
    return protection_table(context, cluster, [release_slot(cluster, slot)])


@translated("Removing the protections")
def uninstall(context: Context, cluster: Cluster) -> Result:
    """Remove everything that Spanvault keeps on the cluster: slots, publications and DDL logs."""
    released = release_all(cluster)
    remove_ddl_log(context, cluster)
    return protection_table(context, cluster, released)


@translated("The preflight")
def preflight(context: Context, cluster: Cluster) -> Result:
    """All checks of the source, a row each; `status` is ok, warning or failed."""
    rows = tuple((check.name, check.status, check.detail, check.fix) for check in examine(cluster.primary))
    return Result(columns=("check", "status", "detail", "fix"), rows=rows)
