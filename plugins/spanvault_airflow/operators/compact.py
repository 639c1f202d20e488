"""Merging of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from spanvault_airflow.operators.base import SpanvaultOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

MODES: Final = ("incrementals", "synthetic_full")


class CompactBackupsOperator(SpanvaultOperator):
    """Merge layers of a chain into one that stands for them: the incrementals, or the full with them (a synthetic full).

    The source is not asked. The merged layer is one conditional commit; the originals stay until they expire.

    Returns the engine's answer, a dictionary for each merged layer.

    .. seealso:: docs/airflow.md

    :param collection: the collection's URI, without secrets
    :param subdir: the chain's path in the collection, or ``LATEST``
    :param mode: ``incrementals`` or ``synthetic_full``
    :param up_to: the number of the last layer that is merged; empty for the newest
    """

    template_fields: Sequence[str] = ("collection", "subdir", "mode", "up_to", "encryption", "execution_locality")
    ui_color = "#e3e3f7"

    def __init__(
        self,
        *,
        collection: str,
        subdir: str = "LATEST",
        mode: str = "incrementals",
        up_to: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.collection = collection
        self.subdir = subdir
        self.mode = mode
        self.up_to = up_to

    def step(self, context: Context) -> list[dict[str, Any]]:
        """Merge; a layer that was merged already stays as it is."""
        from spanvault.engine.maintenance import compact_backups

        uri = self.collection_uri(self.collection)
        return compact_backups(self.engine(), uri, self.subdir, first=self.first(), number=self.number()).dicts()

    def first(self) -> int:
        """The first layer to merge. Raises BadInput for an unknown mode."""
        from spanvault.errors import BadInput

        if self.mode not in MODES:
            raise BadInput(f"There is no mode {self.mode!r}; choose {' or '.join(MODES)}.")
        return 1 if self.mode == "incrementals" else 0

    def number(self) -> int | None:
        """The last layer to merge; None for the newest. Raises BadInput."""
        from spanvault.errors import BadInput

        text = str(self.up_to if self.up_to is not None else "").strip()
        if text in {"", "None"}:
            return None
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise BadInput(f"The last layer to merge is given as {text!r}; give its number, 1 or more, or leave it empty.")
        return int(text)
