"""Seal: the one cut that the whole backup is right for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import PlanHandle
from spanvault_airflow.operators.scheduled import overtaken

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context as EngineContext
    from spanvault.model.manifest import Plan
    from spanvault_airflow.progress import Log


class SealOperator(SpanvaultOperator):
    """Choose the cut, read what only a snapshot can give, and write the change log up to the cut.

    Returns the key of the seal record.

    .. seealso:: docs/airflow.md

    :param cluster: the source's name in clusters.yaml
    :param plan: what ``PlanBackupOperator`` pushed under ``plan``
    """

    template_fields: Sequence[str] = ("cluster", "plan", "encryption", "execution_locality")
    template_fields_renderers = {"plan": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#f5e9cf"

    def __init__(self, *, cluster: str, plan: PlanHandle, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.plan = plan

    def step(self, context: Context) -> str:
        """Seal; a repeated seal takes a new cut and keeps all spans."""
        engine = self.engine()
        plan = self.stored_plan(engine, self.plan)
        return sealed(engine, self.cluster_named(self.cluster), self.plan["into"], plan, self.log)


def sealed(engine: EngineContext, cluster: Cluster, into: str, plan: Plan, log: Log) -> str:
    """The key of the seal record; an empty text, without an error, once another run has committed one of the layers, and
    with it perhaps moved the source's log on: WriteManifestOperator plans anew then."""
    from spanvault.engine.steps import seal_backup
    from spanvault.errors import SpanvaultError

    try:
        return seal_backup(engine, cluster, into, plan)
    except SpanvaultError as error:
        if not overtaken(engine, into, plan):
            raise
        log.info("Another run was faster: %s", error)
        return ""
