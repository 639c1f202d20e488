"""Resolving what a restore needs: the layers of one chain, checked, and the cheapest row of them that gives a state."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from spanvault.collection.cover import cheapest_cover
from spanvault.collection.cuts import place_of
from spanvault.collection.identity import read_collection
from spanvault.collection.index import read_entry
from spanvault.collection.layout import index_key, manifest_key
from spanvault.collection.lookup import LATEST, complete_subdirs, find_backup, find_subdir
from spanvault.collection.manifests import ChainNames, chain_names, check_owner, is_marked, parse_manifest
from spanvault.collection.markers import read_marker
from spanvault.errors import BadInput, BrokenChain, Damaged, NotFound
from spanvault.model.cut import Cut, Lsn, backup_id
from spanvault.model.manifest import CollectionDocument, Manifest
from spanvault.statement.words import in_one_line
from spanvault.storage.base import Storage

OpenLocation = Callable[[str], Storage]
_READERS = 8  # requests in flight; manifests are small, so latency is what they hide


@dataclass(frozen=True)
class Layer:
    """A layer, the SHA-256 of its manifest as stored, and the storage that holds its data files (all other objects are
    in the collection)."""

    manifest: Manifest
    sha256: str
    data: Storage

    @property
    def end(self) -> Cut:
        """Where the layer ends."""
        return self.manifest.end

    @property
    def revision_history(self) -> bool:
        """Whether it holds every change."""
        return self.manifest.revision_history


@dataclass(frozen=True)
class Resolved:
    """What gives the state at `cut`: contiguous layers, the first a full or one that stands for it.

    With `inner` the cut lies inside the last layer, which is then an original one with revision history, and `before` is
    the manifest of the original layer before it. Otherwise the last layer ends at the cut, and `before` is None.
    """

    layers: tuple[Layer, ...]
    before: Manifest | None
    cut: Cut
    inner: bool

    @property
    def manifest(self) -> Manifest:
        """The manifest of the last layer."""
        return self.layers[-1].manifest


def no_locations(uri: str) -> Storage:
    """The OpenLocation of those who need none. Raises BadInput."""
    raise BadInput(f"The backup's data files are in the incremental location {in_one_line(uri)}, which is not given; name it.")


def load_manifest(storage: Storage, subdir: str, number: int = 0, first: int | None = None) -> Manifest:
    """The manifest of a layer; `first` of a compacted one.

    Raises NotFound when the layer is not committed, Damaged when the bytes differ from what the index remembers or
    belong to another layer, Refused for a newer format.
    """
    return load_manifest_bytes(storage, subdir, number, first)[0]


def load_manifest_bytes(storage: Storage, subdir: str, number: int = 0, first: int | None = None) -> tuple[Manifest, bytes]:
    """As `load_manifest`, with the stored bytes."""
    key = manifest_key(subdir, number, first)
    data = storage.get(key)
    manifest = parse_manifest(data, subdir, number, first)
    entry = read_entry(storage, subdir, number, first)
    digest = hashlib.sha256(data).hexdigest()
    if entry is not None and entry.manifest_sha256 != digest:
        raise Damaged(
            f"The manifest {key} is not the one that was committed: its SHA-256 is {digest}, and the index entry"
            f" {index_key(subdir, number, first)} remembers {entry.manifest_sha256}; put the one that was"
            " changed back from a copy of the collection."
        )
    return manifest, data


def resolve(
    storage: Storage, subdir: str = LATEST, as_of: datetime | Lsn | None = None, *, open_location: OpenLocation
) -> Resolved:
    """The layers that give a state of a chain (LATEST, a path or a backup's ID): at its newest valid end, or that of the
    backup, or at `as_of`, which lies at or before it.

    With LATEST an older time is looked for in the newest chain that begins at or before it. A time is a layer's exact
    end, or lies inside a layer with revision history; so is a position. `open_location` opens incremental locations.

    Raises NotFound when no such backup is complete, BadInput when the state is not held, with the nearest times that
    are; BrokenChain and Damaged when the chain's documents contradict each other; what `load_manifest` raises.
    """
    collection = read_collection(storage)
    found, last, later = _chain_of(storage, subdir, as_of)
    names = chain_names(storage, found)
    loaded = _originals(storage, names, collection)
    originals = [manifest for manifest, _ in loaded]
    place = place_of(storage, originals[: _count_to(storage, found, last, len(originals))], as_of, later)
    compacted = _compacted(storage, names, loaded, collection)
    whole = place.number - 1 if place.inner else place.number
    wanted = cheapest_cover(originals, [manifest for manifest, _ in compacted], whole)
    digests = {(manifest.first, manifest.number): digest for manifest, digest in (*loaded, *compacted)}
    if place.inner:
        wanted = (*wanted, originals[place.number])
    opened = _Locations(storage, open_location)
    return Resolved(
        layers=tuple(Layer(each, digests[each.first, each.number], opened.of(each)) for each in wanted),
        before=originals[place.number - 1] if place.inner else None,
        cut=place.cut,
        inner=place.inner,
    )


def original_layers(storage: Storage, subdir: str, *, open_location: OpenLocation) -> tuple[Layer, ...]:
    """All valid layers that runs committed to a chain (LATEST or a path), in order, or the one that a backup's ID names;
    digests and contiguity are checked.

    Raises as `resolve` does.
    """
    collection = read_collection(storage)
    found, number = find_backup(storage, subdir)
    opened = _Locations(storage, open_location)
    loaded = _originals(storage, chain_names(storage, found), collection)
    chosen = loaded if number is None else loaded[_count_to(storage, found, number, len(loaded)) - 1 :][:1]
    return tuple(Layer(manifest, digest, opened.of(manifest)) for manifest, digest in chosen)


def compacted_layers(storage: Storage, subdir: str, *, open_location: OpenLocation) -> tuple[Layer, ...]:
    """The compacted layers of a chain that stand for valid ones, checked against them. Raises as `resolve` does."""
    collection = read_collection(storage)
    names = chain_names(storage, find_subdir(storage, subdir))
    opened = _Locations(storage, open_location)
    loaded = _compacted(storage, names, _originals(storage, names, collection), collection)
    return tuple(Layer(manifest, digest, opened.of(manifest)) for manifest, digest in loaded)


def layer_at(storage: Storage, subdir: str, number: int, *, open_location: OpenLocation) -> Layer:
    """One layer that a run committed to a chain (LATEST or a path), checked against its parent; no other is read.

    Raises NotFound when there is no such layer, and as `resolve` does.
    """
    collection = read_collection(storage)
    names = chain_names(storage, find_subdir(storage, subdir))
    if number not in names.originals:
        raise NotFound(f"The backup {names.subdir} in {storage.display_uri} has no layer {number}.")
    wanted = [(each, each) for each in (number - 1, number) if each >= 0]
    loaded = list(_load(storage, names.subdir, wanted, collection))
    for (parent, digest), (manifest, _) in itertools.pairwise(loaded):
        _check_parent(manifest, parent, digest)
    manifest, digest = loaded[-1]
    return Layer(manifest, digest, _Locations(storage, open_location).of(manifest))


def head(storage: Storage, subdir: str) -> tuple[Manifest, str]:
    """The newest valid layer that a run committed to a chain (LATEST or a path), and its manifest's SHA-256; the layers
    before it are not read. Raises as `resolve` does."""
    collection = read_collection(storage)
    names = chain_names(storage, find_subdir(storage, subdir))
    manifest, data = load_manifest_bytes(storage, names.subdir, _valid(storage, names)[-1])
    check_owner(manifest, collection)
    return manifest, hashlib.sha256(data).hexdigest()


class _Locations:
    """Opens each incremental location once."""

    def __init__(self, storage: Storage, open_location: OpenLocation) -> None:
        self._storage = storage
        self._open = open_location
        self._known: dict[str, Storage] = {}

    def of(self, manifest: Manifest) -> Storage:
        uri = manifest.location
        if uri is None:
            return self._storage
        if uri not in self._known:
            self._known[uri] = self._open(uri)
        return self._known[uri]


def _count_to(storage: Storage, subdir: str, last: int | None, count: int) -> int:
    """How many of a chain's valid layers there are up to layer `last`; None: all. Raises NotFound if it is not among them."""
    if last is not None and last >= count:
        raise NotFound(
            f"The backup {backup_id(subdir, last)} is not in {storage.display_uri}, or not valid: the chain {subdir} has the"
            f" valid layers 0 to {count - 1}. SHOW BACKUPS IN ... WITH ids lists the IDs there are."
        )
    return count if last is None else last + 1


def _chain_of(storage: Storage, subdir: str, as_of: datetime | Lsn | None) -> tuple[str, int | None, Cut | None]:
    """The chain to look into, the number of the layer that is named, and the end of the next chain's full, if a newer one
    was passed over."""
    found, number = find_backup(storage, subdir)
    if as_of is None or subdir.upper() != LATEST:
        return found, number, None
    later: Cut | None = None
    oldest: tuple[str, Cut | None] = (found, None)
    for each in complete_subdirs(storage):
        if is_marked(storage, each, 0):
            continue
        end = load_manifest(storage, each).end
        oldest = (each, later)
        if (end.lsn if isinstance(as_of, Lsn) else end.time) <= as_of:  # type: ignore[operator]  # of one kind
            break
        later = end
    return oldest[0], None, oldest[1]


def _valid(storage: Storage, names: ChainNames) -> tuple[int, ...]:
    if not names.originals:
        raise NotFound(f"The backup {names.subdir} in {storage.display_uri} was deleted while it was looked at.")
    if not names.valid:
        reason = read_marker(storage, names.subdir, 0).reason
        raise BrokenChain(f"The backup {names.subdir} was marked invalid: {reason} Use another backup, and take a new full one.")
    return names.valid


def _originals(storage: Storage, names: ChainNames, collection: CollectionDocument) -> list[tuple[Manifest, str]]:
    loaded = list(_load(storage, names.subdir, [(number, number) for number in _valid(storage, names)], collection))
    for (parent, digest), (manifest, _) in itertools.pairwise(loaded):
        _check_parent(manifest, parent, digest)
    if loaded[0][0].kind != "full":
        raise BrokenChain(f"The backup {names.subdir} does not begin with a full backup.")
    return loaded


def _compacted(
    storage: Storage, names: ChainNames, originals: Sequence[tuple[Manifest, str]], collection: CollectionDocument
) -> list[tuple[Manifest, str]]:
    loaded = list(_load(storage, names.subdir, names.valid_compacted, collection))
    for manifest, _ in loaded:
        if manifest.first > 0:
            _check_parent(manifest, *originals[manifest.first - 1])
        if manifest.end != originals[manifest.number][0].end:
            key = manifest_key(manifest.subdir, manifest.number, manifest.first)
            raise BrokenChain(f"The layer {key} ends at {manifest.end}, and the layer that it stands for does not.")
    return loaded


def _load(
    storage: Storage, subdir: str, wanted: Sequence[tuple[int, int]], collection: CollectionDocument
) -> Iterator[tuple[Manifest, str]]:
    with ThreadPoolExecutor(_READERS) as readers:
        for manifest, data in readers.map(lambda layer: load_manifest_bytes(storage, subdir, layer[1], layer[0]), wanted):
            check_owner(manifest, collection)
            yield manifest, hashlib.sha256(data).hexdigest()


def _check_parent(manifest: Manifest, parent: Manifest, digest: str) -> None:
    """Raises BrokenChain unless the layer was built upon exactly this parent."""
    key = manifest_key(manifest.subdir, manifest.number, manifest.first)
    if manifest.parent_sha256 != digest:
        raise BrokenChain(
            f"The layer {key} was built upon a manifest with the SHA-256 {manifest.parent_sha256}, and"
            f" {manifest_key(parent.subdir, parent.number)} has {digest}: one of them is not what was committed."
        )
    if manifest.start.lsn != parent.end.lsn:
        raise BrokenChain(
            f"The layer {key} begins at {manifest.start.lsn}, and the one before it ends at {parent.end.lsn}: history is missing."
        )
