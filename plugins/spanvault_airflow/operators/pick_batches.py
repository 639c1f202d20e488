"""Which batches the workers of a queue are given: one mapped task has one queue, whatever its map index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import NO_BATCH, BatchHandle

if TYPE_CHECKING:
    from airflow.sdk import Context


class PickBatchesOperator(SpanvaultOperator):
    """Pick the batches of one queue, or those of no queue among `queues`, out of a plan's.

    Returns them for mapping `SpanExportOperator`, which Airflow skips when there are none.

    .. seealso:: docs/airflow.md

    :param batches: what ``PlanBackupOperator`` returned
    :param queues: the queues that have a task of their own in this DAG
    :param pick: the queue whose batches are picked; empty for those of no queue among `queues`
    """

    template_fields: Sequence[str] = ("batches", "encryption", "execution_locality")
    template_fields_renderers = {"batches": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e8e8"

    def __init__(self, *, batches: Sequence[BatchHandle], queues: Sequence[str], pick: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batches = batches
        self.queues = list(queues)
        self.pick = pick

    def step(self, context: Context) -> list[BatchHandle]:
        """Pick. A queue that is not among `queues`, because clusters.yaml has changed since the DAG was read, is none."""
        return [batch for batch in self.batches if batch["index"] != NO_BATCH and self.queue_of(batch) == self.pick]

    def queue_of(self, batch: BatchHandle) -> str:
        """The batch's queue, or an empty text."""
        queue = batch.get("queue", "")
        return queue if queue in self.queues else ""
