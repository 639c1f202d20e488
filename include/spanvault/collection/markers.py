"""Markers: a layer that failed its validation is never built upon and never restored from, nor is what follows it."""

from __future__ import annotations

import contextlib
from datetime import datetime

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import manifest_key, marker_key
from spanvault.errors import AlreadyExists, NotFound
from spanvault.model.base import Value
from spanvault.model.cut import utc
from spanvault.model.manifest import FORMAT_VERSION
from spanvault.storage.base import Storage


class InvalidMarker(Value):
    """chain/<number>.invalid.json: why the layer must not be used."""

    format_version: int = FORMAT_VERSION
    number: int
    reason: str
    marked_at: datetime


def mark_invalid(storage: Storage, subdir: str, number: int, reason: str, now: datetime) -> InvalidMarker:
    """Mark the layer; the first marker stays and is returned. Raises NotFound for a layer that is not committed."""
    if storage.head(manifest_key(subdir, number)) is None:
        raise NotFound(f"The backup {subdir} in {storage.display_uri} has no layer {number} to be marked invalid.")
    marker = InvalidMarker(number=number, reason=reason, marked_at=utc(now))
    with contextlib.suppress(AlreadyExists):
        storage.put(marker_key(subdir, number), marker.to_json(), create_only=True)
        return marker
    return read_marker(storage, subdir, number)


def read_marker(storage: Storage, subdir: str, number: int) -> InvalidMarker:
    """The marker of a layer that has one. Raises NotFound."""
    key = marker_key(subdir, number)
    return parse_document(InvalidMarker, storage.get(key), f"The marker {key}")
