"""The last step of a restore: indexes and constraints, sequences, materialized views, statistics, and the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spanvault.database.postgres.archive import Entry, read_archive, restore_entries
from spanvault.database.postgres.finish import analyze, refresh_views, set_sequences, verify_rows
from spanvault.database.postgres.load import spread_anew
from spanvault.database.postgres.target import (
    Connection,
    Record,
    end_sessions,
    event_triggers_off,
    find_record,
    forget,
    one_at_a_time,
    role_names,
    set_state,
    tablespace_names,
    units_done,
    without_event_triggers,
)
from spanvault.errors import Busy, Refused, Retryable
from spanvault.model.schema import LARGE_OBJECT_LIST
from spanvault.model.sentences import few
from spanvault.restore.batches import table_of
from spanvault.restore.decide import present_in
from spanvault.restore.late_checks import late_checks, make_late_checks
from spanvault.restore.older_servers import made_apart, make_apart
from spanvault.restore.origin import SHOWN, AtCut
from spanvault.restore.plan import DatabaseRestore
from spanvault.restore.properties import restore_properties
from spanvault.restore.resume import begun_cuts
from spanvault.restore.role_names import missing_roles
from spanvault.restore.tablespaces import all_there
from spanvault.restore.work import Work, local_archive


def finish_restore(work: Work) -> int | None:
    """Complete every database of the plan, then forget the restore; how many rows came in, by all tries, or None where an
    earlier call has forgotten that. Harmless to repeat at any point, also when done.

    Raises Refused when a unit is missing, Damaged when a fingerprint differs, Permanent when an index or constraint
    cannot be made.
    """
    rows: int | None = 0
    for database in work.plan.databases:
        with work.connect(database.target) as connection, one_at_a_time(connection, work.plan.id):
            _quiet(database, connection)
            record = find_record(connection, work.plan.id)
            if record is not None and record.state != "finished":
                _finish(work, database, connection, record)
            if record is None or rows is None:
                rows = None
            else:
                rows += sum(units_done(connection, work.plan.id).values())
    # Only when all are finished: an earlier end would make a repeated statement take a finished one for a stranger's.
    for database in work.plan.databases:
        try:
            _forget(work, database)
        except Retryable:  # the answer may be lost of a commit that is done: failing now would leave the restore in its own way
            _forget(work, database)
    return rows


def _forget(work: Work, database: DatabaseRestore) -> None:
    with work.connect(database.target) as connection:
        _quiet(database, connection)
        forget(connection, work.plan.id)


def _quiet(database: DatabaseRestore, connection: Connection) -> None:
    if database.whole:  # into a database with event triggers of its own, objects come like any others
        without_event_triggers(connection)


def _finish(work: Work, database: DatabaseRestore, connection: Connection, record: Record) -> None:
    _check_units(work, database, connection)
    with local_archive(work.storage, work.manifest, database.source, work.scratch) as archive:
        archived = read_archive(archive, owners=work.plan.grants)
        by_id = {entry.id: entry for entry in archived}
        entries = [by_id[number] for number in record.entries]
        _post_data(work, database, connection, record, archive, entries)
    source = work.source(database.source)
    made = {(entry.kind, entry.schema, entry.name) for entry in entries}
    if work.plan.loads:
        cuts = begun_cuts(connection, work.plan.id)
        for note in make_late_checks(connection, late_checks(entries, cuts), entries):
            work.progress.note(note)
        work.progress.step(f"sequences and views of {database.target}")
        sequences = [
            one
            for one in source.sequences
            if (one.extension and database.whole) or ("SEQUENCE", one.schema_name, one.name) in made
        ]
        set_sequences(connection, sequences)
        populated = {(view.schema_name, view.name) for view in source.views if view.materialized and view.populated}
        views = [(entry.schema or "", entry.name) for entry in entries if entry.kind == "MATERIALIZED VIEW"]
        for note in refresh_views(connection, [view for view in views if view in populated]):
            work.progress.note(note)
        work.progress.step(f"statistics of {database.target}")
        for note in analyze(connection, _measured(entries)):
            work.progress.note(note)
        _verify(work, database, connection)
    if database.whole:
        roles = role_names(connection)
        for note in restore_properties(connection, archived, database.target, roles, grants=work.plan.grants):
            work.progress.note(note)
    set_state(connection, work.plan.id, "finished")


def _measured(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Tables to collect statistics of: a partitioned table stands for its partitions. Foreign tables are left out, whose
    servers may be far away, and what they are partitions or children of, for that is measured with them."""
    by_id = {entry.id: entry for entry in entries}
    attached = [entry for entry in entries if entry.kind == "TABLE ATTACH"]
    far = {entry.id for entry in entries if entry.kind == "FOREIGN TABLE"}
    above = {number for entry in entries if entry.id in far for number in entry.depends}
    before = -1
    while len(above) != before:
        before = len(above)
        above |= {number for one in attached if (far | above) & set(one.depends) & _named(one, by_id) for number in one.depends}
    partitions = {(one.schema, one.name) for one in attached if not above & set(one.depends) - _named(one, by_id)}
    tables = (one for one in entries if one.kind in {"TABLE", "MATERIALIZED VIEW"} and one.id not in above)
    return [(one.schema or "", one.name) for one in tables if (one.schema, one.name) not in partitions]


