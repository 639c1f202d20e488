"""Reading tables whole under a seal's snapshot: what the change log cannot heal."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from spanvault.backup.captured import CapturedDatabase
from spanvault.backup.context import Run
from spanvault.backup.live_table import SnapshotTooOld
from spanvault.backup.plan import slices_of
from spanvault.backup.reading import check_readable, reading
from spanvault.backup.span_files import data_file
from spanvault.collection.layout import data_path, object_key
from spanvault.database.postgres.connect import connection_parameters
from spanvault.database.postgres.copy_out import CopySession, export_query
from spanvault.database.postgres.quoting import literal
from spanvault.database.postgres.rows import rows_fingerprint_sql, select_slice
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Fingerprint, Table
from spanvault.model.sentences import counted


def read_exactly(run: Run, entry: CapturedDatabase, tables: Sequence[Table]) -> None:
    """Read these tables under the snapshot, in slices, by several sessions at once.

    Raises SnapshotTooOld when one was rewritten or dropped after the snapshot: it would read as empty.
    """
    if not tables:
        return
    run.progress.step(
        f"read {counted(len(tables), 'table')} of {entry.name} at the cut", total_bytes=sum(t.bytes for t in tables)
    )
    options = run.plan.request.options
    work = [(table, first, end) for table in tables for first, end in slices_of(table, options.span_bytes)]
    with ThreadPoolExecutor(options.workers) as pool:
        files = list(pool.map(lambda item: _read_slice(run, entry, *item), work))
    for table in tables:
        entry.add_exact(table, (file for file in files if file.table_oid == table.oid))


def read_late(run: Run, entry: CapturedDatabase, tables: Sequence[Table]) -> None:
    """Read these tables under a snapshot that is as old as the log took to read; raises what read_exactly raises."""
    run.read_first.update((entry.name, table.oid) for table in tables)
    read_exactly(run, entry, tables)


def _read_slice(run: Run, entry: CapturedDatabase, table: Table, first_page: int, end_page: int | None) -> DataFile:
    path = data_path(run.plan.number, run.tier)
    with CopySession(connection_parameters(run.cluster.primary, entry.name, "seal")) as session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        session.execute(f"SET TRANSACTION SNAPSHOT {literal(entry.snapshot.name)}")
        live = check_readable(session, run, entry.name, table)
        query = select_slice(live, first_page, end_page)
        written = export_query(session, query, table, run.data, object_key(run.plan.subdir, path))
        session.execute("COMMIT")
    run.progress.advance(rows=written.rows, bytes_=written.bytes)
    return data_file(path, written, entry.name, table, role="exact", as_of=entry.snapshot.lsn, tier=run.tier)


def compute_fingerprints(run: Run, entry: CapturedDatabase, *, whole_only: bool = False) -> None:
    """Let PostgreSQL count and hash every table under the snapshot, several at once; or only those that whole databases
    alone have, whose next layer then need not read them again.

    A table that is rewritten or truncated before its turn comes makes the seal start over once; from then on such tables
    have none: hashing a large database takes so long that every try would meet one.
    """
    wanted = (table for table in entry.readable_tables() if table.whole_only or not whole_only)
    tables = sorted(wanted, key=lambda table: table.oid not in entry.read_first)
    if not tables:
        return
    run.progress.step(f"fingerprint {entry.name}", total_units=len(tables))
    with ThreadPoolExecutor(run.plan.request.options.workers) as pool:
        for table, fingerprint in zip(tables, pool.map(lambda table: _if_readable(run, entry, table), tables), strict=True):
            if fingerprint is not None:
                entry.fingerprints[table.oid] = fingerprint
            run.progress.advance(units=1)


def _if_readable(run: Run, entry: CapturedDatabase, table: Table) -> Fingerprint | None:
    try:
        return fingerprint_of(run, entry, table)
    except SnapshotTooOld as error:
        if not entry.read_first:
            raise
        run.progress.note(f"{error} The backup has its rows, and no fingerprint of them.")
        return None


def fingerprint_of(run: Run, entry: CapturedDatabase, table: Table) -> Fingerprint:
    """PostgreSQL's count and hash of a table under the snapshot."""
    with reading(run, entry, table) as session:
        rows, digest = session.execute(rows_fingerprint_sql(table).encode()).fetchone() or (0, "0")
    return Fingerprint(rows=rows, hash=digest, lsn=entry.snapshot.lsn)
