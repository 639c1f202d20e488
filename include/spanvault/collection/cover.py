"""Which layers to read: of all contiguous rows of original and compacted layers the one with the fewest bytes."""

from __future__ import annotations

from collections.abc import Sequence

from spanvault.model.manifest import Manifest


def cheapest_cover(originals: Sequence[Manifest], compacted: Sequence[Manifest], last: int) -> tuple[Manifest, ...]:
    """Layers from the full (or one that stands for it) to layer `last`, by the sum of `totals.file_bytes`; of equal sums
    the one with fewer layers. `originals` are layers 0, 1 ... in order; `compacted` must stand for some of them."""
    best: list[tuple[int, int, tuple[Manifest, ...]]] = [(0, 0, ())]
    for number in range(last + 1):
        choices = [originals[number], *(layer for layer in compacted if layer.number == number)]
        reached = [(best[layer.first], layer) for layer in choices]
        best.append(
            min(
                ((cost + layer.totals.file_bytes, count + 1, (*before, layer)) for (cost, count, before), layer in reached),
                key=lambda way: way[:2],
            )
        )
    return best[last + 1][2]
