"""The commit of a backup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanvault_airflow.links import ManifestLink, manifest_uri
from spanvault_airflow.operators.base import SpanvaultOperator
from spanvault_airflow.operators.plan import LayerHandle, PlanHandle
from spanvault_airflow.operators.scheduled import overtaken, plan_for_schedule
from spanvault_airflow.operators.seal import sealed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spanvault.engine.context import Context as EngineContext
    from spanvault.model.manifest import Manifest, Plan

_TRIES = 3


class WriteManifestOperator(SpanvaultOperator):
    """Write the manifest: from this moment on the backup exists. Creating it is conditional: of two runs one wins.

    A run that adds to a chain and finds its layer taken by another run plans anew on top of that one's, seals and commits
    in this task; it is skipped if the other run covered its interval.

    Returns the backup's path in its collection; pushes the manifest's URI under the key `manifest`, and which layers are
    new under `layer`.

    .. seealso:: docs/airflow.md

    :param cluster: the source's name in clusters.yaml
    :param plan: what ``PlanBackupOperator`` pushed under ``plan``
    :param seal: what ``SealOperator`` returned
    :param full_every: as of ``PlanBackupOperator``
    """

    template_fields: Sequence[str] = ("cluster", "plan", "seal", "full_every", "encryption", "execution_locality")
    template_fields_renderers = {"plan": "json"}  # noqa: RUF012 - as Airflow declares it
    operator_extra_links = (ManifestLink(),)
    ui_color = "#d5f0c9"

    def __init__(self, *, cluster: str, plan: PlanHandle, seal: str, full_every: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.plan = plan
        self.seal = seal
        self.full_every = full_every

    def step(self, context: Context) -> str:
        """Commit; the manifest of an earlier try of the same run is kept."""
        engine, into = self.engine(), self.plan["into"]
        plan, manifest = self.committed(context, engine, into)
        self.log.info(
            "Committed %s, layer %s: %s rows at %s", manifest.subdir, manifest.number, f"{manifest.totals.rows:,}", manifest.end
        )
        ti = context["ti"]
        ti.xcom_push("manifest", manifest_uri(into, manifest.subdir, manifest.number))
        ti.xcom_push("layer", LayerHandle(subdir=manifest.subdir, first=plan.number, number=manifest.number))
        return manifest.subdir

    def committed(self, context: Context, engine: EngineContext, into: str) -> tuple[Plan, Manifest]:
        """The plan that was committed and the newest manifest of it.

        Raises AlreadyCovered when another run left nothing to do, Busy when others were faster each time.
        """
        from spanvault.engine.steps import write_manifest
        from spanvault.errors import Busy, SpanvaultError

        plan, seal = self.stored_plan(engine, self.plan), self.seal
        for _ in range(_TRIES):
            try:
                return plan, write_manifest(engine, into, plan, seal)
            except SpanvaultError as error:
                if not overtaken(engine, into, plan):
                    raise
                self.log.info("%s Planning anew.", error)
            plan, seal = self.anew(context, engine, into, plan)
        raise Busy(f"Other runs committed into {plan.subdir} faster, {_TRIES} times; this one is tried again.")

    def anew(self, context: Context, engine: EngineContext, into: str, lost: Plan) -> tuple[Plan, str]:
        """A plan on top of what the other run committed, exported and sealed, and the key of its seal record."""
        from spanvault.engine.steps import export_batch

        cluster = self.cluster_named(self.cluster)
        plan = plan_for_schedule(context, engine, cluster, lost.request, self.full_every)
        for batch in plan.batches:
            export_batch(engine, cluster, into, plan, batch.index)
        return plan, sealed(engine, cluster, into, plan, self.log)