def _named(attached: Entry, by_id: Mapping[int, Entry]) -> set[int]:
    """The partition itself among what its attachment depends on."""
    tables = (by_id[number] for number in attached.depends if number in by_id)
    return {one.id for one in tables if (one.schema, one.name) == (attached.schema, attached.name)}


def _check_units(work: Work, database: DatabaseRestore, connection: Connection) -> None:
    if not work.plan.loads:
        return
    done = units_done(connection, work.plan.id)
    units = [unit for batch in work.plan.batches for unit in batch.units if unit.database == database.source]
    missing = [unit for unit in units if unit.id not in done]
    if missing:
        table = table_of(work.manifest, missing[0].database, missing[0].table_oid)
        raise Refused(
            f"{len(missing)} of {len(units)} parts are not loaded yet, among them rows of {table.qualified}; load all batches"
            " before the restore is finished."
        )


def _post_data(
    work: Work, database: DatabaseRestore, connection: Connection, record: Record, archive: Path, entries: Sequence[Entry]
) -> None:
    wanted = [entry for entry in entries if entry.section == "post-data"]
    work.progress.step(f"indexes and constraints of {database.target}", total_units=len(wanted))
    if record.state == "finishing":  # an earlier try made some of them
        end_sessions(connection, work.finishing)
        wanted = _absent(work, database, wanted)
    set_state(connection, work.plan.id, "finishing")
    try:
        _make_entries(work, database, connection, archive, wanted, jobs=work.plan.request.options.workers)
    except Busy:
        _make_entries(work, database, connection, archive, _absent(work, database, wanted), jobs=1)


def _absent(work: Work, database: DatabaseRestore, wanted: Sequence[Entry]) -> list[Entry]:
    present = present_in(work, database.target)
    return [entry for entry in wanted if entry.identity not in present]


def _make_entries(
    work: Work, database: DatabaseRestore, connection: Connection, archive: Path, wanted: Sequence[Entry], *, jobs: int
) -> None:
    if not wanted:
        return
    apart = made_apart(connection, wanted)
    restore_entries(
        work.cluster.primary,
        database.target,
        archive,
        [entry for entry in wanted if entry not in apart],
        section="post-data",
        jobs=jobs,
        # pg_restore sets owners of all or of none: statistics and the like then belong to the role that restores.
        with_grants=work.plan.grants and not missing_roles(wanted, role_names(connection)),
        with_tablespaces=all_there(wanted, tablespace_names(connection)),
        purpose=work.finishing,
        # After a deadlock, or an earlier try, event triggers are there before the rest.
        settings=event_triggers_off(connection) if database.whole else {},
        scratch=work.scratch,
    )
    make_apart(connection, apart)
    work.progress.advance(units=len(wanted))


def _verify(work: Work, database: DatabaseRestore, connection: Connection) -> None:
    if not work.plan.request.options.verify_fingerprint:
        return
    at_cut = AtCut(work.resolved)
    known = {oid: at_cut.fingerprint((database.source, oid)) for oid in database.tables}
    work.progress.step(f"fingerprints of {database.target}", total_units=sum(one is not None for one in known.values()))
    without: list[str] = []
    spread: list[str] = []
    for oid, fingerprint in known.items():
        table = table_of(work.manifest, database.source, oid)
        if oid == LARGE_OBJECT_LIST and not work.plan.grants:
            continue  # owners and privileges are part of it
        if table.is_partition and spread_anew(connection, table.schema_name, table.name):
            spread.append(table.qualified)
        elif fingerprint is None:
            without.append(table.qualified)
        else:
            verify_rows(connection, table, fingerprint)
            work.progress.advance(units=1)
    if spread:
        work.progress.note(
            "Not compared, because a hash of their key is another in every database, so that rows may have moved to another"
            f" partition: {few(sorted(spread), SHOWN)}."
        )
    if without:
        work.progress.note(
            f"Not compared, because the backup has no fingerprint of their rows as of {work.plan.cut}:"
            f" {few(sorted(without), SHOWN)}."
        )
