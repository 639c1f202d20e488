"""The first task of a backup: decide what will be done, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from spanvault_airflow.operators.base import SpanvaultOperator, due, require_worker_in, run_key
from spanvault_airflow.operators.scheduled import plan_for_schedule

if TYPE_CHECKING:
    from airflow.sdk import Context

    from spanvault.config.clusters import Cluster
    from spanvault.model.manifest import Plan
    from spanvault.model.request import BackupRequest
    from spanvault.model.span import Batch
    from spanvault.restore.batches import LoadBatch


NO_BATCH = -1


class BatchHandle(TypedDict):
    """What a mapped task is told: the batch's number in the plan, and a label for people; `queue` is that of the workers in
    the locality of the batch's node, where clusters.yaml gives it one."""

    index: int
    label: str
    queue: NotRequired[str]


def batch_handles(batches: Iterable[Batch | LoadBatch]) -> list[BatchHandle]:
    """One handle a batch; a single empty one where there is nothing to do, because mapping over nothing would skip the
    task, and with it everything that follows."""
    handles = [BatchHandle(index=batch.index, label=batch.label) for batch in batches]
    return handles or [BatchHandle(index=NO_BATCH, label="nothing to do")]


def queued_handles(batches: Iterable[Batch], cluster: Cluster) -> list[BatchHandle]:
    """As `batch_handles`, each with its queue."""
    queues = {batch.index: queue for batch in batches if (queue := _queue_of(batch, cluster)) is not None}
    handles = batch_handles(batches)
    for handle in handles:
        if handle["index"] in queues:
            handle["queue"] = queues[handle["index"]]
    return handles


def _queue_of(batch: Batch, cluster: Cluster) -> str | None:
    """The queue of the node that was chosen for the batch."""
    chosen = cluster.endpoint(batch.nodes[0]) if batch.nodes else None
    return cluster.queue_of((chosen or cluster.primary).locality)


class PlanHandle(TypedDict):
    """What the tasks after the plan are told: where it stands and whose it is. `kind` is `full` or `incremental`."""

    into: str
    subdir: str
    number: int
    run_key: str
    kind: str


def plan_handle(into: str, plan: Plan) -> PlanHandle:
    """The handle of a stored plan."""
    return PlanHandle(into=into, subdir=plan.subdir, number=plan.number, run_key=plan.run_key, kind=plan.kind)


class LayerHandle(TypedDict):
    """What the tasks after the commit are told: the layers `first` to `number` of the chain `subdir` are new."""

    subdir: str
    first: int
    number: int


class PlanBackupOperator(SpanvaultOperator):
    """Plan a backup: protect the source's history, choose spans and batches, and store the plan.

    A second try, or a re-run of a finished run, finds the run's own plan and changes nothing. With `append` the run adds
    to a chain: up to the end of its data interval, or up to now if it was triggered by hand. It is skipped, with all
    tasks after it, when that is covered already; it takes a full where the collection has no chain to add to.

    Returns the batches (index, label, queue) for mapping `SpanExportOperator`; pushes the plan's place under the key `plan`.

    .. seealso:: docs/airflow.md

    :param cluster: the source's name in clusters.yaml
    :param into: the collection's URI, without secrets (``?conn_id=`` names a Connection)
    :param scope: what to back up: ``cluster``, ``database``, ``schema`` or ``table``
    :param names: the databases, schemas or tables, one per element or line; empty for a cluster
    :param options: BackupOptions by name, for example ``{"fingerprint": True, "rate_limit": 50_000_000}``
    :param append: the chain to add to: ``LATEST`` or a path; empty for a full backup
    :param full_every: with `append`: how old the newest full may be before a run takes a new one, ``7d``, or ``none``
    """

    template_fields: Sequence[str] = (
        "cluster",
        "into",
        "scope",
        "names",
        "options",
        "append",
        "full_every",
        "encryption",
        "execution_locality",
    )
    template_fields_renderers = {"options": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#cfe8e0"

    def __init__(
        self,
        *,
        cluster: str,
        into: str,
        scope: str = "cluster",
        names: Sequence[str] | str = (),
        options: Mapping[str, Any] | None = None,
        append: str = "",
        full_every: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.into = into
        self.scope = scope
        self.names = names
        self.options = dict(options or {})
        self.append = append
        self.full_every = full_every

    def step(self, context: Context) -> list[BatchHandle]:
        """Plan, or find this run's plan."""
        from spanvault.engine.steps import plan_backup
        from spanvault.statement.words import in_one_line

        self.tell_pool(self.cluster)
        engine, cluster, request = self.engine(), self.cluster_named(self.cluster), self.request()
        if request.append is None:
            plan = plan_backup(engine, cluster, request, run_key=run_key(context), due=due(context))
        else:
            plan = plan_for_schedule(context, engine, cluster, request, self.full_every)
        kind, batches, into = plan.kind, len(plan.batches), in_one_line(request.into)
        self.log.info("%s backup %s, layer %s: %s batches into %s", kind, plan.subdir, plan.number, batches, into)
        context["ti"].xcom_push("plan", plan_handle(request.into, plan))
        return queued_handles(plan.batches, cluster)

    def request(self) -> BackupRequest:
        """The request that the rendered fields describe. Raises BadInput."""
        from spanvault.model.request import BackupOptions, BackupRequest
        from spanvault_airflow.targets import target_of

        into = self.collection_uri(self.into)
        options = self.options_of(BackupOptions, {"execution_locality": self.execution_locality, **self.options})
        require_worker_in(options.execution_locality)
        if options.incremental_location is not None:
            location = self.collection_uri(options.incremental_location)
            options = options.model_copy(update={"incremental_location": location})
        return BackupRequest(target=target_of(self.scope, self.names), append=self.append or None, into=into, options=options)
