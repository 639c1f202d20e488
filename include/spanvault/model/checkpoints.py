"""Named points of the engine's steps: where a crash is interesting.

A step calls `reached("seal.after_change_files")` on the callable that its context carries. In production it does
nothing; tests inject one that counts, raises or kills, so that "killed right here" is a test and not a thought.
"""

from __future__ import annotations

from collections.abc import Callable

Reached = Callable[[str], None]


def pass_by(name: str, /) -> None:
    """The Reached of production: does nothing."""
