"""The queues of clusters.yaml, as the DAGs see them: whose workers are where."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spanvault_airflow.hooks.engine import project_settings


@dataclass(frozen=True)
class WorkerQueue:
    """A queue and the tiers (`region=eu`, or an empty text) that all its workers have."""

    name: str
    locality: str

    @property
    def suffix(self) -> str:
        """The name as part of a DAG's or task's id, which takes fewer characters."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.name)


def worker_queues() -> list[WorkerQueue]:
    """The queues that clusters.yaml speaks of, each once, in its order. Raises BadInput for a malformed file."""
    from spanvault.config.clusters import cluster_queues

    file = project_settings().clusters_file
    tiers: dict[str, list[str]] = {}
    for locality, queue in cluster_queues(file) if file else []:
        places = locality.split(",")
        tiers[queue] = [tier for tier in tiers[queue] if tier in places] if queue in tiers else places
    return [WorkerQueue(queue, ",".join(common)) for queue, common in tiers.items()]
