"""Deletion of backups that a policy no longer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class ExpireBackupsOperator(SpanvaultOperator):
    """Delete whole chains that neither rule keeps; without `delete`, the default, only say which.

    Returns the paths of the chains that went, or would go. Fails when one could not be deleted, after all others were.

    .. seealso:: docs/airflow.md

    :param collection: the collection's URI, without secrets
    :param keep_last: how many of the newest chains stay; empty for no such rule
    :param window: how far back any time must stay restorable, such as ``30d``; empty for no such rule
    :param delete: delete them; otherwise only say which
    """

    template_fields: Sequence[str] = ("collection", "keep_last", "window", "delete", "encryption", "execution_locality")
    ui_color = "#f3d1d1"

    def __init__(
        self,
        *,
        collection: str,
        keep_last: int | str | None = None,
        window: str | None = None,
        delete: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.collection = collection
        self.keep_last = keep_last
        self.window = window
        self.delete = delete

    def step(self, context: Context) -> list[str]:
        """Decide, log each decision with its reason, and delete if told to."""
        from spanvault.collection.retention import Policy
        from spanvault.engine.maintenance import expire_backups
        from spanvault.errors import Refused
        from spanvault.model.units import parse_duration

        keep_last = self.options_of(Policy, {"keep_last": self.keep_last}).keep_last
        window = parse_duration(self.window) if self.window and self.window != "None" else None
        delete = str(self.delete).lower() == "true"
        uri = self.collection_uri(self.collection)
        decisions = expire_backups(self.engine(), uri, keep_last=keep_last, window=window, dry_run=not delete).dicts()
        for decision in decisions:
            verb = str(decision["decision"])
            if verb == "expire":
                verb = "deleted" if delete else "would delete"
            self.log.info("%s: %s, %s", verb, decision["path"], decision["reason"])
        failed = [str(decision["reason"]) for decision in decisions if decision["decision"] == "failed"]
        if failed:
            raise Refused(" ".join(failed))
        return [str(decision["path"]) for decision in decisions if decision["decision"] == "expire"]
