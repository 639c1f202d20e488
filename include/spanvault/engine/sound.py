"""Layers that were just written are looked at before the source forgets what they hold."""

from __future__ import annotations

from collections.abc import Iterable

from spanvault.collection.markers import mark_invalid
from spanvault.engine.context import Context
from spanvault.errors import Damaged
from spanvault.verify.files import check_files
from spanvault.verify.result import VerificationResult


def check_written(context: Context, uri: str, subdir: str, numbers: Iterable[int], location: str | None = None) -> None:
    """Look whether all files of layers that a run has committed are there with their sizes, by listings alone. `location`
    opens their incremental location, whose secrets their manifests do not have. Raises as `require_sound`."""
    opened = context.locations(uri)
    for number in numbers:
        result = check_files(
            context.storage(uri), subdir, number, open_location=lambda there: opened(location or there), progress=context.progress
        )
        require_sound(context, uri, subdir, number, result)


def require_sound(context: Context, uri: str, subdir: str, number: int | None, result: VerificationResult) -> None:
    """Raises Damaged, Permanent or Retryable unless the verification passed. A layer `number` that is damaged is marked
    invalid, so that nothing is built upon it nor restored from it."""
    try:
        result.require_pass()
    except Damaged as error:
        if number is not None:
            mark_invalid(context.storage(uri), subdir, number, str(error), context.clock())
        raise
