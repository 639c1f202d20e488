"""Reading the JSON documents of a collection: other formats are refused before their fields are looked at."""

from __future__ import annotations

import json
from typing import TypeVar

from spanvault.crypto.stream import MAGIC
from spanvault.errors import Damaged, Refused
from spanvault.model.base import Value
from spanvault.model.manifest import FORMAT_VERSION

Document = TypeVar("Document", bound=Value)


def parse_document(model: type[Document], data: bytes, where: str) -> Document:
    """The document in `data`; `where` names the object for people.

    Raises Refused for a format that this version does not know, Damaged for bytes that are no such document.
    """
    if data.startswith(MAGIC[:-1]):
        raise Damaged(
            f"{where} is encrypted, and beside it is no encryption info (ENCRYPTION-INFO-*.json) to decrypt it with: somebody"
            " removed that, so put it back from a copy of the collection."
        )
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise Damaged(f"{where} is not JSON: its bytes are damaged.") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged(f"{where} has no format version: it is damaged, or not one of Spanvault's documents.")
    if version > FORMAT_VERSION:
        raise Refused(
            f"{where} was written by a newer Spanvault (format {version}; this version knows formats up to"
            f" {FORMAT_VERSION}); upgrade Spanvault to read it."
        )
    if version < FORMAT_VERSION:
        raise Refused(
            f"{where} was written by Spanvault 0.1.0 (format {version}), which this version does not read; begin a new"
            " collection, and keep 0.1.0 for the old one."
        )
    return model.from_json(data, where)
