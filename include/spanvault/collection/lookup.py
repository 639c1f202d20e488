"""From what a person names to a chain: LATEST, or a path as SHOW BACKUPS lists it. Right without the index."""

from __future__ import annotations

from collections.abc import Iterator

from spanvault.collection.identity import read_collection
from spanvault.collection.layout import INDEX_PREFIX, indexed_layer, manifest_key, plan_key
from spanvault.collection.manifests import is_marked
from spanvault.collection.plans import chain_subdirs
from spanvault.errors import NotFound
from spanvault.model.cut import layer_of_id, time_of_subdir
from spanvault.storage.base import Storage

LATEST = "LATEST"


def find_subdir(storage: Storage, subdir: str) -> str:
    """The path of the complete chain that `subdir` names; LATEST is the one planned last
    whose full backup is not marked invalid.

    Folders are walked newest first until one has a manifest, so neither a lost index nor failed runs mislead it.
    Raises NotFound when there is no such collection or complete backup, BadInput for a text that is no path.
    """
    read_collection(storage)
    if subdir.upper() == LATEST:
        return latest(storage)
    normal = subdir.strip("/")
    time_of_subdir(normal)
    if is_complete(storage, normal):
        return normal
    if storage.head(plan_key(normal)) is not None:
        raise NotFound(f"The backup {normal} in {storage.display_uri} has not finished: run it again, or take another one.")
    raise NotFound(f"There is no backup {normal} in {storage.display_uri}; SHOW BACKUPS IN lists those there are.")


def find_backup(storage: Storage, text: str) -> tuple[str, int | None]:
    """The path of the complete chain that `text` names (LATEST, a path or a backup's ID), and of an ID the layer's number.
    Raises as `find_subdir` does; whether the chain has that layer is not looked at."""
    layer = layer_of_id(text.strip("/"))
    return (find_subdir(storage, text), None) if layer is None else (find_subdir(storage, layer[0]), layer[1])


def latest(storage: Storage) -> str:
    """The path of the newest complete chain whose full backup is not marked invalid. Raises NotFound."""
    found = next((subdir for subdir in complete_subdirs(storage) if not is_marked(storage, subdir, 0)), None)
    if found is None:
        raise NotFound(f"{storage.display_uri} does not contain a completed latest backup.")
    return found


def forgotten_layer(storage: Storage, subdir: str, number: int) -> tuple[str, int] | None:
    """The newest layer (its chain, its number) behind layer `number` of the chain that the index remembers and that is not
    there; it was not expired, which removes the entry first."""
    for info in storage.list(INDEX_PREFIX):
        layer = indexed_layer(info.key)
        if layer is None:
            continue
        found, _, last = layer
        if (found, last) <= (subdir, number):
            return None
        if storage.head(manifest_key(found, last, layer[1])) is None:
            return found, last
    return None


def complete_subdirs(storage: Storage) -> Iterator[str]:
    """The paths of all chains whose full backup is committed, newest first; a request a folder."""
    return (subdir for subdir in chain_subdirs(storage) if is_complete(storage, subdir))


def is_complete(storage: Storage, subdir: str) -> bool:
    """Whether the chain's full backup is committed."""
    return storage.head(manifest_key(subdir)) is not None
