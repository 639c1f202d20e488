"""The one DAG factory: dags/*.py only say what they want.

What every DAG gets: real data intervals, no catch-up (a missed night is no reason for two backups in the morning; a chain
gets the layers of missed intervals from the next run), paused on creation, one run at a time, retries by error type, and the
form that belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from airflow.sdk import DAG, BaseOperator, CronDataIntervalTimetable, XComArg

from spanvault_airflow import params
from spanvault_airflow.fields import encryption_fields
from spanvault_airflow.hooks.engine import project_settings
from spanvault_airflow.keys import TEMPLATES as KEYS
from spanvault_airflow.operators.advance_protection import AdvanceProtectionOperator
from spanvault_airflow.operators.compact import CompactBackupsOperator
from spanvault_airflow.operators.expire import ExpireBackupsOperator
from spanvault_airflow.operators.pick_batches import PickBatchesOperator
from spanvault_airflow.operators.plan import PlanBackupOperator
from spanvault_airflow.operators.restore import (
    FinishRestoreOperator,
    LoadBatchOperator,
    PlanRestoreOperator,
    RestoreSchemaOperator,
)
from spanvault_airflow.operators.seal import SealOperator
from spanvault_airflow.operators.span_export import SpanExportOperator
from spanvault_airflow.operators.validate import ValidateBackupOperator
from spanvault_airflow.operators.write_manifest import WriteManifestOperator
from spanvault_airflow.pools import DagClusters
from spanvault_airflow.queues import WorkerQueue
from spanvault_airflow.retries import RETRY_ARGS

if TYPE_CHECKING:
    from airflow.sdk.bases.timetable import BaseTimetable

Kind = Literal["full", "incremental", "revision_history"]
"""What a backup DAG makes of its collection: full backups only; or chains of a full and, in every other run, the last change
of each row; or the same with every change."""

START = datetime(2026, 1, 1, tzinfo=UTC)
PARALLEL_TASKS = 4
"""Mapped tasks of one run and queue that work at a time: each holds one connection to the cluster."""

_RESTORES_FIRST: dict[str, Any] = {"priority_weight": 1000, "weight_rule": "absolute"}
"""Somebody waits for a restore. A backup's tasks weigh one each and one for each that waits for them."""

_AT = "{{ params.execution_locality }}"

_RESTORE_OPTIONS = (
    "new_db_name", "into_db", "schema_only", "verify_backup_table_data", "verify_fingerprint", "grants", "strict",
    "skip_unrestorable_tables", "skip_missing_foreign_keys", "skip_missing_sequences", "skip_missing_sequence_owners",
    "skip_missing_views", "skip_missing_udfs", "incremental_location",
)  # fmt: skip


def collection_uri(name: str) -> str:
    """The collection `name` below SPANVAULT_COLLECTION_BASE. Raises BadInput."""
    from spanvault.model.uri import StorageUri

    return StorageUri.parse(project_settings().collection_base).join(name).redacted()


def backup_dag(
    dag_id: str,
    *,
    schedule: str | BaseTimetable | None,
    collection: str,
    description: str,
    doc_md: str,
    kind: Kind = "full",
    cluster: str | None = None,
    tags: tuple[str, ...] = (),
    passphrase_from: str | None = None,
    places: Sequence[str] | None = None,
    queue: WorkerQueue | None = None,
) -> DAG:
    """A DAG that backs up the first cluster of clusters.yaml, or `cluster`, into `<base>/<collection>`. Its tasks are in the
    pool that clusters.yaml names for that cluster. With `passphrase_from`, which says where the passphrase is usually kept,
    encrypted and never otherwise; an empty text: encrypted if the form says so.

    `schedule` is a cron expression in UTC, a timetable with data intervals, or None for manual runs only. Backfills of full
    backups are refused: a full backup reads the present, which must not be labelled with a past date. The other kinds read
    the change log, which knows the past.

    `places` makes a chain locality-aware: the form asks for URIs of localities and an execution locality, and these are the
    usual ones (none: the collection's alone). With `queue` all tasks run there, with its locality as the usual execution
    locality; otherwise the queues of clusters.yaml export what their nodes have.
    """
    clusters = DagClusters(cluster, queue)
    into = collection_uri(collection)
    fields = (params.backup_fields if kind == "full" else params.chain_fields)(clusters.default, clusters.names, into)
    common: dict[str, Any] = {"cluster": "{{ params.cluster }}", "encryption": {}}
    if passphrase_from is not None:
        fields |= encryption_fields(passphrase_from)
        common["encryption"] = {**KEYS, "required": True} if passphrase_from else KEYS
    if places is not None:
        at = "" if queue is None else queue.locality
        fields |= params.locality_fields("\n".join(places) or into, at, revision_history=kind == "revision_history")
        common["execution_locality"] = _AT
    dag = _dag(
        dag_id,
        schedule=schedule,
        description=description,
        doc_md=doc_md,
        tags=("backup", *tags),
        fields=fields,
        task_args=clusters.task_args,
        allowed_run_types=("scheduled", "manual") if kind == "full" else ("scheduled", "manual", "backfill"),
    )
    with dag:
        _backup_tasks(kind, common, clusters.queues)
    return dag


