"""What earlier checks left that were killed: `storage check` removes it with its own, once it is surely nobody's any more."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable

from spanvault.errors import SpanvaultError
from spanvault.storage.base import Storage

FOLDER = "spanvault-check-"
"""A check's folder is this and a random UUID."""
AGE = 86_400.0
"""Seconds after the last write below a check's folder from which on no check can be at work there."""
_FOLDER = re.compile(rf"{FOLDER}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}/")


def remove_earlier(storage: Storage) -> tuple[int, str]:
    """Remove the folders of checks that wrote nothing for a day, and their unfinished uploads where the backend knows their
    keys; how many objects and uploads those were, and why some stay, empty if none does."""
    horizon = time.time() - AGE
    removed, reason = 0, ""
    try:
        for key in _old_keys(storage, horizon):
            storage.delete(key)
            removed += 1
        for left in list(storage.list_unfinished()):
            if _FOLDER.match(left.key) and left.started < horizon:
                storage.remove_unfinished(left)
                removed += 1
    except SpanvaultError as error:
        reason = str(error)
    return removed, reason


def _old_keys(storage: Storage, horizon: float) -> Iterable[str]:
    """A check writes about a hundred objects, so that one folder's fit into memory. All of them are old, or none is taken."""
    ours = (info for info in storage.list(FOLDER) if _FOLDER.match(info.key))
    for _, folder in itertools.groupby(ours, key=lambda info: info.key.partition("/")[0]):
        infos = list(folder)
        if all(info.modified < horizon for info in infos):
            yield from (info.key for info in infos)
