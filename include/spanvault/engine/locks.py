"""Protecting a chain for longer: `spanvault collection extend-lock`."""

from __future__ import annotations

from datetime import datetime, timedelta

from spanvault.collection.contents import load_contents
from spanvault.collection.locks import end_of_newest, extend_chain
from spanvault.collection.lookup import find_subdir
from spanvault.collection.parts import require_parts
from spanvault.engine.context import Context
from spanvault.errors import BadInput
from spanvault.model.cut import format_time, utc
from spanvault.model.result import Result
from spanvault.model.uri_parameters import LONGEST_LOCK_DAYS

COLUMNS = ("path", "until", "extended", "unchanged")


def extend_lock(context: Context, uri: str, subdir: str, *, until: datetime | None = None, days: int | None = None) -> Result:
    """Protect all objects of a chain (LATEST or a path) at least until `until`, or for `days` from now; with neither, as
    long as its newest layer is. No lock gets shorter. May be killed anywhere and run again.

    Raises BadInput for a time that is not to come or is too far away, NotFound if a locality's place is not given, whose files
    would stay as they are, and what `extend_chain` raises.
    """
    storage = context.storage(uri)
    found = find_subdir(storage, subdir)
    end = _end(context.clock(), until, days) or end_of_newest(storage, found)
    opened = context.locations(uri)
    contents = load_contents(storage, found)
    places = {location: opened(location) for location in sorted(contents.locations)}
    for manifest in contents.manifests:
        data = storage if manifest.location is None else places[manifest.location]
        require_parts(data, manifest, undone="protected any longer")
    context.progress.step("extend locks")
    done = extend_chain(storage, found, tuple(places.values()), end, lambda: context.progress.advance(units=1))
    for place in done.without:
        context.progress.note(f"The data files in {place} are not protected: locks of that store cannot be extended.")
    row = (found, format_time(done.until), done.extended, done.unchanged)
    return Result(columns=COLUMNS, rows=(row,))


def _end(now: datetime, until: datetime | None, days: int | None) -> datetime | None:
    if until is not None and days is not None:
        raise BadInput("Say until when, or for how many days; not both.")
    if until is None and days is None:
        return None
    if days is not None and not 1 <= days <= LONGEST_LOCK_DAYS:
        raise BadInput(f"A lock lasts from 1 to {LONGEST_LOCK_DAYS} days, not {days}.")
    # Whole seconds, which all stores keep; never earlier than asked for.
    end = utc(until) if until is not None else now + timedelta(days=days or 0)
    end = end.replace(microsecond=0) + timedelta(seconds=1 if end.microsecond else 0)
    if not now < end <= now + timedelta(days=LONGEST_LOCK_DAYS, seconds=1):
        raise BadInput(f"A lock ends in the future, within {LONGEST_LOCK_DAYS} days, and not at {format_time(end)}.")
    return end