def _backup_tasks(kind: Kind, common: dict[str, Any], queues: Sequence[WorkerQueue]) -> None:
    chain = {} if kind == "full" else {"full_every": "{{ params.full_every }}"}
    plan = PlanBackupOperator(
        task_id="plan",
        **common,
        **chain,
        append="" if kind == "full" else "LATEST",
        into="{{ params.into }}",
        scope="{{ params.scope }}",
        names="{{ params.names | join('\n') }}",
        options=_backup_options(kind, queues, places="execution_locality" in common),
        doc_md="Protects the source's history from now on and decides on layers, spans and batches. Stored once, as a plan.",
    )
    handle = _pushed(plan, "plan")
    exports = _exports(plan, handle, common, queues)
    seal = SealOperator(
        task_id="seal",
        **common,
        plan=handle,
        # Airflow skips an export task that has no batches.
        trigger_rule="none_failed_min_one_success" if queues else "all_success",
        doc_md="Chooses the cut and writes the changes up to it. Red: clear it; it takes a new cut and keeps all spans.",
    )
    manifest = WriteManifestOperator(
        task_id="write_manifest",
        **common,
        **chain,
        plan=handle,
        seal=cast("str", seal.output),
        doc_md="The commit. Before it there is no backup; after it there is one, whatever happens next.",
    )
    layer = _pushed(manifest, "layer")
    validate = ValidateBackupOperator(
        task_id="validate",
        **_without_cluster(common),
        collection="{{ params.into }}",
        subdir=cast("str", manifest.output),
        layer=layer,
        level="{{ params.validate }}",
        doc_md="Checks what was committed. Red: do not rely on this backup; its history is kept on the source.",
    )
    advance = AdvanceProtectionOperator(
        task_id="advance_protection",
        **common,
        plan=handle,
        layer=layer,
        doc_md="Lets the source forget the change log up to the backup's end. Red: the source keeps more log than needed.",
    )
    exports >> seal >> manifest >> validate >> advance


def _exports(plan: PlanBackupOperator, handle: Any, common: dict[str, Any], queues: Sequence[WorkerQueue]) -> list[Any]:
    """The mapped tasks that export batches: one for each queue, and one for all else in Airflow's default queue."""
    if not queues:
        return [_export("export", handle, common).expand(batch=plan.output)]
    exports = []
    for queue in (None, *queues):
        suffix, there = ("", {}) if queue is None else (f"_{queue.suffix}", {"queue": queue.name})
        picked = PickBatchesOperator(
            task_id=f"batches{suffix}",
            **_without_cluster(common),
            batches=cast("Any", plan.output),
            queues=[one.name for one in queues],
            pick="" if queue is None else queue.name,
            doc_md="Picks the plan's batches whose nodes have workers in this queue. Red: clear it.",
        )
        exports.append(_export(f"export{suffix}", handle, common | there).expand(batch=picked.output))
    return exports


def _export(task_id: str, handle: Any, common: dict[str, Any]) -> Any:
    return SpanExportOperator.partial(
        task_id=task_id,
        **common,
        plan=handle,
        map_index_template="{{ task.batch['label'] }}",
        max_active_tis_per_dagrun=PARALLEL_TASKS,
        doc_md="Exports one batch of spans. Red: read its last line, clear it; finished spans are not exported again.",
    )


def _without_cluster(common: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common.items() if name != "cluster"}


def _backup_options(kind: Kind, queues: Sequence[WorkerQueue], *, places: bool) -> dict[str, Any]:
    """BackupOptions as templates over the form."""
    fields = ["fingerprint", "protection", "rate_limit", *(["strict"] if places else [])]
    if kind != "full":
        fields += ["incremental_location", "without_identity", "on_broken_chain"]
    options: dict[str, Any] = {name: f"{{{{ params.{name} }}}}" for name in fields}
    history = "{{ params.revision_history }}" if places else kind == "revision_history"
    return {**options, "revision_history": history, "workers": PARALLEL_TASKS * (1 + len(queues))}


