"""Parts of sentences for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def few(names: Sequence[str], shown: int) -> str:
    """`a, b and 3 more`: the first `shown` names, and how many are left out."""
    left = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {left} more" if left > 0 else "")


def counted(count: int, one: str) -> str:
    """`1 table`, `2 tables`: how many there are, of nouns whose plural ends in s."""
    return f"{count} {one}" if count == 1 else f"{count} {one}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint ` (did you mean 'x'?)` if a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
