"""The engine's surroundings: settings, connections, progress, clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from spanvault.backup.context import Run
from spanvault.config.clusters import Cluster, cluster_from_url, load_cluster
from spanvault.config.connections import ConnectionResolver, EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.errors import BadInput
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.clock import Clock, now
from spanvault.model.manifest import Plan
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage
from spanvault.storage.limit import limited
from spanvault.storage.registry import open_storage


def unchanged(storage: Storage) -> Storage:
    """The storage as it is."""
    return storage


@dataclass(frozen=True)
class Context:
    """What every step is given. `wrap` may put something around each storage; `reached` hears the name of every point
    at which a crash must do no harm. Both are for tests."""

    settings: Settings = field(default_factory=Settings.load)
    connections: ConnectionResolver = field(default_factory=EnvironmentConnections)
    progress: Progress = field(default_factory=Silent)
    clock: Clock = now
    wrap: Callable[[Storage], Storage] = unchanged
    reached: Reached = pass_by

    def storage(self, uri: str) -> Storage:
        """The storage that a collection's URI names."""
        return self.wrap(open_storage(uri, settings=self.settings, connections=self.connections))

    def cluster(self, name: str) -> Cluster:
        """The cluster that a URL describes or that clusters.yaml names."""
        if "://" in name:
            return cluster_from_url(name)
        if self.settings.clusters_file is None:
            raise BadInput(f"Cluster {name!r} needs a clusters.yaml: set SPANVAULT_CLUSTERS_FILE to its path, or give a URL.")
        return load_cluster(self.settings.clusters_file, name, self.connections)

    def run(self, cluster: Cluster, into: str, plan: Plan, location: str | None = None) -> Run:
        """The surroundings of one run of a backup. `location` is the incremental location with its secrets, if the plan
        shows it without."""
        options = plan.request.options
        storage = limited(self.storage(into), options.rate_limit // options.workers)
        where = location or options.incremental_location if plan.kind == "incremental" else None
        data = limited(self.storage(where), options.rate_limit // options.workers) if where else storage
        return Run(
            cluster=cluster,
            storage=storage,
            data=data,
            plan=plan,
            progress=self.progress,
            clock=self.clock,
            reached=self.reached,
            wait_seconds=self.settings.wait_for_writers,
        )


def make_context(settings: Settings | None = None, progress: Progress | None = None) -> Context:
    """The context of the environment."""
    return Context(settings=settings or Settings.load(), progress=progress or Silent())
