"""Going on with an unfinished restore: at its cut and from its layers, whatever was committed to the chain since.

A restore's units are parts of the files that it reads, so a try that read other layers would load rows twice. The first
step therefore writes down in the target which layers they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from spanvault.collection.chain import OpenLocation, Resolved, compacted_layers, original_layers
from spanvault.database.postgres.target import (
    Connection,
    claim_unit,
    database_names,
    maintenance_connection,
    read_records,
    units_done,
)
from spanvault.errors import Refused
from spanvault.model.cut import Cut
from spanvault.restore.plan import RestorePlan, layers_of, restore_id
from spanvault.restore.work import Work
from spanvault.storage.base import Storage

_LAYERS = "layers "
_CUT = "cut "


@dataclass(frozen=True)
class Begun:
    """An unfinished restore that a target remembers, and the layers that it reads (as RestorePlan.layers)."""

    id: str
    layers: tuple[str, ...]


def remember_layers(connection: Connection, plan: RestorePlan) -> None:
    """In the transaction that begins a restore in a database: write down the layers that it reads."""
    claim_unit(connection, plan.id, _LAYERS + " ".join(plan.layers))


def remember_cuts(connection: Connection, restore: str, cuts: Mapping[int, Collection[str]]) -> None:
    """In the same transaction: write down which defaults and checks are left out of tables, by the archive's entries."""
    for entry, displays in cuts.items():
        for display in displays:
            claim_unit(connection, restore, f"{_CUT}{entry} {display}")


def begun_cuts(connection: Connection, restore: str) -> dict[int, set[str]]:
    """What `remember_cuts` wrote down."""
    found: dict[int, set[str]] = {}
    for unit in units_done(connection, restore):
        if unit.startswith(_CUT):
            entry, _, display = unit.removeprefix(_CUT).partition(" ")
            found.setdefault(int(entry), set()).add(display)
    return found


def begun_restores(work: Work) -> tuple[Begun, ...]:
    """The unfinished restores in the databases that the plan restores into."""
    with maintenance_connection(work.cluster.primary) as control:
        names = database_names(control)
    found: list[Begun] = []
    for database in work.plan.databases:
        if database.target in names:
            with work.connect(database.target) as connection:
                found += _begun(connection)
    return tuple(found)


def _begun(connection: Connection) -> Iterator[Begun]:
    for record in read_records(connection):
        units = units_done(connection, record.id)
        layers = next((unit.removeprefix(_LAYERS) for unit in units if unit.startswith(_LAYERS)), "")
        yield Begun(record.id, tuple(layers.split()))


def begun_cut(work: Work, begun: Iterable[Begun], open_location: OpenLocation) -> Cut | None:
    """The older end of the same chain that an unfinished restore of the same request is for, the newest if there are
    several; None if there is none."""
    ids = {one.id for one in begun}
    if work.plan.id in ids or not ids:
        return None
    manifest = work.manifest
    for layer in reversed(original_layers(work.storage, manifest.subdir, open_location=open_location)):
        if restore_id(replace(work.resolved, cut=layer.end), work.plan.request) in ids:
            return layer.end
    return None


def begun_layers(
    storage: Storage, resolved: Resolved, restore: str, begun: Iterable[Begun], open_location: OpenLocation
) -> Resolved:
    """The resolved cut, from the layers that the unfinished restore with the id `restore` reads, if there is one.

    Raises Refused when one of them is gone.
    """
    wanted = next((one.layers for one in begun if one.id == restore and one.layers), ())
    if not wanted or wanted == layers_of(resolved):
        return resolved
    subdir = resolved.manifest.subdir
    there = (
        *original_layers(storage, subdir, open_location=open_location),
        *compacted_layers(storage, subdir, open_location=open_location),
    )
    by_name = {f"{layer.manifest.first}-{layer.manifest.number}": layer for layer in there}
    lost = [name for name in wanted if name not in by_name]
    if lost:
        raise Refused(
            f"The unfinished restore of {subdir} reads the layer {lost[0]}, which is gone; drop what it restored, then run the"
            " statement again."
        )
    return replace(resolved, layers=tuple(by_name[name] for name in wanted))
