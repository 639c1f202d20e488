"""`spanvault protection`: what keeps the source's change log for later backups."""

from __future__ import annotations

from typing import Annotated

import typer

from spanvault.cli.output import Format, show
from spanvault.cli.session import ClusterOption, FormatOption, UrlOption, needed_cluster, session

app = typer.Typer(no_args_is_help=True, help="List and release the replication slots that backups hold on a cluster.")


@app.command(name="list")
def list_(cluster: ClusterOption = None, url: UrlOption = None, form: FormatOption = Format.table) -> None:
    """Show every protection with its owner, age and the log that it holds back."""
    with session() as context:
        from spanvault.engine.maintenance import protection_list

        result = protection_list(context, needed_cluster(context, cluster, url, "protection list"))
    show(result, form)


@app.command()
def release(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="The slot's name as `protection list` shows it.")],
    cluster: ClusterOption = None,
    url: UrlOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Drop one protection: backups that stand are safe; the next one starts a new chain."""
    with session("Run `spanvault protection list` to see whether it is released.") as context:
        from spanvault.engine.maintenance import protection_release

        result = protection_release(context, needed_cluster(context, cluster, url, "protection release"), slot)
    show(result, form)
