"""What the DDL log tells of tables' shapes: in which order a window of the change log has them, and where each begins.

A chain of shapes counts only without a gap: each entry's columns are those of the one before, but for what its own
transaction altered, and the last is the table as the catalogs have it. A command that the DDL log missed breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spanvault.database.postgres.ddl_log import DdlRow
from spanvault.database.postgres.pgoutput import Change, tuple_values
from spanvault.model.cut import Lsn
from spanvault.model.manifest import PublicationRow
from spanvault.model.schema import Table


@dataclass(frozen=True)
class ShapeChain:
    """A table's shapes: `first`, and one more behind each of `steps`. `birth` is the entry that made the table, if it did
    not exist before; `idle` are the ids of entries that changed no shape."""

    first: Table
    steps: tuple[DdlRow, ...]
    idle: frozenset[int] = frozenset()
    birth: DdlRow | None = None


def chain_between(before: Table, rows: Sequence[DdlRow], after: Table) -> ShapeChain | None:
    """The shapes that lead from `before` to `after`, by the table's entries; None if they do not, or nothing changed."""
    known = before.fingerprint()
    start = max((place + 1 for place, row in enumerate(rows) if row.shape.fingerprint() == known), default=0)
    idle = {row.id for row in rows[:start] if row.shape.fingerprint() == known and not row.altered}
    chain = _walk(before, rows[start:], after, idle)
    return chain if chain is not None and chain.steps else None


def chain_from_birth(rows: Sequence[DdlRow], after: Table, joined: Sequence[PublicationRow]) -> ShapeChain | None:
    """The shapes of a table since it was made and, in the same command, published by one of `joined`; None if it was not,
    so that its first rows may be missing from the log."""
    for place, row in enumerate(rows):
        if row.event == "create":
            if not any(row.published_as(one) for one in joined) or not _fits(row.shape, after):
                return None
            chain = _walk(row.shape, rows[place + 1 :], after, set())
            return ShapeChain(chain.first, chain.steps, chain.idle, row) if chain is not None else None
    return None


def _walk(first: Table, rows: Sequence[DdlRow], after: Table, idle: set[int]) -> ShapeChain | None:
    steps: list[DdlRow] = []
    present = first
    for row in rows:
        if row.shape.fingerprint() == present.fingerprint():
            idle.add(row.id)
            continue
        if not _follows(present, row) or not _fits(row.shape, after):
            return None
        steps.append(row)
        present = row.shape
    if present.fingerprint() != after.fingerprint():
        return None
    return ShapeChain(first, tuple(steps), frozenset(idle))


def _follows(before: Table, row: DdlRow) -> bool:
    """Whether the entry's transaction wrote all that is not as it was before."""
    known = set(before.attributes_version.split(","))
    fresh = (entry for entry in row.shape.attributes_version.split(",") if entry not in known)
    return all(int(entry.partition(":")[0]) in row.altered for entry in fresh if entry)


def _fits(shape: Table, after: Table) -> bool:
    """Whether tuples of `shape` give rows of `after`: the same identity, and columns of the same types, stored in both."""
    if (shape.key, shape.replica_identity, shape.capture) != (after.key, after.replica_identity, after.capture):
        return False
    columns = {column.attnum: column for column in shape.columns}
    pairs = [(columns[column.attnum], column) for column in after.columns if column.attnum in columns]
    return all(
        (one.type_oid, one.typmod, one.collation_oid, one.generated)
        == (other.type_oid, other.typmod, other.collation_oid, other.generated)
        for one, other in pairs
    )


def _columns(shape: Table) -> str:
    """What tells rows of one shape from those of another: settings such as defaults or statistics are no part of it."""
    return shape.model_copy(update={"attributes_version": ""}).fingerprint()


class ShapeLog:
    """Reads the DDL log's own rows out of the change log; a `pgoutput.TableSink`.

    `births` are the positions of the transactions that made tables, `broken` the tables of which an entry came that is not
    next in the chain.
    """

    def __init__(self, chains: Mapping[int, ShapeChain], on_shape: Callable[[int, Table], None]) -> None:
        self.births: dict[int, Lsn] = {}
        self.broken: set[int] = set()
        self._moved: dict[int, Lsn] = {}
        self._chains = chains
        self._on_shape = on_shape
        self._left = {oid: list(reversed(chain.steps)) for oid, chain in chains.items()}
        self._present = {oid: chain.first for oid, chain in chains.items()}
        self._id = self._event = self._object = 0

    def moved(self, oid: int) -> Lsn | None:
        """From where on the table has its last columns; None if they never changed, or did not come to that in the window."""
        return None if self._left[oid] else self._moved.get(oid)

    def complete(self, oid: int) -> bool:
        """Whether the window has all steps of the chain."""
        return not self._left[oid]

    def relation(self, columns: list[str], identity: set[int]) -> None:
        """The table's columns may have got more by a later version."""
        self._id, self._event, self._object = (columns.index(name) for name in ("id", "event", "object_oid"))

    def insert(self, message: bytes, at: int, change: Change) -> None:
        """An entry."""
        values = tuple_values(message, at)
        line, event, oid = (values[place] for place in (self._id, self._event, self._object))
        if not (isinstance(line, bytes) and isinstance(oid, bytes)) or event == b"failed":
            self.broken |= set(self._chains)
        elif int(oid) in self._chains and event != b"drop":
            self._step(int(line), int(oid), change)

    def _step(self, line: int, oid: int, change: Change) -> None:
        chain, left = self._chains[oid], self._left[oid]
        if chain.birth is not None and line == chain.birth.id:
            self.births[oid] = Lsn(change.lsn)
        elif left and line == left[-1].id:
            shape = left.pop().shape
            if _columns(shape) != _columns(self._present[oid]):
                self._moved[oid] = Lsn(change.lsn + 1)
            self._present[oid] = shape
            self._on_shape(oid, shape)
        elif line not in chain.idle:
            self.broken.add(oid)

    def update(self, message: bytes, old_at: int, at: int, change: Change) -> None:
        """What is added to an entry is read from the table."""

    def delete(self, message: bytes, at: int, change: Change) -> None:
        """An old entry is gone."""

    def truncate(self, change: Change) -> None:
        """What is gone breaks chains by itself."""
