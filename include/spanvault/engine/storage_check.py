"""Checking that a place can hold backups, before the first one goes there."""

from __future__ import annotations

import uuid
from dataclasses import replace

from spanvault.engine.context import Context
from spanvault.errors import BadInput, Refused
from spanvault.model.result import Result
from spanvault.model.units import format_bytes, parse_bytes
from spanvault.model.uri import StorageUri
from spanvault.storage.base import Storage
from spanvault.storage.check import check_storage
from spanvault.storage.check_properties import Place
from spanvault.storage.registry import open_storage

FOLDER = "spanvault-check-"
LEAST_TRANSFER, MOST_TRANSFER = 1 << 20, 64 << 30
LOCK_SECONDS = 60.0
_DAY = 86_400


def storage_check(
    context: Context, uri: str, *, transfer: str = "64MiB", leave_behind: bool = False, lock_seconds: float = LOCK_SECONDS
) -> Result:
    """Try the place `uri` below a folder of its own, which is removed again; a row for each property, with `status` ok,
    warning, failed or not checked. Locks that the URI asks for are tried for `lock_seconds`, not for their days.

    Raises BadInput or NotFound for a place that cannot be used at all, Retryable for one that does not answer.
    """
    size = parse_bytes(transfer)
    if not LEAST_TRANSFER <= size <= MOST_TRANSFER:
        limits = f"{format_bytes(LEAST_TRANSFER)} to {format_bytes(MOST_TRANSFER)}"
        raise BadInput(f"{transfer!r} cannot be transferred by a check; give {limits}.")
    try:
        place = _place(context, StorageUri.parse(uri), lock_seconds)
    except Refused as error:
        # By the settings, before anything is done: whether this place may be used was the question.
        raise BadInput(str(error)) from error
    findings = check_storage(place, transfer=size, leave_behind=leave_behind, progress=context.progress)
    rows = tuple((found.check, found.status, found.detail, found.mb_per_second) for found in findings)
    return Result(columns=("check", "status", "detail", "mb_per_second"), rows=rows)


def _place(context: Context, uri: StorageUri, lock_seconds: float) -> Place:
    plain, lock = uri.without_lock().revealed(), uri.object_lock
    return Place(
        writer=context.stored(plain),
        reader=context.stored(plain),
        folder=f"{FOLDER}{uuid.uuid4()}",
        lock=lock,
        locking=_locking(context, uri, lock_seconds),
        lock_seconds=lock_seconds,
        storage_class=uri.params.get("S3_STORAGE_CLASS"),
        archive=uri.is_archive,
    )


def _locking(context: Context, uri: StorageUri, seconds: float) -> Storage | None:
    """The place, with locks of the mode that is asked for that soon end; None if no mode is."""
    if uri.object_lock is None or uri.object_lock.mode is None:
        return None
    short = replace(uri.object_lock, days=seconds / _DAY, legal_hold=False)
    plain = uri.without_lock().revealed()
    return context.wrap(open_storage(plain, settings=context.settings, connections=context.connections, lock=short))
