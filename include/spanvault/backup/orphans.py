"""Rows whose large values the log left out: read from the source by key, under the seal's snapshot."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from psycopg import RawCursor

from spanvault.backup.change_files import ChangeRow
from spanvault.backup.changelog import ChangeLog
from spanvault.backup.changes import Entry, Key, TableChanges
from spanvault.backup.context import Run
from spanvault.backup.live_table import SnapshotTooOld
from spanvault.backup.reading import reading
from spanvault.backup.sealing import DatabaseSeal
from spanvault.database.postgres.pgoutput import EPOCH, Change, Unchanged, Value
from spanvault.database.postgres.quoting import qualified, quote
from spanvault.database.postgres.server import Connection
from spanvault.errors import StateUnknown

_BATCH_KEYS = 1000


def read_orphans(run: Run, entry: DatabaseSeal) -> None:
    """Read every row that ends the window with values missing, and write them as the newest changes."""
    for changes in entry.healed():
        if not changes.open_holes:
            continue
        # After every change of the window, and before those of a following one; each in a place of its own.
        lsn, time, sequence = entry.snapshot.lsn, _microseconds(entry), entry.changes.window.changes * 2 + 2
        found = 0
        with reading(run, entry, changes.table) as session:
            for keys in _parts(changes.open_holes):
                rows = read_by_key(session, changes, keys)
                places = (Change(lsn, 0, time, sequence + number) for number in itertools.count(found))
                written = [ChangeRow("U", place, values) for place, values in zip(places, rows.values(), strict=False)]
                entry.changes.write(changes, written)
                found += len(rows)
        if found != len(changes.open_holes):
            raise StateUnknown(
                f"{len(changes.open_holes) - found} rows of {changes.table.qualified} are in the change log and not in the "
                "table at the cut; the backup was not committed. Please report this."
            )


def follow(run: Run, entry: DatabaseSeal, small: ChangeLog, chunks: Mapping[int, dict[Key, Entry]]) -> None:
    """Add a short window after the snapshot; missing values come from the snapshot, by the key each row had then."""
    for oid, changes in small.tables.items():
        counted = entry.changes.tables[oid]
        if changes.shape_changed:
            raise SnapshotTooOld(f"The table {changes.table.qualified} changed its columns at this very moment.")
        if changes.truncated:
            counted.truncate(Change(0, 0, 0, 0))
        chunk = chunks.get(oid)
        if changes.truncated or chunk:
            entry.fingerprints.pop(oid, None)
        if chunk:
            _fill(run, entry, changes, chunk)
            entry.changes.write(counted, list(changes.rows(chunk)))


def _fill(run: Run, entry: DatabaseSeal, changes: TableChanges, chunk: dict[Key, Entry]) -> None:
    holes = {key: item for key, item in chunk.items() if item.source_key is not None}
    if not holes:
        return
    with reading(run, entry, changes.table) as session:
        for keys in _parts(holes):
            sources = [source for key in keys if (source := holes[key].source_key) is not None]
            rows = read_by_key(session, changes, sources)
            for key in keys:
                chunk[key] = _filled(changes, holes[key], rows)


def _filled(changes: TableChanges, hole: Entry, rows: Mapping[Key, list[Value]]) -> Entry:
    known = rows.get(hole.source_key) if hole.source_key is not None else None
    if known is None:
        raise StateUnknown(f"A row of {changes.table.qualified} is in the change log and not at the cut; please report this.")
    new_values = changes.values(hole)
    values: list[Value] = [old if isinstance(new, Unchanged) else new for new, old in zip(new_values, known, strict=True)]
    return Entry("U", hole.change, values)


def read_by_key(connection: Connection, changes: TableChanges, keys: Iterable[Key]) -> dict[Key, list[Value]]:
    """The rows with these keys under the session's snapshot, as the text that PostgreSQL prints for every value.

    Values are taken from the result as they came: a cast to text would print some types differently (char, boolean).
    """
    table = changes.table
    names = changes.key_columns()
    by_name = {column.name: column for column in table.data_columns}
    arrays = [[part.decode() if part is not None else None for part in parts] for parts in zip(*keys, strict=True)]
    aliases = [f"k{index}" for index in range(len(names))]
    conditions = [f"t.{quote(name)} = k.{alias}::{by_name[name].type_name}" for name, alias in zip(names, aliases, strict=True)]
    arguments = ", ".join(f"pg_catalog.unnest(${number}::text[])" for number in range(1, len(names) + 1))
    query = (
        f"SELECT {', '.join('t.' + quote(column.name) for column in table.data_columns)}"
        f" FROM ROWS FROM ({arguments}) AS k({', '.join(aliases)})"
        f" JOIN ONLY {qualified(table.schema_name, table.name)} AS t ON {' AND '.join(conditions)}"
    )
    cursor = RawCursor(connection).execute(query.encode(), arrays)
    result = cursor.pgresult
    if result is None:
        return {}
    wanted = set(keys)
    width = len(table.data_columns)
    rows: dict[Key, list[Value]] = {}
    for row in range(result.ntuples):
        values: list[Value] = [result.get_value(row, column) for column in range(width)]
        key = changes.key_of(values)
        if key in wanted:  # equality of a type may be wider than equality of its text
            rows[key] = values
    return rows


def _microseconds(entry: DatabaseSeal) -> int:
    return int((entry.newest_commit() - EPOCH).total_seconds() * 1_000_000)


def _parts(keys: Iterable[Key]) -> Iterator[list[Key]]:
    iterator = iter(list(keys))
    while part := list(islice(iterator, _BATCH_KEYS)):
        yield part
