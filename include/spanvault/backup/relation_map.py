"""Which columns the tuples of the log have, when the table's shape changed on the way.

A Relation message names the columns of the tuples that follow, in attnum order, and nothing more. Columns that were
added, dropped or renamed are told apart by name: as long as each name means one attnum in all shapes that are known, and
the order fits. Where the DDL log tells the shape, it must be exactly that one. Anything else means that the table must be
read anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spanvault.database.postgres.pgoutput import Value, tuple_values
from spanvault.model.schema import Table


class KeyPlaces(NamedTuple):
    """Where the key's columns are in the log's tuples: ascending, and how to bring them into key order."""

    ascending: tuple[int, ...]
    order: tuple[int, ...]


class RelationMap:
    """Maps the log's tuples onto the columns of `table`; `known` are its shapes before. `told` is the present shape, where
    it is known (see `take`).

    `places` is the present mapping: for each data column of `table` its place in the tuple, -1 if the tuple is older than
    the column; None if tuple and table have the same columns.
    """

    def __init__(self, known: Sequence[Table], table: Table, told: Table | None = None) -> None:
        self._table = table
        self._told = told
        self._columns = table.data_columns
        self._attnums = _attnums((*known, table))
        self._missing: list[Value] = [_encoded(column.missing_text) for column in self._columns]
        self.places: tuple[int, ...] | None = None
        own = [column.attnum for column in self._columns]
        self.key_places = self._key_places(own)

    def take(self, shape: Table) -> None:
        """From here on the log's tuples have this shape."""
        self._told = shape

    def use(self, names: Sequence[str], identity: set[int]) -> bool:
        """Take the columns of a Relation message; False if they cannot be told."""
        attnums = self._attnums_of(names)
        if attnums is None:
            return False
        if not set(self._table.key) <= set(attnums) or not self._is_identity({attnums[place] for place in identity}, attnums):
            return False
        place_of = {attnum: place for place, attnum in enumerate(attnums)}
        places = tuple(place_of.get(column.attnum, -1) for column in self._columns)
        self.places = None if places == tuple(range(len(attnums))) else places
        self.key_places = self._key_places(attnums)
        return True

    def _attnums_of(self, names: Sequence[str]) -> list[int] | None:
        if self._told is not None:
            columns = self._told.data_columns
            return [column.attnum for column in columns] if [column.name for column in columns] == list(names) else None
        found = [self._attnums.get(name) for name in names]
        attnums = [attnum for attnum in found if attnum is not None]
        return attnums if len(attnums) == len(found) and attnums == sorted(set(attnums)) else None

    def values(self, message: bytes, at: int) -> list[Value]:
        """The tuple's values as data columns of the table; columns that are younger have the value that such rows have."""
        return self.values_by(message, at, self.places)

    def values_by(self, message: bytes, at: int, places: tuple[int, ...] | None) -> list[Value]:
        """The same of a tuple that came under an earlier mapping."""
        found = tuple_values(message, at)
        if places is None:
            return found
        return [found[place] if place >= 0 else missing for place, missing in zip(places, self._missing, strict=True)]

    def _is_identity(self, flagged: set[int], attnums: Sequence[int]) -> bool:
        """Under another replica identity, for a while, old keys were logged by other columns or not at all."""
        return flagged == (set(attnums) if self._table.replica_identity == "f" else set(self._table.key))

    def _key_places(self, attnums: Sequence[int]) -> KeyPlaces:
        place_of = {attnum: place for place, attnum in enumerate(attnums)}
        in_key_order = [place_of[attnum] for attnum in self._table.key]
        ascending = tuple(sorted(in_key_order))
        return KeyPlaces(ascending, tuple(ascending.index(place) for place in in_key_order))


def _attnums(shapes: Sequence[Table]) -> dict[str, int]:
    """What each column name means, without the names that meant several columns."""
    meanings: dict[str, set[int]] = {}
    for shape in shapes:
        for column in shape.data_columns:
            meanings.setdefault(column.name, set()).add(column.attnum)
    return {name: attnums.pop() for name, attnums in meanings.items() if len(attnums) == 1}


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
