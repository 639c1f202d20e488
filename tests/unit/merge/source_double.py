"""A table that plays random changes, and the log of them as a backup's writer puts it into layers.

It keeps the true rows, so it knows every state without any merge. Values that an update leaves alone go missing from the
change rows as they do in PostgreSQL's log: unless a change of the same row in the same segment had them.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanvault.model.schema import Column, Table
from tests.unit.merge.history_kit import Change, History, TextRow, column, table

Key = tuple[int, str]
KEYS: tuple[Key, ...] = tuple((number, part) for number in range(4) for part in ("a", "A"))
FIRST = (
    column(1, "id", "int8", 20),
    column(2, "part"),
    column(3, "big"),
    column(4, "n", "int4", 23),
    column(5, "Big", "bytea", 17),
)


@dataclass
class _Row:
    """`known`: attnums whose values stand in the segment; `origin`: the row's key when the segment began, None if it was
    not there."""

    values: dict[int, Any]
    known: set[int]
    origin: Key | None


@dataclass
class Source:
    """Plays one history. `states` are pairs of a cut and the rows there, ascending; all cuts that the last layer has."""

    root: Path
    chance: random.Random
    columns: tuple[Column, ...] = FIRST
    rows: dict[Key, _Row] = field(default_factory=dict)
    lsn: int = 100
    seq: int = 0
    segment: list[Change] = field(default_factory=list)
    revisions: bool = False
    holes: bool = False

    def __post_init__(self) -> None:
        for key in self.chance.sample(KEYS, 5):
            self.rows[key] = _Row(self._values(key), set(), key)
        self.history = History(self.root, self.shape)
        items = [self._stored(row) for row in self.rows.values()]
        self.history.base(items[:2], text=self._text())
        self.history.base(items[2:], text=self._text())
        self.states: list[tuple[int, Counter[TextRow]]] = []

    @property
    def shape(self) -> Table:
        return table(*self.columns, key=(2, 1))

    def play(self, layers: int) -> None:
        """Changes during the full backup, then so many layers; the last with revision history."""
        self._layer(revisions=False, holes=False)
        for number in range(layers):
            self._alter()
            self.history.layer(self.shape)
            last = number == layers - 1
            if last:
                self.states = [(self.lsn + 1, self._state())]
            self._layer(revisions=last or self.chance.random() < 0.4, holes=True)

    def _layer(self, *, revisions: bool, holes: bool) -> None:
        self.revisions, self.holes, self.seq = revisions, holes, 0
        for _ in range(self.chance.randrange(9)):
            self.lsn += 10
            self.chance.choices(
                [self._insert, self._update, self._rekey, self._delete, self._swap, self._truncate], [4, 6, 5, 3, 2, 1]
            )[0]()
            self.states.append((self.lsn + 1, self._state()))
            if self.chance.random() < 0.3:
                self._flush()
        self._flush()

    def _alter(self) -> None:
        """Add, drop or rename a column, sometimes."""
        kind = self.chance.choice(["add", "drop", "rename", "", "", ""])
        attnum = 6 + len(self.history.parts)
        if kind == "add":
            missing = self.chance.choice([None, f"m{attnum}"])
            added = column(attnum, f"c{attnum}", missing_value=None if missing is None else f"{{{missing}}}")
            self.columns = (*self.columns, added)
            for row in self.rows.values():
                row.values[attnum] = missing
        elif kind == "drop":
            gone = self.chance.choice(self.columns[2:])
            self.columns = tuple(one for one in self.columns if one is not gone)
        elif kind == "rename":
            one = self.chance.choice(self.columns)
            renamed = one.model_copy(update={"name": f"r{one.attnum}_{attnum}"})
            self.columns = tuple(renamed if other is one else other for other in self.columns)

    def _insert(self) -> None:
        free = [key for key in KEYS if key not in self.rows]
        if free:
            key = self.chance.choice(free)
            row = _Row(self._values(key), {one.attnum for one in self.columns}, None)
            self.rows[key] = row
            self._log("I", row)

    def _update(self) -> None:
        if self.rows:
            self._change(self.chance.choice(sorted(self.rows)), None)

    def _rekey(self) -> None:
        free = [key for key in KEYS if key not in self.rows]
        if self.rows and free:
            self._change(self.chance.choice(sorted(self.rows)), self.chance.choice(free))

    def _swap(self) -> None:
        free = [key for key in KEYS if key not in self.rows]
        if len(self.rows) > 1 and free:
            one, other = self.chance.sample(sorted(self.rows), 2)
            for old, new in ((one, free[0]), (other, one), (free[0], other)):
                self._change(old, new)

    def _change(self, key: Key, new_key: Key | None) -> None:
        """An UPDATE: each column but the key's gets a new value or keeps its own, which the log may then leave out."""
        row = self.rows.pop(key)
        if new_key is not None:
            self._put(Change("D", self.seq, self._key_row(key), lsn=self.lsn))
            row.values.update(zip((1, 2), new_key, strict=True))
        self.rows[new_key or key] = row
        fresh = self._values(new_key or key)
        missing = set()
        for one in self.columns[2:]:
            large = one.attnum != 4 and row.values[one.attnum] is not None
            if self.chance.random() < 0.3:
                row.values[one.attnum] = fresh[one.attnum]
                row.known.add(one.attnum)
            elif large and self.holes and one.attnum not in row.known and self.chance.random() < 0.8:
                missing.add(one.attnum)
            else:
                row.known.add(one.attnum)
        self._log("U", row, missing)

    def _delete(self) -> None:
        if self.rows:
            key = self.chance.choice(sorted(self.rows))
            del self.rows[key]
            self._put(Change("D", self.seq, self._key_row(key), lsn=self.lsn))

    def _truncate(self) -> None:
        self.rows.clear()
        if not self.revisions:
            self.segment.clear()
        self._put(Change("T", self.seq, lsn=self.lsn))

    def _log(self, operation: str, row: _Row, missing: set[int] | None = None) -> None:
        names = tuple(one.stored_as for one in self.columns if one.attnum in (missing or ()))
        source = (row.origin[1], str(row.origin[0])) if names and row.origin else None
        assert bool(source) == bool(names)
        self._put(Change(operation, self.seq, self._stored(row), names, source, self.lsn))

    def _put(self, change: Change) -> None:
        if not self.revisions and change.row is not None:
            same = [old for old in self.segment if old.row is not None and old.row[:2] == change.row[:2]]
            self.segment = [old for old in self.segment if old not in same]
        self.segment.append(change)
        self.seq += self.chance.randrange(1, 4)

    def _flush(self) -> None:
        if self.segment:
            self.history.changes(self.segment, text=self._text())
        self.segment = []
        for key, row in self.rows.items():
            row.known, row.origin = set(), key

    def _text(self) -> list[str]:
        """Columns that a file keeps as text, at random; never bytea, which the kit cannot spell."""
        candidates = [one.stored_as for one in self.columns if one.attnum in (1, 4)]
        return [name for name in candidates if self.chance.random() < 0.3]

    def _values(self, key: Key) -> dict[int, Any]:
        values: dict[int, Any] = {1: key[0], 2: key[1]}
        for one in self.columns[2:]:
            number = self.chance.randrange(10_000)
            value = {4: number, 5: str(number).encode()}.get(one.attnum, f"v{number}")
            values[one.attnum] = None if self.chance.random() < 0.15 else value
        return values

    def _stored(self, row: _Row) -> tuple[Any, ...]:
        return tuple(row.values[one.attnum] for one in self.columns)

    def _key_row(self, key: Key) -> tuple[Any, ...]:
        return (*key, *[None] * (len(self.columns) - 2))

    def _state(self) -> Counter[TextRow]:
        return Counter(tuple(_text_of(value) for value in self._stored(row)) for row in self.rows.values())


def _text_of(value: Any) -> str | None:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return None if value is None else str(value)
