"""The times of commits as the log has them: nearly ascending, unless a clock was set or a transaction came from elsewhere.

A commit's time stamp is taken before its record enters the log, so neighbours may be out of order by microseconds. A
clock that was set backwards or forwards shows as more. Transactions of a replication origin carry the time of the server
where they were made; the running maximum of the local ones stands for it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from spanvault.errors import Refused
from spanvault.model.cut import Lsn, format_time


class CommitTimes:
    """Effective times in log order, from a time before the first commit on, which was that of the position `start_lsn`.

    Raises Refused, with both positions, for a commit whose time lies more than `max_skew` before an earlier one, or after
    `latest` (the server's clock when the log was read): what lies between could not be told apart by time. Where no time
    inside matters (`tolerant`) it does not raise: a commit of after `latest` then has the running maximum.
    """

    def __init__(
        self,
        start: datetime,
        max_skew: timedelta,
        latest: datetime | None = None,
        *,
        start_lsn: int | None = None,
        tolerant: bool = False,
    ) -> None:
        self._newest = start
        self._newest_lsn = start_lsn
        self._max_skew = max_skew
        self._latest = latest
        self._tolerant = tolerant

    def local(self, lsn: int, moment: datetime) -> datetime:
        """The time of a transaction of this server."""
        ahead = self._latest is not None and moment - self._latest > self._max_skew
        if self._tolerant:
            moment = self._newest if ahead else moment
        else:
            self._check(lsn, moment, ahead=ahead)
        if self._newest_lsn is None or moment > self._newest:
            self._newest, self._newest_lsn = max(moment, self._newest), lsn
        return moment

    def foreign(self) -> datetime:
        """The time of a transaction of a replication origin."""
        return self._newest

    def _check(self, lsn: int, moment: datetime, *, ahead: bool) -> None:
        if self._newest_lsn is not None and self._newest - moment > self._max_skew:
            raise Refused(
                f"The source's clock was set back: what is at {Lsn(self._newest_lsn)} has the time"
                f" {format_time(self._newest)}, and a later one at {Lsn(lsn)} {format_time(moment)}; no cut by time is"
                " right across that. Take a backup without AS OF SYSTEM TIME and without revision history, or allow the step"
                " by a larger max_clock_skew."
            )
        if ahead and self._latest is not None:
            raise Refused(
                f"The commit at {Lsn(lsn)} has the time {format_time(moment)}, which is later than the source's clock"
                f" ({format_time(self._latest)}): the clock was wrong. Allow it by a larger max_clock_skew, or back up without"
                " AS OF SYSTEM TIME and without revision history."
            )
