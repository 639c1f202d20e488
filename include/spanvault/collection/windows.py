"""From when to when a chain can be restored: exact ends, and intervals in which any time will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from spanvault.model.cut import Cut


class LayerFacts(Protocol):
    """What must be known of a layer: a Manifest, an IndexEntry or a Layer."""

    @property
    def end(self) -> Cut:
        """Where the layer ends."""

    @property
    def revision_history(self) -> bool:
        """Whether it holds every change."""


@dataclass(frozen=True)
class RestorableWindow:
    """The state is known at `end` and at `start`; with `any_time` also at any time in between."""

    start: Cut
    end: Cut
    any_time: bool


def restorable_windows(layers: Sequence[LayerFacts]) -> tuple[RestorableWindow, ...]:
    """The windows of a chain's valid original layers, which stand in order from the full on. A window is a single cut
    (`start` is `end`, `any_time` false) or an interval; neighbouring intervals are one."""
    windows: list[RestorableWindow] = []
    for place, layer in enumerate(layers):
        if place and layer.revision_history:
            # The layer before ends where this one begins, so its window is the last and grows.
            windows[-1] = RestorableWindow(windows[-1].start, layer.end, any_time=True)
        else:
            windows.append(RestorableWindow(layer.end, layer.end, any_time=False))
    return tuple(windows)
