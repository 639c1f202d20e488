"""The histories of the tables that a restore loads: up to the cut, or up to an earlier layer's reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from spanvault.collection.chain import Resolved
from spanvault.errors import Damaged
from spanvault.merge.history import TableHistory, histories
from spanvault.restore.origin import Origin, TableKey
from spanvault.storage.base import Storage


def table_histories(storage: Storage, resolved: Resolved, origins: Mapping[TableKey, Origin]) -> dict[TableKey, TableHistory]:
    """The history of each table as its origin says. `storage` is the collection's.

    Raises Damaged when a layer lacks what its manifest or a later layer counts on.
    """
    by_layer: defaultdict[int, set[TableKey]] = defaultdict(set)
    for key, origin in origins.items():
        by_layer[origin.number].add(key)
    found: dict[TableKey, TableHistory] = {}
    for number, keys in sorted(by_layer.items()):
        until = _until(resolved, number)
        found |= histories(storage, until, lambda database, oid, keys=keys: (database, oid) in keys)  # type: ignore[misc]
    lost = [origins[key].table.qualified for key in origins if key not in found]
    if lost:
        raise Damaged(f"The layers of the backup {resolved.manifest.subdir} do not lead to the rows of {lost[0]}.")
    return found


def _until(resolved: Resolved, number: int) -> Resolved:
    """The layers up to the end of layer `number`, an earlier one than that of the cut."""
    if number == resolved.manifest.number:
        return resolved
    layers = tuple(layer for layer in resolved.layers if layer.manifest.number <= number)
    return replace(resolved, layers=layers, before=None, cut=layers[-1].end, inner=False)
