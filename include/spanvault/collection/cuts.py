"""Where in a chain a time or a position lies.

The cut for a time T is the start of the first commit in log order whose time is later than T, the smallest over all
databases; everything before it is restored, nothing behind it. So transactions are whole, and stamps may run backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from spanvault.collection.commits import first_commit_after, newest_time_before
from spanvault.collection.layout import manifest_key
from spanvault.collection.windows import restorable_windows
from spanvault.errors import BadInput, Damaged
from spanvault.model.cut import Cut, Lsn, format_time
from spanvault.model.manifest import Manifest, ManifestDatabase
from spanvault.storage.base import Storage


@dataclass(frozen=True)
class Place:
    """The cut lies at the end of layer `number`, or with `inner` inside it."""

    number: int
    cut: Cut
    inner: bool = False


def place_of(storage: Storage, layers: Sequence[Manifest], as_of: datetime | Lsn | None, later: Cut | None = None) -> Place:
    """Where `as_of` lies in a chain's valid original `layers` (all of them, in order); None is the newest end.

    `later` is the next full backup's end, for the message. Raises BadInput, with the nearest restorable times or
    positions, when the chain does not hold that state; Damaged when a list of commits is.
    """
    if as_of is None:
        return _end(layers, len(layers) - 1)
    place = _of_position(storage, layers, as_of) if isinstance(as_of, Lsn) else _of_time(storage, layers, as_of)
    if place is None:
        raise BadInput(_sentence(layers, as_of, later))
    return place


def _end(layers: Sequence[Manifest], number: int) -> Place:
    return Place(number, layers[number].end)


def _of_time(storage: Storage, layers: Sequence[Manifest], moment: datetime) -> Place | None:
    exact = [number for number, layer in enumerate(layers) if layer.end.time == moment]
    if exact:
        return _end(layers, exact[-1])
    if moment < layers[0].end.time:
        return None
    holder = next((number for number, layer in enumerate(layers) if number and _reaches(layer, moment)), None)
    if holder is None or not layers[holder].revision_history:
        return None
    layer = layers[holder]
    later = [entry for entry in layer.databases if _newer(entry, moment)]
    if not later:
        return _end(layers, holder)
    if all(entry.window.first_time is None or entry.window.first_time > moment for entry in layer.databases):
        return _end(layers, holder - 1)
    lsn = min(_first_after(storage, layer, entry, moment) for entry in later)
    return Place(holder, Cut(lsn=lsn, time=moment), inner=True)


def _reaches(layer: Manifest, moment: datetime) -> bool:
    """Whether the layer has a commit later than `moment`, or ends later: the first such layer holds the cut."""
    return layer.end.time > moment or any(_newer(entry, moment) for entry in layer.databases)


def _newer(entry: ManifestDatabase, moment: datetime) -> bool:
    return entry.window.newest_time is not None and entry.window.newest_time > moment


def _first_after(storage: Storage, layer: Manifest, entry: ManifestDatabase, moment: datetime) -> Lsn:
    first = None if entry.commits is None else first_commit_after(storage, layer.subdir, entry.commits, moment)
    if first is None:
        raise Damaged(
            f"The layer {manifest_key(layer.subdir, layer.number)} has commits in {entry.database.name!r} until"
            f" {entry.window.newest_time}, and its list of transactions does not show them."
        )
    return first


def _of_position(storage: Storage, layers: Sequence[Manifest], position: Lsn) -> Place | None:
    exact = [number for number, layer in enumerate(layers) if layer.end.lsn == position]
    if exact:
        return _end(layers, exact[-1])
    for number, layer in enumerate(layers):
        if number and layer.revision_history and layer.start.lsn < position < layer.end.lsn:
            lists = [entry.commits for entry in layer.databases if entry.commits is not None]
            times = [newest_time_before(storage, layer.subdir, reference, position) for reference in lists]
            newest = max((time for time in times if time is not None), default=layer.start.time)
            return Place(number, Cut(lsn=position, time=newest), inner=True)
    return None


def _sentence(layers: Sequence[Manifest], as_of: datetime | Lsn, later: Cut | None) -> str:
    windows = restorable_windows(layers)
    before = [window.end for window in windows]
    after = [*(window.start for window in windows), *([later] if later is not None else [])]
    of: Callable[[Cut], datetime | Lsn] = _lsn if isinstance(as_of, Lsn) else _time
    below = max((value for value in map(of, before) if value < as_of), default=None)  # type: ignore[operator]  # of one kind
    above = min((value for value in map(of, after) if value > as_of), default=None)  # type: ignore[operator]  # of one kind
    what = "position" if isinstance(as_of, Lsn) else "timestamp"
    near = [f"{_text(value)} {side} it" for value, side in ((below, "before"), (above, "after")) if value is not None]
    kind = "positions" if isinstance(as_of, Lsn) else "times"
    nearest = f"the nearest restorable {kind if len(near) > 1 else kind[:-1]} {'are' if len(near) > 1 else 'is'}"
    return (
        f"Invalid RESTORE {what} {_text(as_of)}: the backup {layers[0].subdir} does not hold that state;"
        f" {nearest} {' and '.join(near)}."
    )


def _time(cut: Cut) -> datetime:
    return cut.time


def _lsn(cut: Cut) -> Lsn:
    return cut.lsn


def _text(value: datetime | Lsn) -> str:
    return str(value) if isinstance(value, Lsn) else format_time(value)
