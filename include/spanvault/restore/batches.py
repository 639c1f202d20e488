"""The parts of a restore: what one transaction loads, and what one task. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from spanvault.errors import NotFound
from spanvault.merge.history import TableHistory
from spanvault.merge.table import units_of
from spanvault.model.base import Value
from spanvault.model.manifest import Manifest
from spanvault.model.schema import Table
from spanvault.model.sentences import few
from spanvault.restore.origin import TableKey

MIN_BATCH_BYTES = 1 << 20
MAX_BATCH_BYTES = 64 << 20
MAX_BATCHES = 512


class LoadUnit(Value):
    """What one transaction loads. `database` is the name in the backup, `bytes` of files, `rows` an upper bound."""

    database: str
    table_oid: int
    unit: str
    bytes: int
    rows: int

    @property
    def id(self) -> str:
        """The name under which the target remembers that it has this unit."""
        return f"{self.database}:{self.table_oid}:{self.unit}"


class LoadBatch(Value):
    """What one task loads, in order. `label` is for people: which tables."""

    index: int
    label: str
    units: tuple[LoadUnit, ...]
    bytes: int
    rows: int


def load_units(manifest: Manifest, histories: Mapping[TableKey, TableHistory]) -> Iterator[LoadUnit]:
    """The units of these tables: extensions' configuration first, then the largest tables, as their last batches should
    not be what everybody waits for."""
    units = {key: units_of(history) for key, history in histories.items()}
    size = {key: sum(unit.bytes for unit in own) for key, own in units.items()}
    configured = [key for key in units if table_of(manifest, *key).extension is not None]
    others = sorted(units.keys() - set(configured), key=lambda key: (-size[key], key))
    for database, oid in (*_by_references(manifest, configured), *others):
        for unit in units[database, oid]:
            yield LoadUnit(database=database, table_oid=oid, unit=unit.id, bytes=unit.bytes, rows=unit.rows)


def _by_references(manifest: Manifest, keys: Collection[TableKey]) -> Sequence[TableKey]:
    """Configuration tables so that each comes behind those that its foreign keys refer to, which are in force while it is
    loaded; where these go in a circle, by name."""
    graph: dict[TableKey, list[TableKey]] = {}
    for database, oid in sorted(keys):
        configured = table_of(manifest, database, oid).extension
        references = [(database, other) for other in (configured.references if configured else ())]
        graph[database, oid] = [one for one in references if one in keys]
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError:
        return sorted(graph)


def batches_of(manifest: Manifest, units: Sequence[LoadUnit], workers: int) -> tuple[LoadBatch, ...]:
    """The units in batches, in order. All extensions' configuration is one batch: only within one is there an order."""
    total = sum(unit.bytes for unit in units)
    aim = max(MIN_BATCH_BYTES, min(MAX_BATCH_BYTES, total // (4 * workers)), total // MAX_BATCHES)
    first = list(itertools.takewhile(lambda one: table_of(manifest, one.database, one.table_oid).extension is not None, units))
    groups: list[list[LoadUnit]] = [first] if first else []
    filled = aim
    for unit in units[len(first) :]:
        if filled >= aim:
            groups.append([])
            filled = 0
        groups[-1].append(unit)
        filled += unit.bytes
    return tuple(
        LoadBatch(
            index=index,
            label=_label(manifest, group),
            units=tuple(group),
            bytes=sum(unit.bytes for unit in group),
            rows=sum(unit.rows for unit in group),
        )
        for index, group in enumerate(groups)
    )


def _label(manifest: Manifest, units: Sequence[LoadUnit]) -> str:
    names = list(dict.fromkeys(table_of(manifest, unit.database, unit.table_oid).qualified for unit in units))
    return few(names, 1)


def table_of(manifest: Manifest, database: str, oid: int) -> Table:
    """The table's shape at the cut. Raises NotFound: the file list and the manifest do not fit."""
    found = manifest.database(database)
    table = found.database.table(oid) if found else None
    if table is None:
        raise NotFound(f"The backup {manifest.subdir} does not describe the table with OID {oid} of database {database!r}.")
    return table
