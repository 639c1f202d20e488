"""The commit of a backup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.links import ManifestLink, manifest_uri
from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import PlanHandle

if TYPE_CHECKING:
    from airflow.sdk import Context


class WriteManifestOperator(SpanvaultOperator):
    """Write the manifest: from this moment on the backup exists. Creating it is conditional: of two runs one wins.

    Returns the backup's path in its collection; pushes the manifest's URI under the key `manifest`.

    .. seealso:: docs/airflow.md

    :param plan: what ``PlanBackupOperator`` pushed under ``plan``
    :param seal: what ``SealOperator`` returned
    """

    template_fields: Sequence[str] = ("plan", "seal")
    template_fields_renderers = {"plan": "json"}  # noqa: RUF012 - as Airflow declares it
    operator_extra_links = (ManifestLink(),)
    ui_color = "#d5f0c9"

    def __init__(self, *, plan: PlanHandle, seal: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.seal = seal

    def step(self, context: Context) -> str:
        """Commit; the manifest of an earlier try of the same run is kept."""
        from spanvault.engine.steps import write_manifest

        engine, into = self.engine(), self.plan["into"]
        manifest = write_manifest(engine, into, self.stored_plan(engine, self.plan), self.seal)
        self.log.info("Committed %s: rows %s at %s", manifest.subdir, f"{manifest.totals.rows:,}", manifest.end)
        context["ti"].xcom_push("manifest", manifest_uri(into, manifest.subdir, manifest.number))
        return manifest.subdir
