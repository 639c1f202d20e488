"""From the form's point in time to the engine's."""

from __future__ import annotations

from datetime import UTC, datetime

from spanvault.errors import BadInput
from spanvault.model.cut import Lsn, format_time
from spanvault.model.units import parse_duration


def moment_of(text: str | None, present: datetime) -> datetime | Lsn | None:
    """A time (`2026-11-22 10:00:00+00`, UTC where it has no zone), a time before `present` (`-10m`) or a log position
    (`16/B374D848`); None for nothing: the newest.

    Raises BadInput for anything else, and for a time after `present`.
    """
    given = (text or "").strip()
    if given in {"", "None"}:
        return None
    try:
        if "/" in given:
            return Lsn.parse(given)
        if given.startswith("-") and given[1:2].isdigit():
            return present - parse_duration(given[1:])
        moment = datetime.fromisoformat(given)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, BadInput):
        raise BadInput(
            f"The time {given!r} cannot be read; write '2026-11-22 10:00:00+00', '-10m' or a log position such as '16/B374D848'."
        ) from None
    if moment > present:
        raise BadInput(f"{format_time(moment)} lies in the future: it was {format_time(present)} when the run began.")
    return moment
