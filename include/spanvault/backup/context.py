"""What the steps of a backup need to be told of their surroundings."""

from __future__ import annotations

from dataclasses import dataclass, field

from spanvault.config.clusters import Cluster
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.clock import Clock, now
from spanvault.model.manifest import Plan
from spanvault.model.places import Places
from spanvault.model.progress import Progress, Silent
from spanvault.storage.base import Storage


@dataclass(frozen=True)
class Run:
    """One run of one layer. `data` is where its data files go, the rest goes to `storage`.

    `reached` is called with the name of each point after which a crash must do no harm, so that tests can cause one
    there. `wait_seconds` bounds the waits for the source's open transactions. `read_first` gathers the tables, as
    (database, OID), that a try of the seal could not read under its snapshot after the log: the next try reads them
    right behind the snapshot, or a busy table that is truncated now and then might never be caught.
    """

    cluster: Cluster
    storage: Storage
    data: Storage
    plan: Plan
    progress: Progress = field(default_factory=Silent)
    clock: Clock = now
    reached: Reached = pass_by
    wait_seconds: float = 60.0
    seal_tries: int = 5
    read_first: set[tuple[str, int]] = field(default_factory=set)

    @property
    def places(self) -> Places:
        """The places of the plan, without secrets; an incremental location has the same localities."""
        return Places.parse(self.plan.request.into)

    @property
    def tier(self) -> str | None:
        """The locality whose URI gets what is read on the primary; None: the default."""
        return self.places.choose(self.cluster.primary.locality)
