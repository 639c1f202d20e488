"""Locality-aware backups, triggered by hand: one DAG for all workers, and one for each queue of clusters.yaml."""

from spanvault_airflow.builder import backup_dag
from spanvault_airflow.queues import worker_queues

DOC = """
# locality_aware_backup

Keeps a chain as `incremental_backup` does, in several places: the rows that a node read go to the URI of its locality, all
else to the default one. *Collection* takes one URI a line, the same ones for every run of a chain:

    s3://backups/shop?conn_id=s3_us&COCKROACH_LOCALITY=default
    s3://backups-eu/shop?conn_id=s3_eu&COCKROACH_LOCALITY=region%3Deu

`include/config/clusters.yaml` says where the nodes are, which tables belong where (`placement`) and which Celery queue has the
workers of a locality (`queues`). A task `export_<queue>` runs there; `export` has the batches of all other nodes. Tasks
`export...` without batches are skipped, and that is no fault.

**Only in one locality**: *Execution locality* names it, or trigger `locality_aware_backup__<queue>`, whose tasks all run in
that queue. A worker elsewhere refuses the run.

To have it on a schedule, copy the DAG under another name with its `places`: `docs/airflow.md`, *A DAG of your own*.

## When it is red

| red task | what it means | what to do |
|---|---|---|
| plan | no node or no URI for a locality, a worker elsewhere, or as of `incremental_backup` | its last line says which |
| batches | Airflow's own trouble | clear it |
| export | a node or the storage of its locality is away | clear it: finished spans are kept |
| seal, write_manifest | as of `incremental_backup` | clear it |
| validate | the layer is there but not whole: **do not rely on it** | look at the storage; the next run does not build on it |
| advance_protection | the source keeps more log than it needs | clear it soon: the log fills the source's disk |

A task that waits in *queued* for long has no worker on its queue.
"""

for queue in (None, *worker_queues()):
    suffix = "" if queue is None else f"__{queue.suffix}"
    # A chain has one set of places, and each of these DAGs its own chain.
    dag = backup_dag(
        f"locality_aware_backup{suffix}",
        kind="incremental",
        schedule=None,
        collection=f"locality_aware{suffix}",
        description="Chains in several places" if queue is None else f"Chains in several places, by workers of {queue.name}",
        doc_md=DOC,
        tags=("locality",),
        passphrase_from="",
        places=(),
        queue=queue,
    )