def restore_dag(
    dag_id: str,
    *,
    collection: str,
    description: str,
    doc_md: str,
    cluster: str | None = None,
    queue: WorkerQueue | None = None,
) -> DAG:
    """A DAG, for manual runs, that restores a backup onto a cluster, usually the first one or `cluster`, in its pool and with
    its tasks before those of backups. With `queue` all of them run there, with its locality as the usual execution locality."""
    clusters = DagClusters(cluster, queue)
    fields = params.restore_fields(
        clusters.default, clusters.names, collection_uri(collection), "" if queue is None else queue.locality
    )
    dag = _dag(
        dag_id,
        schedule=None,
        description=description,
        doc_md=doc_md,
        tags=("restore",),
        fields=fields | encryption_fields(),
        task_args=clusters.task_args | _RESTORES_FIRST,
        max_active_runs=4,
    )
    target: dict[str, Any] = {"cluster": "{{ params.cluster }}", "encryption": KEYS, "execution_locality": _AT}
    options = {name: f"{{{{ params.{name} }}}}" for name in _RESTORE_OPTIONS}
    with dag:
        plan = PlanRestoreOperator(
            task_id="plan",
            **target,
            collection="{{ params.collection }}",
            subdir="{{ params.subdir }}",
            scope="{{ params.scope }}",
            names="{{ params.names | join('\n') }}",
            as_of="{{ params.as_of }}",
            options={**options, "workers": PARALLEL_TASKS},
            doc_md="Resolves the backup, checks that nothing on the target would be overwritten, and decides on load units.",
        )
        handle = _pushed(plan, "plan")
        schema = RestoreSchemaOperator(
            task_id="restore_schema",
            **target,
            plan=handle,
            doc_md="Creates databases, schemas, types and empty tables. Red: clear it; what is there already is kept.",
        )
        load = LoadBatchOperator.partial(
            task_id="load",
            **target,
            plan=handle,
            map_index_template="{{ task.batch['label'] }}",
            max_active_tis_per_dagrun=PARALLEL_TASKS,
            doc_md="Loads one batch of tables, each unit exactly once however often this is tried.",
        ).expand(batch=plan.output)
        finish = FinishRestoreOperator(
            task_id="finish_restore",
            **target,
            plan=handle,
            doc_md="Indexes, constraints, triggers, sequences and statistics; verifies fingerprints if asked.",
        )
        schema >> load >> finish
    return dag


def validate_dag(dag_id: str, *, schedule: str | None, collection: str, description: str, doc_md: str) -> DAG:
    """A DAG that validates a backup at a level of choice."""
    dag = _dag(
        dag_id,
        schedule=schedule,
        description=description,
        doc_md=doc_md,
        tags=("validate",),
        fields=params.validate_fields(collection_uri(collection)) | encryption_fields(),
    )
    with dag:
        ValidateBackupOperator(
            task_id="validate",
            collection="{{ params.collection }}",
            subdir="{{ params.subdir }}",
            level="{{ params.level }}",
            encryption=KEYS,
            doc_md="Checks one backup. Red: it is not what was written; take a full backup now and keep this one for study.",
        )
    return dag


def expire_dag(dag_id: str, *, schedule: str | None, collection: str, description: str, doc_md: str) -> DAG:
    """A DAG that deletes old chains, by default only says which."""
    dag = _dag(
        dag_id,
        schedule=schedule,
        description=description,
        doc_md=doc_md,
        tags=("retention",),
        fields=params.expire_fields(collection_uri(collection)) | encryption_fields(),
    )
    with dag:
        ExpireBackupsOperator(
            task_id="expire",
            collection="{{ params.collection }}",
            keep_last="{{ params.keep_last }}",
            window="{{ params.window }}",
            delete="{{ not params.dry_run }}",
            encryption=KEYS,
            doc_md="Lists, and with dry run off deletes, chains that the policy does not keep. Whole chains only.",
        )
    return dag


def compact_dag(dag_id: str, *, schedule: str | None, collection: str, description: str, doc_md: str) -> DAG:
    """A DAG that merges layers of a chain, for shorter restores. The originals stay until they expire."""
    dag = _dag(
        dag_id,
        schedule=schedule,
        description=description,
        doc_md=doc_md,
        tags=("compaction",),
        fields=params.compact_fields(collection_uri(collection)) | encryption_fields(),
    )
    with dag:
        CompactBackupsOperator(
            task_id="compact",
            collection="{{ params.collection }}",
            subdir="{{ params.subdir }}",
            mode="{{ params.mode }}",
            up_to="{{ params.up_to }}",
            encryption=KEYS,
            doc_md="Merges layers into one that restores use instead. Red: nothing changed; read the last line, clear it.",
        )
    return dag


def _pushed(task: BaseOperator, key: str) -> Any:
    """What `task` will push under `key`; Airflow puts the value in its place when the task runs."""
    return XComArg(task, key)


def _dag(
    dag_id: str,
    *,
    schedule: str | BaseTimetable | None,
    description: str,
    doc_md: str,
    tags: tuple[str, ...],
    fields: dict[str, Any],
    task_args: dict[str, Any] | None = None,
    max_active_runs: int = 1,
    allowed_run_types: tuple[str, ...] | None = None,
) -> DAG:
    return DAG(
        dag_id,
        description=description,
        doc_md=doc_md,
        # A plain cron string would give runs without intervals.
        schedule=CronDataIntervalTimetable(schedule, timezone="UTC") if isinstance(schedule, str) else schedule,
        start_date=START,
        catchup=False,
        is_paused_upon_creation=True,
        max_active_runs=max_active_runs,
        dagrun_timeout=timedelta(days=2),
        default_args={**RETRY_ARGS, "known_fields": tuple(fields), **(task_args or {})},
        params=fields,
        tags=["spanvault", *tags],
        allowed_run_types=allowed_run_types,  # type: ignore[arg-type]  # converted from the names
    )
