"""Where an object lies, for sentences: its own URI, of several places that of the one that has it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from spanvault.storage.base import Storage
from spanvault.storage.keys import place_of
from spanvault.storage.spread import SpreadStorage


def object_uri(storage: Storage, key: str) -> str:
    """The object's URI without secrets, the key in its path, before the parameters. Of several places it is the one that
    holds the object, else the one that it belongs to; they are asked for it, so this is for what went wrong."""
    bottom = _bottom(storage)
    place = bottom.holder(key) if isinstance(bottom, SpreadStorage) else bottom
    root, mark, parameters = place.display_uri.partition("?")
    return f"{root.removesuffix('/')}/{quote(key, safe='/=')}{mark}{parameters}"


@dataclass(frozen=True)
class ObjectAt:
    """An object whose text is its `object_uri`, which is found out only when it is needed."""

    storage: Storage
    key: str

    def __str__(self) -> str:
        return f"The object {object_uri(self.storage, self.key)}"


def lacks_place_of(storage: Storage, key: str) -> bool:
    """Whether the object belongs to a locality that none of the storage's places is for."""
    name, bottom = place_of(key), _bottom(storage)
    return name is not None and not (isinstance(bottom, SpreadStorage) and bottom.has_place(name))


def _bottom(storage: Storage) -> Storage:
    """The storage behind those that wrap it (keys, limits): with the places of localities, or one place."""
    while isinstance(inner := getattr(storage, "inner", None), Storage):
        storage = inner
    return storage
