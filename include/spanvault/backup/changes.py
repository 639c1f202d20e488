"""The newest change of every key of one table in a window, gathered with bounded memory.

Changes are kept as undecoded messages by key; only what survives a chunk is decoded and written to a change file.
Values of TOASTed columns that an UPDATE left alone are not in the log. They come, in this order, from an earlier change
of the *same row* in the chunk (followed through changes of its key: never from whatever row has that key), or from the
source itself, read by key under the snapshot at the cut (`open_holes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spanvault.backup.change_files import ChangeRow
from spanvault.database.postgres.pgoutput import (
    UNCHANGED,
    Change,
    Unchanged,
    Value,
    has_unchanged,
    key_parts,
    tuple_values,
)
from spanvault.database.postgres.tuple_columns import RawTuple
from spanvault.errors import Retryable
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table

Key = tuple[bytes | None, ...]

_ENTRY_OVERHEAD = 400  # bytes of Python objects around a kept message, measured roughly
_MAX_OPEN_HOLES = 2_000_000


class Entry(NamedTuple):
    """The newest change of a key. `payload` is None when the row is gone, the message (tuple at `at`), or the values
    when some had to be filled in. `source_key`: where the row was when its chunk began, if values are still missing."""

    operation: str
    change: Change
    payload: bytes | list[Value] | None
    at: int = 0
    source_key: Key | None = None


class TableChanges:
    """One table's side of a window; a `pgoutput.TableSink`.

    `on_growth` is called with the bytes that each change adds, so that the owner can flush in time. After the window:
    `files` are the change files that count; `truncated` voids every base row; `shape_changed` says that the log's
    columns were not the planned ones (the table must be read anew); `open_holes` are the keys whose newest row lacks
    values.
    """

    def __init__(self, table: Table, on_growth: Callable[[int], None]) -> None:
        self.table = table
        self.entries: dict[Key, Entry] = {}
        self.open_holes: set[Key] = set()
        self.truncated = False
        self.shape_changed = False
        self.files: list[DataFile] = []
        self._on_growth = on_growth
        self._columns = [column.name for column in table.data_columns]
        place = {column.attnum: index for index, column in enumerate(table.data_columns)}
        self._key_order = tuple(place[attnum] for attnum in table.key)
        self._positions = tuple(sorted(self._key_order))
        whole_row = table.replica_identity == "f"
        self._identity = set(range(len(self._columns))) if whole_row else set(self._key_order)

    def relation(self, columns: list[str], identity: set[int]) -> None:
        """Columns are matched by place: names may have changed and changed back, attnums of an unchanged shape not.

        Under another replica identity, for a while, old keys were logged by other columns or not at all.
        """
        if len(columns) != len(self._columns) or identity != self._identity:
            self.shape_changed = True

    def insert(self, message: bytes, at: int, change: Change) -> None:
        """A new row: complete by nature."""
        self._put(self._key(message, at), Entry("I", change, message, at), len(message))

    def update(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        """A changed row, perhaps under a new key, perhaps with values left out."""
        parts = key_parts(message, at, self._positions)
        old_parts = key_parts(message, old_at, self._positions) if old_at else parts
        if None in parts:  # a TOASTed key column that did not change stands in the old key only
            parts = tuple(new if new is not None else old for new, old in zip(parts, old_parts, strict=True))
        prior = self.entries.get(old_parts)
        if old_parts != parts:
            self._put(old_parts, Entry("D", change, None), 0)
            change = Change(change.lsn, change.xid, change.time, change.sequence + 1)
        if has_unchanged(message, at):
            old_values = tuple_values(message, old_at) if old_at else []
            self._put(parts, self._filled(tuple_values(message, at), old_values, prior, old_parts, change), len(message))
        else:
            self._put(parts, Entry("U", change, message, at), len(message))

    def delete(self, message: bytes, at: int, change: Change) -> None:
        """The row of that key is gone."""
        self._put(self._key(message, at), Entry("D", change, None), 0)

    def truncate(self, change: Change) -> None:
        """Everything before counts no more, base rows and finished chunks included."""
        self.entries.clear()
        self.open_holes.clear()
        self.files.clear()
        self.truncated = True

    def _key(self, message: bytes, at: int) -> Key:
        return key_parts(message, at, self._positions)

    def _put(self, key: Key, entry: Entry, size: int) -> None:
        if key not in self.entries:
            size += _ENTRY_OVERHEAD
        self.entries[key] = entry
        self._on_growth(size)

    def _filled(
        self, values: list[Value], old_values: Sequence[Value], prior: Entry | None, old_key: Key, change: Change
    ) -> Entry:
        """The new values with what the old row (REPLICA IDENTITY FULL) or an earlier change of this row can give."""
        known = self.values(prior) if prior is not None and prior.payload is not None else []
        for place, value in enumerate(values):
            if value is not UNCHANGED:
                continue
            for source in (old_values, known):
                # The old key's tuple has NULL at every other column: a value counts only where it is text.
                if place < len(source) and isinstance(source[place], bytes):
                    values[place] = source[place]
                    break
        if not any(isinstance(value, Unchanged) for value in values):
            return Entry("U", change, values)
        source_key = prior.source_key if prior is not None and prior.source_key is not None else old_key
        return Entry("U", change, values, source_key=source_key)

    def values(self, entry: Entry) -> list[Value]:
        """The values of an entry that is not a deletion, in data column order."""
        if isinstance(entry.payload, bytes):
            return tuple_values(entry.payload, entry.at)
        return list(entry.payload or [])

    def take(self) -> dict[Key, Entry]:
        """End the chunk: hand over its entries and remember which of their rows lack values."""
        chunk, self.entries = self.entries, {}
        for key, entry in chunk.items():
            if entry.source_key is None:
                self.open_holes.discard(key)
            else:
                self.open_holes.add(key)
        if len(self.open_holes) > _MAX_OPEN_HOLES:
            raise Retryable(
                f"More than {_MAX_OPEN_HOLES} rows of {self.table.qualified} with large values were updated during the"
                " backup; run it again when fewer are."
            )
        return chunk

    def rows(self, chunk: dict[Key, Entry]) -> Iterator[ChangeRow]:
        """Each complete entry of a chunk with its values; of a deletion only the key's are set. Rows that lack values
        are left out: they are in `open_holes`, and a later change or a read at the cut gives them whole."""
        width = len(self._columns)
        for key, entry in chunk.items():
            if entry.source_key is not None:
                continue
            if entry.payload is None:
                values: list[Value] = [None] * width
                yield ChangeRow(entry.operation, entry.change, self.with_key(values, key))
            elif isinstance(entry.payload, bytes):
                yield ChangeRow(entry.operation, entry.change, RawTuple(entry.payload, entry.at))
            else:
                yield ChangeRow(entry.operation, entry.change, self.with_key(self.values(entry), key))

    def with_key(self, values: list[Value], key: Key) -> list[Value]:
        """`values` with the key's columns set from `key` (which is in order of place)."""
        for place, part in zip(self._positions, key, strict=True):
            values[place] = part
        return values

    def key_of(self, values: Sequence[Value]) -> Key:
        """The key in a row's values."""
        return tuple(part if isinstance(part := values[place], bytes) else None for place in self._positions)

    def key_columns(self) -> list[str]:
        """The key's column names in the order of `Key`."""
        return [self._columns[place] for place in self._positions]
