"""The DDL log in the databases of a cluster: installed, shown, removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spanvault.backup.captured import query_of
from spanvault.config.clusters import Cluster
from spanvault.database.postgres import ddl_log
from spanvault.database.postgres.catalog import user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.server import Connection
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.errors import NotFound
from spanvault.model.cut import format_time
from spanvault.model.result import Result

_COLUMNS = ("database", "state", "rows", "newest", "published", "publications")


@translated("Installing the DDL log")
def install_ddl_log(context: Context, cluster: Cluster, database: str | None = None) -> Result:
    """Make the DDL log in one database, or in all. Raises BadInput with the script when the role may not, Refused when
    the schema's name is taken."""
    return _in_each(cluster, database, ddl_log.install)


@translated("Looking at the DDL log")
def ddl_log_status(context: Context, cluster: Cluster, database: str | None = None) -> Result:
    """What one database, or each, has of the DDL log."""
    return _in_each(cluster, database, lambda connection: None)


@translated("Removing the DDL log")
def remove_ddl_log(context: Context, cluster: Cluster, database: str | None = None) -> Result:
    """Drop the DDL log of one database, or of all; none is no error. Raises as `install_ddl_log` does."""
    return _in_each(cluster, database, ddl_log.remove)


def _in_each(cluster: Cluster, database: str | None, work: Callable[[Connection], None]) -> Result:
    found = []
    for name in _databases(cluster, database):
        with connect(cluster.primary, name, purpose="ddl log") as connection:
            work(connection)
            found.append(ddl_log.status(connection))
    rows = tuple(
        (
            one.database,
            one.state,
            one.rows,
            format_time(one.newest) if one.newest else None,
            one.published,
            one.publications,
        )
        for one in found
    )
    return Result(columns=_COLUMNS, rows=rows)


def _databases(cluster: Cluster, database: str | None) -> Sequence[str]:
    with connect(cluster.primary, purpose="ddl log") as connection:
        names = user_databases(query_of(connection))
    if database is None:
        return names
    if database not in names:
        raise NotFound(f"Cluster {cluster.name!r} has no database {database!r}; it has {', '.join(names)}.")
    return [database]
