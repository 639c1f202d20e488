"""One table's side of an incremental layer: its changes, in the columns of the layer's shape.

The log leaves out the values of TOASTed columns that an UPDATE did not touch. They come from the old row where the log
has it (REPLICA IDENTITY FULL), else from an earlier change of the *same row* in the segment, followed through changes of
its key; else the row says which columns it lacks and which key it had when the segment began (`_unchanged`,
`_source_key`), and whoever reads the chain finds them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spanvault.backup.change_files import ChangeRow
from spanvault.backup.relation_map import RelationMap
from spanvault.database.postgres.pgoutput import UNCHANGED, Change, Unchanged, Value, has_unchanged, key_parts
from spanvault.database.postgres.tuple_columns import RawTuple
from spanvault.model.schema import Table

Key = tuple[bytes | None, ...]

_ROW_OVERHEAD = 500  # bytes of Python objects around a kept change, measured roughly


class Row(NamedTuple):
    """A change that is kept. `payload`: None when the row is gone, the message (its tuple at `at`, its columns as `places`
    tell), or the values where some had to be filled in. `source_key`: where the row was when its segment began, if
    values are missing."""

    operation: str
    change: Change
    key: Key
    payload: bytes | list[Value] | None = None
    at: int = 0
    places: tuple[int, ...] | None = None
    old_key: Key | None = None
    source_key: Key | None = None


class LayerChanges:
    """Gathers a table's changes; a `pgoutput.TableSink`.

    `known` are the table's shapes before, newest last, and `told` the one that the log begins with, if the DDL log says so
    (`reshape` tells the next); `table` is the one that is written. Changes before `since` are not
    looked at: the rows that the layer builds on are younger. With `revisions` every change is kept, else the last of each
    key. `reshaped` says that the log's columns could not be told apart: the table must be read anew.
    """

    def __init__(
        self,
        known: Sequence[Table],
        table: Table,
        since: int,
        *,
        revisions: bool,
        on_growth: Callable[[int], None],
        told: Table | None = None,
    ) -> None:
        self.table = table
        self.reshaped = False
        self.truncated = False
        self.changes = self.rows_added = 0
        self._since = since
        self._on_growth = on_growth
        self._counted = table.capture == "count"
        self._revisions = revisions or self._counted
        self._map = RelationMap(known, table, told)
        self._columns = table.data_columns
        place = {column.attnum: index for index, column in enumerate(self._columns)}
        self._key_places = () if self._counted else tuple(place[attnum] for attnum in table.key)
        self._newest: dict[Key, Row] = {}
        self._kept: list[Row] = []
        self._truncation: Change | None = None

    def reshape(self, shape: Table) -> None:
        """The DDL log says that the tuples that follow have this shape."""
        self._map.take(shape)

    def relation(self, columns: list[str], identity: set[int]) -> None:
        """The columns of the tuples that follow."""
        if not self._map.use(columns, identity):
            self.reshaped = True

    def insert(self, message: bytes, at: int, change: Change) -> None:
        """A new row: complete by nature."""
        if self._passes_over(change):
            return
        self.rows_added += 1
        self._put(Row("I", change, self._key(message, at), message, at, self._map.places), len(message))

    def update(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        """A changed row, perhaps under a new key, perhaps with values left out."""
        if self._passes_over(change):
            return
        if self._counted:
            self._replace(message, old_at, at, change)
            return
        key = self._key(message, at)
        old_key = self._key(message, old_at) if old_at else key
        if None in key:  # a TOASTed key column that did not change stands in the old key only
            key = tuple(new if new is not None else old for new, old in zip(key, old_key, strict=True))
        prior = self._newest.get(old_key)
        moved_from = None
        if old_key != key:
            moved_from = old_key
            self._put(Row("D", change, old_key), 0)
            change = Change(change.lsn, change.xid, change.time, change.sequence + 1)
        if has_unchanged(message, at):
            values = self._map.values(message, at)
            for place, part in zip(self._key_places, key, strict=True):
                values[place] = part
            old_values = self._map.values(message, old_at) if old_at else []
            source = self._fill(values, old_values, prior, old_key)
            self._put(Row("U", change, key, values, old_key=moved_from, source_key=source), len(message))
        else:
            self._put(Row("U", change, key, message, at, self._map.places, moved_from), len(message))

    def delete(self, message: bytes, at: int, change: Change) -> None:
        """A row is gone."""
        if self._passes_over(change):
            return
        self.rows_added -= 1
        if self._counted:
            self._put(Row("D", change, (), message, at, self._map.places), len(message))
        else:
            self._put(Row("D", change, self._key(message, at)), 0)

    def truncate(self, change: Change) -> None:
        """All rows are gone. What came before counts no more, except as a revision."""
        if change.lsn < self._since:
            return
        self.truncated = True
        self.changes += 1
        self.rows_added = 0
        self._newest.clear()
        if self._revisions:
            self._kept.append(Row("T", change, ()))
        else:
            self._truncation = change
        self._on_growth(_ROW_OVERHEAD)

    def _passes_over(self, change: Change) -> bool:
        if change.lsn < self._since or self.reshaped:
            return True
        self.changes += 1
        return False

    def _replace(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        """An update of a row that is counted: one copy of the old row less, one of the new row more."""
        old_values = self._map.values(message, old_at)
        values = self._map.values(message, at)
        values = [old if new is UNCHANGED else new for new, old in zip(values, old_values, strict=True)]
        self._put(Row("D", change, (), old_values), len(message))
        later = Change(change.lsn, change.xid, change.time, change.sequence + 1)
        self._put(Row("I", later, (), values), len(message))

    def _fill(self, values: list[Value], old_values: Sequence[Value], prior: Row | None, old_key: Key) -> Key | None:
        """Fill in what the old row or an earlier change of this row can give; the source of what is still missing."""
        known = self._values(prior) if prior is not None and prior.payload is not None else []
        for place, value in enumerate(values):
            if value is not UNCHANGED:
                continue
            for source in (old_values, known):
                # The old key's tuple has NULL at every other column: a value counts only where it is text.
                if place < len(source) and isinstance(source[place], bytes):
                    values[place] = source[place]
                    break
        if not any(value is UNCHANGED for value in values):
            return None
        return prior.source_key if prior is not None and prior.source_key is not None else old_key

    def _key(self, message: bytes, at: int) -> Key:
        if self._counted:
            return ()
        places = self._map.key_places
        parts = key_parts(message, at, places.ascending)
        return tuple(parts[index] for index in places.order)

    def _put(self, row: Row, size: int) -> None:
        if not self._counted:
            self._newest[row.key] = row
        if self._revisions:
            self._kept.append(row)
        self._on_growth(size + _ROW_OVERHEAD)

    def _values(self, row: Row) -> list[Value]:
        if isinstance(row.payload, bytes):
            return self._map.values_by(row.payload, row.at, row.places)
        return list(row.payload or [])

    def take(self) -> Iterator[ChangeRow]:
        """End the segment: its rows in the order in which they are to be written."""
        rows, newest, truncation = self._kept, self._newest, self._truncation
        self._kept, self._newest, self._truncation = [], {}, None
        if truncation is not None:
            yield self._written(Row("T", truncation, ()))
        for row in rows if self._revisions else newest.values():
            yield self._written(row)

    @property
    def pending(self) -> bool:
        """Whether a segment would hold anything."""
        return bool(self._kept or self._newest or self._truncation)

    @property
    def voids_earlier_segments(self) -> bool:
        """Whether the segment begins with a TRUNCATE and no cut before it can be asked for."""
        return self._truncation is not None

    def _written(self, row: Row) -> ChangeRow:
        if isinstance(row.payload, bytes) and row.places is None:
            # All values are there and in place: they are told apart later, many at once.
            return ChangeRow(row.operation, row.change, RawTuple(row.payload, row.at), row.old_key)
        values: list[Value] = self._values(row) if row.payload is not None else [None] * len(self._columns)
        for place, part in zip(self._key_places, row.key, strict=False):
            values[place] = part
        unchanged = None
        if row.source_key is not None:
            missing = [place for place, value in enumerate(values) if isinstance(value, Unchanged)]
            unchanged = [self._columns[place].stored_as for place in missing]
            for place in missing:
                values[place] = None
        return ChangeRow(row.operation, row.change, values, row.old_key, unchanged, row.source_key)
