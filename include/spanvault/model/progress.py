"""How long-running work tells its progress; observe shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about work as it is done. Calls may come from several threads. Implementations must not raise."""

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """A named step begins, with its size where known."""

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Work of the current step was done."""

    def note(self, text: str) -> None:
        """Something worth a line for a person."""


class Silent:
    """Progress that nobody watches."""

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """Ignored."""

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
