"""The mapped task of a backup: export one batch of spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import NO_BATCH, BatchHandle, PlanHandle

if TYPE_CHECKING:
    from airflow.sdk import Context


class SpanExportOperator(SpanvaultOperator):
    """Export one batch of the plan to Parquet. Spans that have a receipt are done and are not exported again, so a
    killed task continues where it was.

    Returns the counts of spans exported and skipped, rows and bytes.

    .. seealso:: docs/airflow.md

    :param cluster: the source's name in clusters.yaml
    :param plan: what ``PlanBackupOperator`` pushed under ``plan``
    :param batch: the batch: an element of what ``PlanBackupOperator`` returned
    """

    template_fields: Sequence[str] = ("cluster", "plan", "batch", "encryption", "execution_locality")
    template_fields_renderers = {"plan": "json", "batch": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#d9e8f5"

    def __init__(self, *, cluster: str, plan: PlanHandle, batch: BatchHandle, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.plan = plan
        self.batch = batch

    def step(self, context: Context) -> dict[str, int]:
        """Export what of the batch has no receipt yet."""
        from spanvault.engine.steps import export_batch

        if self.batch["index"] == NO_BATCH:
            return {"spans": 0, "skipped": 0, "rows": 0, "bytes": 0}
        engine, cluster = self.engine(), self.cluster_named(self.cluster)
        done = export_batch(engine, cluster, self.plan["into"], self.stored_plan(engine, self.plan), self.batch["index"])
        return {"spans": done.spans, "skipped": done.skipped, "rows": done.rows, "bytes": done.bytes}
