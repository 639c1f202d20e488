"""What the manifests of a chain reach, for those who delete."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from spanvault.collection.chain import load_manifest
from spanvault.collection.documents import parse_document
from spanvault.collection.files import objects_of
from spanvault.collection.layout import layer_path, manifest_key, path_kind
from spanvault.collection.lookup import is_complete
from spanvault.collection.manifests import any_names, chain_names, parse_manifest
from spanvault.errors import KeyMismatch, Permanent
from spanvault.model.manifest import Manifest, Plan
from spanvault.storage.base import Storage


@dataclass(frozen=True)
class Contents:
    """A chain as its manifests and plans tell it: whether its full is committed, the numbers of its layers, the manifests
    whose objects are in a layer's own folder, the paths that manifests name in the folders of other layers, and the URIs
    of the incremental locations that it uses."""

    subdir: str
    complete: bool
    committed: frozenset[int]
    manifests: tuple[Manifest, ...]
    elsewhere: frozenset[str]
    locations: frozenset[str]

    def named_in(self, storage: Storage, number: int) -> Iterator[str]:
        """The paths that the layer's manifests (its own, and those of compacted layers that end with it) name, ascending,
        in bounded memory. Raises Damaged when a file list cannot be read."""
        own = [_paths(storage, manifest) for manifest in self.manifests if manifest.number == number]
        return heapq.merge(*own)


def load_contents(storage: Storage, subdir: str) -> Contents:
    """The contents of a chain, finished or not. Raises what the manifests' readers raise; of a chain without a full, which
    is garbage, what cannot be read counts for nothing."""
    if not is_complete(storage, subdir):
        locations = _plan_locations(storage, subdir) | _left_locations(storage, subdir)
        return Contents(subdir, False, frozenset(), (), frozenset(), locations)
    names = chain_names(storage, subdir)
    manifests = tuple(load_manifest(storage, subdir, number, first) for first, number in names.manifests)
    elsewhere = frozenset(
        path for manifest in manifests for path in _paths(storage, manifest) if not path.startswith(layer_path(manifest.number))
    )
    named = frozenset(manifest.location for manifest in manifests if manifest.location is not None)
    return Contents(subdir, True, frozenset(names.originals), manifests, elsewhere, named | _plan_locations(storage, subdir))


def _paths(storage: Storage, manifest: Manifest) -> Iterator[str]:
    return (reference.path for reference in objects_of(storage, manifest))


def _plan_locations(storage: Storage, subdir: str) -> frozenset[str]:
    """Where runs that added layers, or wanted to, put their data files."""
    found: set[str] = set()
    for folder in storage.list_folders(f"{subdir}/"):
        for info in storage.list(f"{subdir}/{folder}PLAN-"):
            if path_kind(info.key.removeprefix(f"{subdir}/")) == "plan":
                try:
                    plan = parse_document(Plan, storage.get(info.key), f"The plan {info.key}")
                except KeyMismatch:
                    raise
                except Permanent:
                    continue  # it was deleted just now, or another version wrote it; then the manifests tell
                if plan.request.options.incremental_location is not None:
                    found.add(plan.request.options.incremental_location)
    return frozenset(found)


def _left_locations(storage: Storage, subdir: str) -> frozenset[str]:
    """The locations of a half-deleted chain; its manifests go last."""
    found: set[str] = set()
    for first, number in any_names(storage, subdir).manifests:
        try:
            manifest = parse_manifest(storage.get(manifest_key(subdir, number, first)), subdir, number, first)
        except KeyMismatch:
            raise
        except Permanent:
            continue  # garbage that cannot be read goes as garbage
        if manifest.location is not None:
            found.add(manifest.location)
    return frozenset(found)
