"""A collection as its index tells it: chains and layers by the names of the entries, and the entries that a page shows.

The names alone (one listing) say which chains and layers there are; an entry costs a request, so only those on the page
are read. What failed its validation is not in the index: markers are listed with the chain.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import INDEX_PREFIX, index_key, indexed_layer, marked_number
from spanvault.errors import BadInput, Damaged, NotFound
from spanvault.model.cut import time_of_subdir
from spanvault.model.manifest import IndexEntry
from spanvault.storage.base import Storage

MOST_KEYS = 20_000
"""Layers of one collection that a page knows of, the newest ones: more than two years of hourly backups."""
_READERS = 8
_MOST_SIZES = 100_000


class NotShown(NotFound):
    """The address names a collection, chain or table that is not there. (A NotFound of the storage is about a bucket or a
    connection, which a visitor did not name.)"""


@dataclass(frozen=True)
class LayerKey:
    """A layer that the index names: its number and the first that it stands for. `version` changes with the entry."""

    subdir: str
    first: int
    number: int
    key: str
    version: tuple[int, float]

    @property
    def compacted(self) -> bool:
        """Whether the layer was merged from others."""
        return self.first != self.number


@dataclass(frozen=True)
class Chain:
    """A chain's layers, newest first. `invalid_from` is the first layer that failed its validation."""

    subdir: str
    layers: tuple[LayerKey, ...]
    invalid_from: int | None = None

    @property
    def began(self) -> datetime:
        """When the chain's full backup was planned (UTC)."""
        return time_of_subdir(self.subdir)

    @property
    def originals(self) -> tuple[LayerKey, ...]:
        """The layers that backups wrote, newest first."""
        return tuple(layer for layer in self.layers if not layer.compacted)

    def reached(self) -> frozenset[int]:
        """The numbers of the layers whose end can be restored: all that lead to them is there and valid."""
        numbers = {-1}
        for layer in sorted(self.layers, key=lambda one: (one.number, one.first)):
            valid = self.invalid_from is None or layer.number < self.invalid_from
            if valid and layer.first - 1 in numbers:
                numbers.add(layer.number)
        return frozenset(numbers - {-1})

    def ends(self) -> tuple[LayerKey, LayerKey] | None:
        """The oldest and the newest layer whose end can be restored, None if there is none."""
        numbers = self.reached()
        if not numbers:
            return None
        by_number = {layer.number: layer for layer in sorted(self.layers, key=lambda one: one.first)}
        return by_number[min(numbers)], by_number[max(numbers)]


class Catalog:
    """Reads one collection's index. Methods raise Retryable, BadInput or Refused when the storage cannot be read."""

    def __init__(self, storage: Storage, sizes: dict[tuple[object, ...], int]) -> None:
        """`sizes` remembers the sizes of layers from page to page."""
        self._storage = storage
        self._sizes = sizes

    def chains(self) -> tuple[list[Chain], bool]:
        """All chains, newest first, without markers; and whether older ones were left out."""
        keys = list(itertools.islice(self._keys(INDEX_PREFIX), MOST_KEYS + 1))
        groups = itertools.groupby(keys[:MOST_KEYS], key=lambda layer: layer.subdir)
        chains = [Chain(subdir, tuple(layers)) for subdir, layers in groups]
        more = len(keys) > MOST_KEYS
        return chains[:-1] if more and len(chains) > 1 else chains, more  # the last one may be there in part only

    def chain(self, subdir: str) -> Chain:
        """One chain with its markers. Raises NotShown."""
        prefix = ""
        with contextlib.suppress(BadInput):  # from a text that is no chain's path
            prefix = index_key(subdir, 0).partition("-")[0] + "-"
        layers = self._layers(prefix, subdir) if prefix else ()
        if not layers:
            raise NotShown(f"The index of {self._storage.display_uri} names no backup {subdir}.")
        return self.marked(Chain(subdir, layers))

    def marked(self, chain: Chain) -> Chain:
        """The chain with what its markers say."""
        prefix = f"{chain.subdir}/"
        numbers = (marked_number(info.key.removeprefix(prefix)) for info in self._storage.list(f"{prefix}chain/"))
        return Chain(chain.subdir, chain.layers, min((number for number in numbers if number is not None), default=None))

    def ends(self, chains: Sequence[Chain]) -> list[tuple[IndexEntry | None, IndexEntry | None]]:
        """The entries of the oldest and the newest restorable layer of each (marked) chain; None where there is none."""
        found = [chain.ends() for chain in chains]
        entries = iter(self.entries([layer for pair in found if pair for layer in pair]))
        return [(next(entries), next(entries)) if pair else (None, None) for pair in found]

    def entries(self, layers: Sequence[LayerKey]) -> list[IndexEntry | None]:
        """The entry of each layer; None for one that cannot be read or is gone."""
        if not layers:
            return []
        with ThreadPoolExecutor(min(_READERS, len(layers))) as readers:
            return list(readers.map(self._entry, layers))

    def stored_bytes(self, layers: Sequence[LayerKey], budget: int) -> tuple[int, int]:
        """The bytes that layers take on storage, and of how many layers that is not known: at most `budget` are read
        anew a call, and those are remembered."""
        if len(self._sizes) > _MOST_SIZES:
            self._sizes.clear()
        missing = [layer for layer in layers if self._place(layer) not in self._sizes]
        self.entries(missing[:budget])
        known = [self._sizes.get(self._place(layer)) for layer in layers]
        return sum(size or 0 for size in known), known.count(None)

    def _layers(self, prefix: str, subdir: str) -> tuple[LayerKey, ...]:
        return tuple(itertools.islice((layer for layer in self._keys(prefix) if layer.subdir == subdir), MOST_KEYS))

    def _keys(self, prefix: str) -> Iterator[LayerKey]:
        for info in self._storage.list(prefix):
            layer = indexed_layer(info.key)
            if layer is not None:
                yield LayerKey(*layer, key=info.key, version=(info.size, info.modified))

    def _entry(self, layer: LayerKey) -> IndexEntry | None:
        try:
            entry = parse_document(IndexEntry, self._storage.get(layer.key), f"The index entry {layer.key}")
        except (NotFound, Damaged):
            return None
        if index_key(entry.subdir, entry.number, entry.first) != layer.key:
            return None
        self._sizes[self._place(layer)] = entry.totals.file_bytes
        return entry

    def _place(self, layer: LayerKey) -> tuple[object, ...]:
        return (self._storage.display_uri, layer.key, layer.version)
