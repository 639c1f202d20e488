"""`spanvault cluster ddl-log`: the optional log of schema changes on the source."""

from __future__ import annotations

from typing import Annotated

import typer

from spanvault.cli.output import Format, show
from spanvault.cli.session import ClusterOption, FormatOption, UrlOption, needed_cluster, session

app = typer.Typer(no_args_is_help=True, help="Log schema changes on the source, so that layers know when each came.")

DatabaseOption = Annotated[str | None, typer.Option("--database", metavar="NAME", help="One database; default: all.")]


@app.command()
def install(
    cluster: ClusterOption = None, url: UrlOption = None, database: DatabaseOption = None, form: FormatOption = Format.table
) -> None:
    """Make it, or bring it up to this version: a schema, a table and two event triggers."""
    with session("Run it again to finish.") as context:
        from spanvault.engine.ddl_logs import install_ddl_log

        result = install_ddl_log(context, needed_cluster(context, cluster, url, "cluster ddl-log install"), database)
    show(result, form)


@app.command()
def status(
    cluster: ClusterOption = None, url: UrlOption = None, database: DatabaseOption = None, form: FormatOption = Format.table
) -> None:
    """Show whether it is there, and what it holds."""
    with session() as context:
        from spanvault.engine.ddl_logs import ddl_log_status

        result = ddl_log_status(context, needed_cluster(context, cluster, url, "cluster ddl-log status"), database)
    show(result, form)


@app.command()
def remove(
    cluster: ClusterOption = None, url: UrlOption = None, database: DatabaseOption = None, form: FormatOption = Format.table
) -> None:
    """Drop it; chains go on without it."""
    with session("Run it again to finish.") as context:
        from spanvault.engine.ddl_logs import remove_ddl_log

        result = remove_ddl_log(context, needed_cluster(context, cluster, url, "cluster ddl-log remove"), database)
    show(result, form)
