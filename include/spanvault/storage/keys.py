"""What a key may look like, for every backend the same (storage/base.py)."""

from __future__ import annotations

import re

from spanvault.errors import BadInput

RESERVED_PREFIX = ".spanvault-"
DATA_FOLDER = "data"
_PLACED = re.compile(r"/data/([^/]+)/[^/]+\Z|/BACKUP_PART_([A-Za-z0-9=_-]+)-[0-9a-f]{8}\.json\Z")
MAX_KEY_BYTES = 900  # S3 allows 1,024, the collection's own path included.
MAX_PART_BYTES = 200  # File systems allow 255.


def key_flaw(key: str) -> str | None:
    """Why `key` cannot be one, or None."""
    parts = key.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "it has an empty, '.' or '..' part"
    if "\0" in key or not _is_text(key):
        return "it holds a NUL character or is not Unicode text"
    if any(part.startswith(RESERVED_PREFIX) for part in parts):
        return f"names that begin with {RESERVED_PREFIX} are reserved"
    if len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"it is longer than {MAX_KEY_BYTES} bytes, or one of its parts longer than {MAX_PART_BYTES}"
    return None


def check_key(key: str) -> str:
    """The key itself. Raises BadInput if it breaks the contract."""
    flaw = key_flaw(key)
    if flaw:
        raise BadInput(f"{key!r} cannot be the key of a stored object: {flaw}.")
    return key


def check_folder(prefix: str) -> str:
    """The prefix itself, for `list_folders`. Raises BadInput unless it is empty or a valid key followed by `/`."""
    if prefix and not prefix.endswith("/"):
        raise BadInput(f"{prefix!r} is not a folder of stored objects: it must be empty or end in '/'.")
    if prefix:
        check_key(prefix[:-1])
    return prefix


def is_data(key: str) -> bool:
    """Whether the object is bulk data, which may lie in a slower storage class than the documents about it."""
    return DATA_FOLDER in key.split("/")[:-1]


def place_of(key: str) -> str | None:
    """The place (a locality's name in files) that the key names as a folder below `data` or in the name of a part's
    description; None: the default. docs/format.md, Layout."""
    match = _PLACED.search(key)
    return (match[1] or match[2]) if match else None


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
