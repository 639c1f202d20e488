"""Checking that a place can hold backups, before the first one goes there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

from spanvault.engine.context import Context
from spanvault.errors import BadInput, Refused
from spanvault.model.places import Places
from spanvault.model.result import Cell, Result
from spanvault.model.units import format_bytes, parse_bytes
from spanvault.model.uri import DEFAULT_LOCALITY, StorageUri
from spanvault.storage.base import Storage
from spanvault.storage.check import check_storage
from spanvault.storage.check_earlier import FOLDER
from spanvault.storage.check_properties import Place
from spanvault.storage.registry import open_storage

LEAST_TRANSFER, MOST_TRANSFER = 1 << 20, 64 << 30
LOCK_SECONDS = 60.0
COLUMNS = ("check", "status", "detail", "mb_per_second")
_DAY = 86_400


def storage_check(
    context: Context, uri: str, *, transfer: str = "64MiB", leave_behind: bool = False, lock_seconds: float = LOCK_SECONDS
) -> Result:
    """Try the place `uri` below a folder of its own, which is removed again; a row for each property, with `status` ok,
    warning, failed or not checked. Of several places each is tried, one after the other, and `locality` says whose a row is.
    Locks that the URI asks for are tried for `lock_seconds`, not for their days.

    Raises BadInput or NotFound for a place that cannot be used at all, Retryable for one that does not answer.
    """
    size = parse_bytes(transfer)
    if not LEAST_TRANSFER <= size <= MOST_TRANSFER:
        limits = f"{format_bytes(LEAST_TRANSFER)} to {format_bytes(MOST_TRANSFER)}"
        raise BadInput(f"{transfer!r} cannot be transferred by a check; give {limits}.")
    places = Places.parse(uri)
    try:
        # All are opened before the first is tried: a mistake in one is found before the minutes that another takes.
        opened = [
            (locality, _place(context, place, lock_seconds))
            for locality, place in ((DEFAULT_LOCALITY, places.default), *places.others)
        ]
    except Refused as error:
        # By the settings, before anything is done: whether this place may be used was the question.
        raise BadInput(str(error)) from error
    rows: list[tuple[Cell, ...]] = []
    for locality, place in opened:
        if places.others:
            context.progress.note(f"Checking the place of {locality}.")
        rows += ((locality, *row) if places.others else row for row in _rows(context, place, size, leave_behind))
    return Result(columns=("locality", *COLUMNS) if places.others else COLUMNS, rows=tuple(rows))


def _rows(context: Context, place: Place, transfer: int, leave_behind: bool) -> Iterator[tuple[Cell, ...]]:
    for found in check_storage(place, transfer=transfer, leave_behind=leave_behind, progress=context.progress):
        yield found.check, found.status, found.detail, found.mb_per_second


def _place(context: Context, given: StorageUri, lock_seconds: float) -> Place:
    # By itself it is nobody's locality.
    uri = replace(given, parameters=tuple(pair for pair in given.parameters if pair[0] != "COCKROACH_LOCALITY"))
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
