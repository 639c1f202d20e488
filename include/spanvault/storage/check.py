"""Whether a place keeps the contract of storage/base.py: tried on the place itself, below a folder that is removed again.

What no other backup's safety hangs on is a warning; anything else that fails means that backups there may be lost or mixed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from spanvault.errors import Locked, NotFound, SpanvaultError
from spanvault.model.base import Value
from spanvault.model.progress import Progress
from spanvault.storage import check_properties as properties
from spanvault.storage.check_earlier import remove_earlier
from spanvault.storage.check_properties import Broken, Place
from spanvault.storage.check_speed import measure_reading, measure_writing
from spanvault.storage.check_streams import interrupted_stream, object_lock, unfinished_writes

Status = Literal["ok", "warning", "failed", "not checked"]
LEAVE_BEHIND = "--leave-behind"
_NOT_CHECKED = f"What it writes could not be removed again; {LEAVE_BEHIND} checks it nonetheless."


class Finding(Value):
    """One property of a place: what was found, in a sentence, and for a transfer its speed (10^6 bytes a second)."""

    check: str
    status: Status
    detail: str
    mb_per_second: float | None = None


@dataclass(frozen=True)
class _Property:
    """A property, and what tries it: that returns what it found, or raises. `needed`: backups are not safe without it."""

    name: str
    found: Callable[[Place], str]
    needed: bool = True


_PROPERTIES = (
    _Property("conditional create", properties.conditional_create),
    _Property("read after write", properties.read_after_write),
    _Property("list after write", properties.list_after_write),
    _Property("listing order", properties.listing_order),
    _Property("unicode keys", properties.unicode_keys, needed=False),
    _Property("interrupted stream", interrupted_stream),
    _Property("unfinished writes", unfinished_writes, needed=False),
)


def check_storage(place: Place, *, transfer: int, leave_behind: bool, progress: Progress) -> tuple[Finding, ...]:
    """Try every property, and stream `transfer` bytes there and back; what was written is removed, whatever happens, and with
    it what checks that were killed left a day ago or earlier.

    Where nothing can be removed the rest is not tried, unless with `leave_behind`. Raises what the first listing and the
    first write raise: NotFound for a missing bucket, BadInput for credentials that do not do.
    """
    run = _Run(place, transfer, progress)
    try:
        run.first()
        if run.removable or leave_behind:
            run.rest()
        else:
            run.skip_rest()
    finally:
        run.clean_up()
    return tuple(run.findings)


class _Run:
    """The findings so far."""

    def __init__(self, place: Place, transfer: int, progress: Progress) -> None:
        self.findings: list[Finding] = []
        self.removable = False
        self._place = place
        self._transfer = transfer
        self._progress = progress

    def first(self) -> None:
        """Reach the place, and try what the rest needs. Raises what the place says to the first calls."""
        self._progress.step("Checking write, read and delete")
        next(self._place.writer.list(f"{self._place.folder}/"), None)
        self._place.writer.put(self._place.key("first"), properties.CONTENT)
        self._try(_Property("write, read and list", properties.write_and_read))
        try:
            self._add("delete", "ok", properties.deletion(self._place))
            self.removable = True
        except Broken as error:
            self._add("delete", "failed", str(error))
        except SpanvaultError as error:
            sentence = f"Backups can be made here, but neither expired nor swept, because deletion fails: {error}"
            self._add("delete", "warning", sentence)

    def rest(self) -> None:
        """Try everything else."""
        for each in self._rest():
            self._progress.step(f"Checking {each.name}")
            self._try(each)
        self._measure()

    def skip_rest(self) -> None:
        """Say that the rest was not tried."""
        for name in [*(each.name for each in self._rest()), "write speed", "read speed"]:
            self._add(name, "not checked", _NOT_CHECKED)

    def clean_up(self) -> None:
        """Remove what was written; what stays is a finding, and a note, because an interrupted check shows no findings."""
        if not self._place.used:
            return
        stays, reason = _removed(self._place, self._progress)
        earlier, kept = remove_earlier(self._place.writer) if self.removable and not stays else (0, "")
        if stays:
            where = f"{self._place.folder}/ in {self._place.writer.display_uri}"
            sentence = f"{stays} objects that the check wrote stay below {where}: {reason}"
            self._add("clean-up", "warning", sentence)
            self._progress.note(sentence)
        elif kept:
            self._add("clean-up", "warning", f"Of what earlier checks left, as they were killed, some stays: {kept}")
        else:
            too = f"; of what killed checks had left, too: {earlier}." if earlier else "."
            self._add("clean-up", "ok", f"Everything that the check wrote was removed again{too}")

    def _rest(self) -> list[_Property]:
        found = list(_PROPERTIES)
        if self._place.lock is not None:
            # A hold has no end: what tried it would stay until a person takes it off.
            only_hold = self._place.lock.mode is None
            found.append(_Property("object lock", object_lock, needed=not only_hold))
        if self._place.storage_class is not None:
            found.append(_Property("storage class", properties.storage_class))
        return found

    def _try(self, tried: _Property) -> None:
        try:
            self._add(tried.name, "ok", tried.found(self._place))
        except SpanvaultError as error:
            self._add(tried.name, "failed" if tried.needed else "warning", str(error))

    def _measure(self) -> None:
        digest = b""
        for name in ("write speed", "read speed"):
            self._progress.step(f"Checking {name}", total_bytes=self._transfer)
            try:
                if name == "write speed":
                    measured, digest = measure_writing(self._place, self._transfer, self._progress)
                else:
                    measured = measure_reading(self._place, self._transfer, digest, self._progress)
            except SpanvaultError as error:
                self._add(name, "failed", str(error))
            else:
                self._add(name, "ok", measured.sentence, measured.mb_per_second)

    def _add(self, name: str, status: Status, detail: str, speed: float | None = None) -> None:
        self.findings.append(Finding(check=name, status=status, detail=detail, mb_per_second=speed))


def _removed(place: Place, progress: Progress) -> tuple[int, str]:
    """Remove everything below the folder; how many objects stay, and why the first of them does."""
    _wait_for_locks(place, progress)
    with suppress(SpanvaultError):
        for unfinished in properties.unfinished(place):
            place.writer.remove_unfinished(unfinished)
    keys = set(place.used)
    # A listing that lags may leave out some, and one of a broken place may hold others.
    with suppress(SpanvaultError):
        keys.update(info.key for info in place.writer.list(f"{place.folder}/"))
    stays, reason = 0, ""
    for key in sorted(keys):
        try:
            place.writer.delete(key)
        except NotFound:
            continue
        except SpanvaultError as error:
            with suppress(SpanvaultError):
                if place.writer.head(key) is None:
                    continue
            stays, reason = stays + 1, reason or str(error)
    return stays, reason


def _forget_unlocked(place: Place) -> None:
    """Nobody waits for what the store refused to write, or wrote without the lock."""
    for key in list(place.locked_keys):
        with suppress(SpanvaultError):
            place.writer.delete(key)
            place.locked_keys.remove(key)


def _wait_for_locks(place: Place, progress: Progress) -> None:
    """The objects that were locked for this check can be removed soon. The store's clock may be a little behind."""
    _forget_unlocked(place)
    if not place.locked_keys:
        return
    seconds = place.locked_until - time.time()
    if seconds > 0:
        progress.note(f"The locks of what was written end in {seconds:.0f} s, and then it is removed.")
        time.sleep(seconds)
    deadline = time.monotonic() + 10
    while place.locked_keys:
        try:
            place.writer.delete(place.locked_keys[-1])
            place.locked_keys.pop()
        except Locked:
            if time.monotonic() > deadline:
                return
            time.sleep(1)
        except SpanvaultError:
            return
