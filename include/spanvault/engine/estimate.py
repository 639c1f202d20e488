"""What a backup would be, without taking it."""

from __future__ import annotations

from spanvault.backup.captured import query_of
from spanvault.backup.exclusion import with_exclusions
from spanvault.backup.plan import batches_of, databases_of, select_tables, span_size, spans_of
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import read_database, read_tables, user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.preflight import require
from spanvault.database.postgres.server import Connection, scalar
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.engine.estimate_layer import estimate_layer
from spanvault.errors import BrokenChain
from spanvault.model.request import BackupRequest
from spanvault.model.result import Result
from spanvault.statement.rules import check

# One worker on two shared cores read 40 to 60 MB of table a second in benchmarks/; a person wants an order of magnitude.
_BYTES_PER_WORKER_SECOND = 40_000_000

COLUMNS = ("databases", "tables", "rows", "source_bytes", "spans", "batches", "seconds", "wal_bytes_at_risk")


@translated("Estimating the backup")
def estimate(context: Context, cluster: Cluster, request: BackupRequest) -> Result:
    """One row. Of a full: sizes as the server's statistics have them, time at a usual speed (or the rate limit), and how much
    log the server wrote since its statistics began, scaled to that time: what the slot will hold back meanwhile. Of an
    incremental: what `estimate_layer` says, or the full that would follow."""
    check(request)
    speed = request.options.rate_limit or _BYTES_PER_WORKER_SECOND * request.options.workers
    if request.append is not None:
        try:
            found = estimate_layer(context, cluster, request, speed)
            context.progress.note("Nothing was written.")
            return found
        except BrokenChain as error:
            if request.as_of is not None or request.options.on_broken_chain == "fail":
                raise
            context.progress.note(f"{error} A full backup would be taken instead; this is its estimate.")
    with connect(cluster.primary, purpose="estimate") as connection:
        require(connection)
        names = databases_of(request.target, user_databases(query_of(connection)), cluster.primary.database)
        wal_rate = _wal_bytes_per_second(connection)
    databases = []
    for name in names:
        with connect(cluster.primary, name, purpose="estimate") as connection:
            query = query_of(connection)
            tables = select_tables(request.target, name, cluster.primary.database, read_tables(query))
            marked = with_exclusions(query, cluster, name, tables)
            databases.append(read_database(query).model_copy(update={"tables": marked}))
    stored = [table for database in databases for table in database.tables if table.capture != "none"]
    spans = [span for database in databases for span in spans_of(database, span_size(databases, request.options.span_bytes))]
    labels = {(database.name, table.oid): table.name for database in databases for table in database.tables}
    size = sum(table.bytes for table in stored)
    seconds = max(1, round(size / speed))
    rows = sum(table.estimated_rows for table in stored)
    batches = len(batches_of(spans, labels, request.options.workers))
    context.progress.note("Nothing was written.")
    row = (len(names), len(stored), rows, size, len(spans), batches, seconds, round(wal_rate * seconds))
    return Result(columns=COLUMNS, rows=(row,))


def _wal_bytes_per_second(connection: Connection) -> float:
    return float(
        scalar(
            connection,
            "SELECT wal_bytes / greatest(extract(epoch FROM clock_timestamp() - stats_reset), 1) FROM pg_catalog.pg_stat_wal",
        )
        or 0
    )
