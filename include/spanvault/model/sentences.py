"""Parts of sentences for people."""

from __future__ import annotations

from collections.abc import Sequence


def few(names: Sequence[str], shown: int) -> str:
    """`a, b and 3 more`: the first `shown` names, and how many are left out."""
    left = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {left} more" if left > 0 else "")
