"""The wall clock behind one name, so that tests can set it; durations use time.monotonic()."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def now() -> datetime:
    """The present moment, UTC, microseconds."""
    return datetime.now(UTC)
