"""Give back history that is backed up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import LayerHandle, PlanHandle

if TYPE_CHECKING:
    from airflow.sdk import Context


class AdvanceProtectionOperator(SpanvaultOperator):
    """Let the source forget the change log up to the committed backup's end.

    .. seealso:: docs/airflow.md

    :param cluster: the source's name in clusters.yaml
    :param plan: what ``PlanBackupOperator`` pushed under ``plan``
    :param layer: what ``WriteManifestOperator`` pushed under ``layer``
    """

    template_fields: Sequence[str] = ("cluster", "plan", "layer", "encryption", "execution_locality")
    template_fields_renderers = {"plan": "json", "layer": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#eadcf2"

    def __init__(self, *, cluster: str, plan: PlanHandle, layer: LayerHandle, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.plan = plan
        self.layer = layer

    def step(self, context: Context) -> None:
        """Advance; the manifest on storage says how far."""
        from spanvault.collection.chain import load_manifest
        from spanvault.engine.steps import advance_protection

        engine = self.engine()
        manifest = load_manifest(engine.storage(self.plan["into"]), self.layer["subdir"], self.layer["number"])
        advance_protection(engine, self.cluster_named(self.cluster), manifest)
