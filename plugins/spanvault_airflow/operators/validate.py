"""Validation of a committed backup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import LayerHandle

if TYPE_CHECKING:
    from airflow.sdk import Context


class ValidateBackupOperator(SpanvaultOperator):
    """Check a backup at one of the levels `check_files`, `checksums`, `schema_only` and `verify_backup_table_data`; fails
    when it finds damage.

    Returns the path of the backup that was checked.

    .. seealso:: docs/airflow.md

    :param collection: the collection's URI, without secrets
    :param subdir: the backup's path in the collection, or ``LATEST``
    :param level: how deep to look
    :param layer: check only these layers: what ``WriteManifestOperator`` pushed under ``layer``; None for the whole backup
    """

    template_fields: Sequence[str] = ("collection", "subdir", "level", "layer", "encryption", "execution_locality")
    template_fields_renderers = {"layer": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#fbe3d6"

    def __init__(
        self,
        *,
        collection: str,
        subdir: str = "LATEST",
        level: str = "check_files",
        layer: LayerHandle | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.collection = collection
        self.subdir = subdir
        self.level = level
        self.layer = layer

    def step(self, context: Context) -> str:
        """Check; Damaged means: no retry, look at the storage."""
        from spanvault.engine.maintenance import validate_backup

        engine, uri = self.engine(), self.collection_uri(self.collection)
        if self.layer is None:
            return validate_backup(engine, uri, self.subdir, level=self.level)
        for number in range(self.layer["first"], self.layer["number"] + 1):
            validate_backup(engine, uri, self.layer["subdir"], level=self.level, number=number)
        return self.layer["subdir"]
