"""What each page shows, read and reckoned; the templates only write it down."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeVar

from spanvault.errors import SpanvaultError
from spanvault.model.manifest import IndexedTable, IndexEntry
from spanvault.model.uri import redact_text
from spanvault_airflow.ui.catalog import Catalog, Chain, LayerKey, NotShown
from spanvault_airflow.ui.shelf import Shelf

PAGE = 100
"""Layers, or tables, on one page."""
CHAIN_PAGE = 50
_READ_FOR_SIZES = 500
_LOOK_AT_CHAINS = 20  # how many chains without any restorable time are passed over in search of one that has some

State = Literal["restorable", "invalid", "after-invalid", "gap"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Paged(Generic[Row]):
    """A page of rows: `number` counts from 1."""

    rows: tuple[Row, ...]
    number: int
    pages: int
    total: int


def paged(rows: Sequence[Row], number: int, size: int = PAGE) -> Paged[Row]:
    """The page of that number, or the last one there is."""
    pages = max(-(-len(rows) // size), 1)
    number = min(max(number, 1), pages)
    return Paged(tuple(rows[(number - 1) * size : number * size]), number, pages, len(rows))


@dataclass(frozen=True)
class CollectionView:
    """A collection's line on the first page. `problem` stands instead of all else if it cannot be read; `unread` layers
    are missing from `stored`."""

    name: str
    uri: str
    chains: int = 0
    layers: int = 0
    earliest: datetime | None = None
    newest: IndexEntry | None = None
    stored: int = 0
    unread: int = 0
    more: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class ChainView:
    """A chain's line. `stopped` says why its newest layers cannot be restored."""

    chain: Chain
    first: IndexEntry | None
    last: IndexEntry | None
    stored: int
    unread: int
    stopped: str | None


@dataclass(frozen=True)
class LayerView:
    """A layer's line; `entry` is None when the index entry cannot be read."""

    key: LayerKey
    entry: IndexEntry | None
    state: State


@dataclass(frozen=True)
class TableRow:
    """A table at the end of one layer. `before` holds its rows in the layer before, if that is shown too."""

    layer: LayerView
    table: IndexedTable | None
    before: int | None


def collections(shelf: Shelf, sizes: dict[tuple[object, ...], int]) -> tuple[list[CollectionView], bool]:
    """All collections; one that cannot be read does not hide the others. Raises as Shelf.names."""
    names, more = shelf.names()
    return [_collection(shelf, name, sizes) for name in names], more


def _collection(shelf: Shelf, name: str, sizes: dict[tuple[object, ...], int]) -> CollectionView:
    uri = shelf.uri_of(name)
    try:
        catalog = Catalog(shelf.collection(name), sizes)
        chains, more = catalog.chains()
        _, newest = _first_with_ends(catalog, chains)
        earliest, _ = _first_with_ends(catalog, chains[::-1])
        layers = [layer for chain in chains for layer in chain.layers]
        stored, unread = catalog.stored_bytes(layers, _READ_FOR_SIZES)
    except SpanvaultError as error:
        return CollectionView(name, uri, problem=redact_text(str(error)))
    return CollectionView(
        name=name,
        uri=uri,
        chains=len(chains),
        layers=len(layers),
        earliest=earliest.end.time if earliest else None,
        newest=newest,
        stored=stored,
        unread=unread,
        more=more,
    )


def _first_with_ends(catalog: Catalog, chains: Iterable[Chain]) -> tuple[IndexEntry | None, IndexEntry | None]:
    for chain in itertools.islice(chains, _LOOK_AT_CHAINS):
        marked = catalog.marked(chain)
        if marked.ends():
            return catalog.ends([marked])[0]
    return None, None


def chains(catalog: Catalog, page: int) -> tuple[Paged[ChainView], bool]:
    """A page of a collection's chains, newest first, and whether older ones were left out."""
    found, more = catalog.chains()
    shown = paged(found, page, CHAIN_PAGE)
    marked = [catalog.marked(chain) for chain in shown.rows]
    rows = []
    for chain, (first, last) in zip(marked, catalog.ends(marked), strict=True):
        stored, unread = catalog.stored_bytes(chain.layers, _READ_FOR_SIZES)
        rows.append(ChainView(chain, first, last, stored, unread, stopped(chain)))
    return Paged(tuple(rows), shown.number, shown.pages, shown.total), more


