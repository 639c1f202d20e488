"""The nodes of a cluster, for people."""

from __future__ import annotations

from spanvault.config.clusters import Cluster
from spanvault.database.postgres.nodes import probe_all
from spanvault.model.result import Result

NODE_COLUMNS = ("node", "role", "locality", "timeline", "replay_lsn", "replay_lag", "active", "system_identifier", "reason")


def node_table(cluster: Cluster) -> Result:
    """Every node of the cluster as it is now; one that cannot be reached is a row, too."""
    return Result(
        columns=NODE_COLUMNS,
        rows=tuple(
            (
                state.name,
                state.role,
                str(state.locality),
                state.timeline,
                None if state.replay_lsn is None else str(state.replay_lsn),
                None if state.replay_lag is None else round(state.replay_lag, 1),
                state.active,
                state.system_identifier,
                state.reason,
            )
            for state in probe_all(cluster)
        ),
    )
