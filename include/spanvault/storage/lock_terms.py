"""What the code on object locks of all stores shares: dates, and sentences."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from spanvault.errors import BadInput
from spanvault.model.uri_parameters import ObjectLock
from spanvault.storage.base import LockInfo

_DAY = 86_400


class NoLocks(BadInput):
    """That a place keeps no object locks at all, so that none of its objects can get one."""


def date(seconds: float) -> datetime:
    """Unix seconds as a date in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def end_from_now(lock: ObjectLock) -> datetime:
    """When a lock ends that begins now."""
    return date(time.time() + lock.days * _DAY)


def in_force(mode: str | None, until: float, *, legal_hold: bool) -> LockInfo | None:
    """What a store says of an object, None if nothing protects it now. `until` in Unix seconds; 0 is no date."""
    if until <= time.time() and not legal_hold:
        return None
    return LockInfo(mode=mode, until=until, legal_hold=legal_hold)


def by_what(lock: LockInfo) -> str:
    """What protects an object, as the part of a sentence after `is protected`."""
    mode = f" ({lock.mode})" if lock.mode else ""
    parts = [f"until {date(lock.until):%Y-%m-%d %H:%M} UTC{mode}"] if lock.until > time.time() else []
    return " and ".join([*parts, *(["by a legal hold"] if lock.legal_hold else [])])


def nothing_to_extend(key: str, where: str) -> BadInput:
    """The error for an object that has no mode, in a storage that gives none."""
    return BadInput(f"{key!r} in {where} has no lock to extend, and no OBJECT_LOCK_MODE says which to give it.")