def chain_view(catalog: Catalog, chain: Chain) -> ChainView:
    """The head of a chain's page."""
    [(first, last)] = catalog.ends([chain])
    stored, unread = catalog.stored_bytes(chain.layers, _READ_FOR_SIZES)
    return ChainView(chain, first, last, stored, unread, stopped(chain))


def layers(catalog: Catalog, chain: Chain, page: int) -> Paged[LayerView]:
    """A page of a chain's layers, newest first; a compacted one stands above the newest that it was made of."""
    ordered = sorted(chain.layers, key=lambda layer: (-layer.number, layer.first))
    shown = paged(ordered, page)
    rows = _layer_views(catalog, chain, shown.rows)
    return Paged(rows, shown.number, shown.pages, shown.total)


def newest_tables(last: IndexEntry | None, text: str, page: int) -> Paged[IndexedTable]:
    """A page of the tables at the chain's newest restorable time whose name contains `text`, the largest first."""
    wanted = text.casefold()
    found = [table for table in (last.tables if last else ()) if wanted in table.name.casefold()]
    return paged(sorted(found, key=lambda table: (-table.bytes, table.name)), page)


def table_rows(catalog: Catalog, name: str, page: int) -> Paged[TableRow]:
    """A page of one table's rows and sizes over the layers of all chains, newest first. Raises NotShown for a table that
    none of the page's layers holds."""
    found, _ = catalog.chains()
    originals = [layer for chain in found for layer in chain.originals]
    shown = paged(originals, page)
    marked = {chain.subdir: catalog.marked(chain) for chain in found if chain.subdir in {one.subdir for one in shown.rows}}
    views = [view for subdir, group in _by_chain(shown.rows) for view in _layer_views(catalog, marked[subdir], group)]
    tables = [_table_of(view.entry, name) for view in views]
    if not any(tables):
        unknown = "; encrypted ones do not tell" if any(view.entry and view.entry.encrypted for view in views) else ""
        raise NotShown(f"None of the backups on this page holds a table {name}{unknown}.")
    older = [*(table.rows if table else None for table in tables[1:]), None]
    rows = tuple(TableRow(*row) for row in zip(views, tables, older, strict=True))
    return Paged(rows, shown.number, shown.pages, shown.total)


def stopped(chain: Chain) -> str | None:
    """Why the chain's newest layers, or all of them, cannot be restored; None when all can."""
    numbers = chain.reached()
    newest = max(layer.number for layer in chain.layers)
    if newest in numbers:
        return None
    reached = max(numbers, default=None)
    if chain.invalid_from is not None and chain.invalid_from == (0 if reached is None else reached + 1):
        upto = "none of its times is restorable" if reached is None else f"only layers up to {reached} are restorable"
        return f"Layer {chain.invalid_from} failed its validation: {upto}. Take a full backup."
    missing = 0 if reached is None else reached + 1
    return (
        f"The index does not name layer {missing}, so what follows it is not shown as restorable."
        " `spanvault collection rebuild-index` writes the index anew from the manifests."
    )


def _layer_views(catalog: Catalog, chain: Chain, shown: Sequence[LayerKey]) -> tuple[LayerView, ...]:
    numbers = chain.reached()
    entries = catalog.entries(shown)
    return tuple(LayerView(key, entry, _state(chain, key, numbers)) for key, entry in zip(shown, entries, strict=True))


def _state(chain: Chain, layer: LayerKey, reached: frozenset[int]) -> State:
    if layer.number in reached:
        return "restorable"
    if chain.invalid_from is None or layer.number < chain.invalid_from:
        return "gap"
    return "invalid" if layer.number == chain.invalid_from else "after-invalid"


def _by_chain(shown: Sequence[LayerKey]) -> list[tuple[str, list[LayerKey]]]:
    return [(subdir, list(group)) for subdir, group in itertools.groupby(shown, key=lambda layer: layer.subdir)]


def _table_of(entry: IndexEntry | None, name: str) -> IndexedTable | None:
    return next((table for table in entry.tables if table.name == name), None) if entry else None
