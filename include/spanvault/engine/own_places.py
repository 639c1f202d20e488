"""Whether the places that are given for a collection are its own."""

from __future__ import annotations

from spanvault.collection.identity import check_places
from spanvault.engine.context import Context
from spanvault.model.places import Places


def require_own_places(context: Context, uri: str, *, deleting: bool = False) -> None:
    """Raise Refused when places are another collection's, or, before deleting, are exchanged. Writes nothing."""
    if places := context.places(uri):
        check_places(places, context.stored(Places.parse(uri).default.revealed()), exchanged=not deleting)
