"""Whether the source is still the one that a backup was planned on, and its log durable up to the cut."""

from __future__ import annotations

import time
from collections.abc import Iterable

from spanvault.backup.context import Run
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.server import flush_lsn, timeline
from spanvault.errors import BrokenChain, Busy
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Receipt

_FLUSH_WAIT_SECONDS = 30.0


def check_source(run: Run, receipts: Iterable[Receipt], end: Lsn) -> None:
    """The cut must lie beyond everything that any span can have seen, on the same timeline, and be durable."""
    timelines, newest = {run.plan.source.timeline}, Lsn(0)
    for receipt in receipts:
        timelines.add(receipt.timeline)
        newest = max(newest, receipt.seen_lsn)
    connection = connect(run.cluster.primary, purpose="seal")
    try:
        timelines.add(timeline(connection))
        if len(timelines) > 1:
            raise BrokenChain(
                "The source was promoted during the backup (timelines "
                f"{', '.join(map(str, sorted(timelines)))}): its spans may show what is no longer there. Start a new full backup."
            )
        if newest > end:
            raise BrokenChain(
                f"A span saw the log up to {newest}, but the source is at {end}: it was rolled back. Start a new full backup."
            )
        deadline = time.monotonic() + _FLUSH_WAIT_SECONDS
        while flush_lsn(connection) < end:
            if time.monotonic() > deadline:
                raise Busy(f"The source's log was not flushed up to {end} within {_FLUSH_WAIT_SECONDS:g} s.")
            time.sleep(0.02)
    finally:
        connection.close()
