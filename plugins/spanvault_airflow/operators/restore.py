"""The tasks of a restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from spanvault_airflow.operators.base import SpanvaultOperator, due, require_worker_in
from spanvault_airflow.operators.plan import NO_BATCH, BatchHandle, batch_handles

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spanvault.model.request import RestoreRequest


class RestoreHandle(TypedDict):
    """What the tasks after the plan are told: the request as JSON, its backup fixed to a path, its time to a moment."""

    request: str


class PlanRestoreOperator(SpanvaultOperator):
    """Plan a restore: resolve the backup, check the target, decide on load units.

    Returns the batches (index and label) for mapping `LoadBatchOperator`; pushes the request under the key `plan`.

    .. seealso:: docs/airflow.md

    :param cluster: the target's name in clusters.yaml
    :param collection: the collection's URI, without secrets (``?conn_id=`` names a Connection)
    :param subdir: the backup's path in the collection, or ``LATEST``
    :param scope: what to restore: ``cluster``, ``database``, ``schema`` or ``table``
    :param names: the databases, schemas or tables, one per element or line; empty for a cluster
    :param as_of: the time to restore to: with a zone, as ``-10m`` before the run began, or a log position; empty for the newest
    :param options: RestoreOptions by name, for example ``{"new_db_name": "shop_restored"}``
    """

    template_fields: Sequence[str] = (
        "cluster",
        "collection",
        "subdir",
        "scope",
        "names",
        "as_of",
        "options",
        "encryption",
        "execution_locality",
    )
    template_fields_renderers = {"options": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#cfe8e0"

    def __init__(
        self,
        *,
        cluster: str,
        collection: str,
        subdir: str = "LATEST",
        scope: str = "cluster",
        names: Sequence[str] | str = (),
        as_of: str | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.collection = collection
        self.subdir = subdir
        self.scope = scope
        self.names = names
        self.as_of = as_of
        self.options = dict(options or {})

    def step(self, context: Context) -> list[BatchHandle]:
        """Plan; the backup that LATEST means is fixed here for all tasks and tries after it."""
        from spanvault.engine.restore_steps import plan_restore

        self.tell_pool(self.cluster)
        plan = plan_restore(self.engine(), self.cluster_named(self.cluster), self.request(due(context)))
        context["ti"].xcom_push("plan", RestoreHandle(request=plan.request.model_dump_json()))
        return batch_handles(plan.batches)

    def request(self, began: datetime) -> RestoreRequest:
        """The request that the rendered fields describe, times before now counted from `began`. Raises BadInput."""
        from spanvault.model.request import RestoreOptions, RestoreRequest
        from spanvault_airflow.moments import moment_of
        from spanvault_airflow.targets import target_of

        options = self.options_of(RestoreOptions, {"execution_locality": self.execution_locality, **self.options})
        require_worker_in(options.execution_locality)
        if options.incremental_location is not None:
            location = self.collection_uri(options.incremental_location)
            options = options.model_copy(update={"incremental_location": location})
        return RestoreRequest(
            target=target_of(self.scope, self.names),
            subdir=self.subdir,
            collection=self.collection_uri(self.collection),
            as_of=moment_of(self.as_of, began),
            options=options,
        )


class _RestoreStepOperator(SpanvaultOperator):
    """A task that works on what `PlanRestoreOperator` pushed."""

    template_fields: Sequence[str] = ("cluster", "plan", "encryption", "execution_locality")
    template_fields_renderers = {"plan": "json"}  # noqa: RUF012 - as Airflow declares it

    def __init__(self, *, cluster: str, plan: RestoreHandle, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.plan = plan

    def request(self) -> RestoreRequest:
        """The request that the plan fixed. Raises Refused on a worker that its execution locality leaves out."""
        from spanvault.model.request import RestoreRequest

        request = RestoreRequest.model_validate_json(self.plan["request"])
        require_worker_in(request.options.execution_locality)
        return request


class RestoreSchemaOperator(_RestoreStepOperator):
    """Create what will hold the rows: databases, schemas, types, empty tables.

    .. seealso:: docs/airflow.md

    :param cluster: the target's name in clusters.yaml
    :param plan: what ``PlanRestoreOperator`` pushed under ``plan``
    """

    ui_color = "#f5e9cf"

    def step(self, context: Context) -> None:
        """Create what is missing of it; objects that are not this restore's own are never touched."""
        from spanvault.engine.restore_steps import restore_schema

        restore_schema(self.engine(), self.cluster_named(self.cluster), self.request())


class LoadBatchOperator(_RestoreStepOperator):
    """Load one batch of load units; each is one transaction that also records itself, so none is ever loaded twice.

    .. seealso:: docs/airflow.md

    :param cluster: the target's name in clusters.yaml
    :param plan: what ``PlanRestoreOperator`` pushed under ``plan``
    :param batch: the batch: an element of what ``PlanRestoreOperator`` returned
    """

    template_fields: Sequence[str] = ("cluster", "plan", "batch", "encryption", "execution_locality")
    ui_color = "#d9e8f5"

    def __init__(self, *, batch: BatchHandle, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.batch = batch

    def step(self, context: Context) -> dict[str, int]:
        """Load the units of the batch that the target does not have yet."""
        from spanvault.engine.restore_steps import load_batch

        if self.batch["index"] == NO_BATCH:
            return {"units": 0, "skipped": 0, "rows": 0}
        done = load_batch(self.engine(), self.cluster_named(self.cluster), self.request(), self.batch["index"])
        return {"units": done.units, "skipped": done.skipped, "rows": done.rows}


class FinishRestoreOperator(_RestoreStepOperator):
    """Indexes, constraints, triggers, sequences, statistics; fingerprints compared if asked.

    .. seealso:: docs/airflow.md

    :param cluster: the target's name in clusters.yaml
    :param plan: what ``PlanRestoreOperator`` pushed under ``plan``
    """

    ui_color = "#d5f0c9"

    def step(self, context: Context) -> None:
        """Finish; a restore that is finished already stays as it is."""
        from spanvault.engine.restore_steps import finish_restore

        finish_restore(self.engine(), self.cluster_named(self.cluster), self.request())
