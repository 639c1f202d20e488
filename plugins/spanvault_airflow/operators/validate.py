"""Validation of a committed backup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class ValidateBackupOperator(SpanvaultOperator):
    """Check a backup at one of the levels `check_files`, `checksums` and `schema_only`; fails when it finds damage.

    Returns the path of the backup that was checked.

    .. seealso:: docs/airflow.md

    :param collection: the collection's URI, without secrets
    :param subdir: the backup's path in the collection, or ``LATEST``
    :param level: how deep to look
    """

    template_fields: Sequence[str] = ("collection", "subdir", "level")
    ui_color = "#fbe3d6"

    def __init__(self, *, collection: str, subdir: str = "LATEST", level: str = "check_files", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.collection = collection
        self.subdir = subdir
        self.level = level

    def step(self, context: Context) -> str:
        """Check; Damaged means: no retry, look at the storage."""
        from spanvault.engine.maintenance import validate_backup

        return validate_backup(self.engine(), self.collection_uri(self.collection), self.subdir, level=self.level)
