"""EXECUTION LOCALITY: what it asks of the primary, which alone tells changes and holds a snapshot at the cut."""

from __future__ import annotations

from collections.abc import Iterable

from spanvault.config.clusters import Cluster
from spanvault.errors import Refused
from spanvault.model.locality import Locality
from spanvault.model.manifest import PlannedDatabase
from spanvault.model.request import BackupRequest
from spanvault.model.sentences import few


def require_primary_at(cluster: Cluster, execution_locality: str) -> None:
    """Raise Refused unless the primary passes the filter, naming all nodes' localities."""
    if Locality.parse(execution_locality).matches(cluster.primary.locality):
        return
    nodes = ", ".join(f"{node.node} ({node.locality or 'no locality'})" for node in cluster.endpoints)
    raise Refused(
        f"EXECUTION LOCALITY = '{execution_locality}' does not match the primary {cluster.primary.node}, which is needed here;"
        f" the nodes of {cluster.name} are {nodes}."
    )


def require_readable_there(cluster: Cluster, request: BackupRequest, databases: Iterable[PlannedDatabase]) -> None:
    """Raise Refused where the backup would have to read tables on a primary that the filter leaves out."""
    options = request.options
    if Locality.parse(options.execution_locality).matches(cluster.primary.locality):
        return
    skipped = request.append is not None and options.without_identity == "skip"
    names = [table.qualified for one in databases for table in one.database.tables if table.capture == "exact"]
    if options.fingerprint:
        raise Refused(
            f"Fingerprints are computed on the primary {cluster.primary.node}, which EXECUTION LOCALITY ="
            f" '{options.execution_locality}' leaves out; leave out one of the two options."
        )
    if names and not skipped:
        raise Refused(
            f"The log does not tell the changes of {few(names, 5)}, so they are read on the primary {cluster.primary.node}, which"
            f" EXECUTION LOCALITY = '{options.execution_locality}' leaves out: give them a primary key, or widen the locality."
        )
