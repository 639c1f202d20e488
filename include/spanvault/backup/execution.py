"""EXECUTION LOCALITY: what it asks of the primary, which alone tells changes and holds a snapshot at the cut."""

from __future__ import annotations

from collections.abc import Iterable

from spanvault.config.clusters import Cluster
from spanvault.errors import Refused
from spanvault.model.locality import Locality
from spanvault.model.manifest import PlannedDatabase
from spanvault.model.places import Places
from spanvault.model.request import BackupRequest
from spanvault.model.sentences import few


def require_nodes(cluster: Cluster, request: BackupRequest) -> None:
    """Raise Refused when no node passes the filter, or when with `strict` the primary, which writes the change log, has no
    URI of its own."""
    options, primary = request.options, cluster.primary
    wanted = Locality.parse(options.execution_locality)
    if not any(wanted.matches(node.locality) for node in cluster.endpoints):
        raise Refused(
            f"No node matches EXECUTION LOCALITY = '{options.execution_locality}'; the nodes of {cluster.name} are"
            f" {_nodes(cluster)}."
        )
    if options.strict and Places.parse(request.into).choose(primary.locality) is None:
        raise Refused(
            f"With strict, the primary {primary.node} ({str(primary.locality) or 'no locality'}) needs a URI for its locality,"
            " for it writes the change log; add one with COCKROACH_LOCALITY, or leave out strict."
        )


def require_primary_at(cluster: Cluster, execution_locality: str) -> None:
    """Raise Refused unless the primary passes the filter, naming all nodes' localities."""
    if Locality.parse(execution_locality).matches(cluster.primary.locality):
        return
    raise Refused(
        f"EXECUTION LOCALITY = '{execution_locality}' does not match the primary {cluster.primary.node}, which is needed here;"
        f" the nodes of {cluster.name} are {_nodes(cluster)}."
    )


def _nodes(cluster: Cluster) -> str:
    return ", ".join(f"{node.node} ({str(node.locality) or 'no locality'})" for node in cluster.endpoints)


def require_readable_there(cluster: Cluster, request: BackupRequest, databases: Iterable[PlannedDatabase]) -> None:
    """Raise Refused where the backup would have to read tables on a primary that the filter leaves out."""
    options = request.options
    if Locality.parse(options.execution_locality).matches(cluster.primary.locality):
        return
    skipped = request.append is not None and options.without_identity == "skip"
    tables = [table for one in databases for table in one.database.tables if table.capture == "exact"]
    names = [table.qualified for table in tables if not (skipped and table.lacks_identity)]
    if options.fingerprint:
        raise Refused(
            f"Fingerprints are computed on the primary {cluster.primary.node}, which EXECUTION LOCALITY ="
            f" '{options.execution_locality}' leaves out; leave out one of the two options."
        )
    if names:
        raise Refused(
            f"The log does not tell the changes of {few(names, 5)}, so they are read on the primary {cluster.primary.node}, which"
            f" EXECUTION LOCALITY = '{options.execution_locality}' leaves out: give them a primary key, or widen the locality."
        )
