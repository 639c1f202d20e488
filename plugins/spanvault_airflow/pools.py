"""What DAGs take from clusters.yaml when they are parsed: names, queues, and the pool, which the form cannot change any more."""

from __future__ import annotations

from spanvault_airflow.hooks.engine import project_settings
from spanvault_airflow.queues import WorkerQueue, worker_queues


def cluster_pools() -> dict[str, str]:
    """The pool of each cluster of clusters.yaml that has one. Raises BadInput for a malformed file."""
    from spanvault.config import clusters

    file = project_settings().clusters_file
    return clusters.cluster_pools(file) if file else {}


def other_pool(cluster: str, pool: str) -> str | None:
    """What to say where the tasks of a run on `cluster` are in a `pool` that is not the cluster's; None if nothing is wrong.

    Said and not refused: a restore must not fail at night because of how it is counted.
    """
    pools = cluster_pools()
    wanted = pools.get(cluster)
    if wanted == pool or (wanted is None and pool not in pools.values()):
        return None
    found = f"names the pool {wanted}" if wanted else "names no pool"
    return (
        f"clusters.yaml {found} for the cluster {cluster}, but this DAG's tasks run in the pool {pool}: they are not bounded as "
        f"{cluster}'s. Airflow fixes a pool when a DAG is parsed; for runs on {cluster} make a DAG with cluster={cluster!r} "
        "(docs/airflow.md, Load on the source)."
    )


class DagClusters:
    """What clusters.yaml says at parsing; the run reads it again. Of the DAG's `cluster`, which is its first one unless it is
    given. With `queue` every task is the work of its workers."""

    def __init__(self, cluster: str | None, queue: WorkerQueue | None = None) -> None:
        from spanvault.config.clusters import cluster_names
        from spanvault.errors import NotFound

        file = project_settings().clusters_file
        self.names = cluster_names(file) if file else []
        if cluster is not None and cluster not in self.names:
            raise NotFound(f"clusters.yaml has no cluster {cluster!r}; it has {', '.join(self.names) or 'none'}.")
        self.default = cluster or (self.names[0] if self.names else "source")
        pool = cluster_pools().get(self.default)
        # A pool that does not exist would leave the tasks waiting for ever, so only a named one is used.
        self.task_args = {"pool": pool} if pool else {}
        self.queues = worker_queues() if queue is None else []
        if queue is not None:
            self.task_args["queue"] = queue.name
