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
        from spanvault.collection.lookup import find_subdir
        from spanvault.errors import BadInput
        from spanvault.verify.data import check_data
        from spanvault.verify.files import check_files

        engine = self.engine()
        storage = engine.storage(self.collection_uri(self.collection))
        subdir = find_subdir(storage, self.subdir)
        if self.level == "check_files":
            result = check_files(storage, subdir, progress=engine.progress)
        elif self.level == "checksums":
            result = check_data(storage, subdir, scratch=engine.settings.scratch_dir, progress=engine.progress)
        else:
            raise BadInput(f"There is no validation level {self.level!r}; the levels are check_files, checksums and schema_only.")
        self.log.info("%s of %s: %s, %s objects, %s bytes", self.level, subdir, result.outcome, result.objects, result.bytes)
        for note in result.notes:
            self.log.info("%s", note)
        result.require_pass()
        return subdir
