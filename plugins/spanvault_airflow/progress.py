"""The engine's progress as lines in a task's log."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 10.0


class Log(Protocol):
    """The part of a logger that is used, whether of the standard library or of Airflow."""

    def info(self, event: str | None, *args: Any, **kwargs: Any) -> Any:
        """A line for people."""


class LogProgress:
    """Writes a line when a step begins, then at most one each SECONDS_BETWEEN_LINES; callable from several threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._begin("", 0, 0)

    def _begin(self, name: str, total_bytes: int, total_units: int) -> None:
        self._name, self._total_bytes, self._total_units = name, total_bytes, total_units
        self._rows = self._bytes = self._units = 0
        self._started = self._last = time.monotonic()

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """A named step begins."""
        with self._lock:
            self._begin(name, total_bytes, total_units)
        self._log.info("%s: %s", name, _size(total_bytes, total_units))

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Work was done; becomes a line if the last one is old enough."""
        with self._lock:
            self._rows += rows
            self._bytes += bytes_
            self._units += units
            now = time.monotonic()
            if now - self._last < SECONDS_BETWEEN_LINES:
                return
            self._last = now
            line = self._line(now)
        self._log.info("%s", line)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._log.info("%s", text)

    def _line(self, now: float) -> str:
        done = _fraction(self._bytes, self._total_bytes) or _fraction(self._units, self._total_units)
        speed = self._bytes / 1e6 / max(now - self._started, 1e-3)
        left = f", about {(now - self._started) * (1 - done) / done:.0f} s left" if done else ""
        percent = f"{done:.0%}, " if done else ""
        return f"{self._name}: {percent}{self._rows:,} rows, {self._bytes / 1e6:,.1f} MB, {speed:,.1f} MB/s{left}"


def _fraction(done: int, total: int) -> float:
    return min(done / total, 1.0) if total and done else 0.0


def _size(total_bytes: int, total_units: int) -> str:
    parts = [f"{total_units:,} units"] if total_units else []
    parts += [f"{total_bytes / 1e6:,.1f} MB"] if total_bytes else []
    return ", ".join(parts) or "started"
