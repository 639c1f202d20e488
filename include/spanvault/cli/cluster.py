"""`spanvault cluster`: make a cluster ready for backups, and take Spanvault off it again."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from spanvault.cli import ddl_log
from spanvault.cli.output import Format, show
from spanvault.cli.session import ClusterOption, FormatOption, UrlOption, needed_cluster, session
from spanvault.errors import BadInput, Permanent

app = typer.Typer(no_args_is_help=True, help="Check a cluster before its first backup, or remove all that backups left on it.")
app.add_typer(ddl_log.app, name="ddl-log")


@app.command()
def preflight(cluster: ClusterOption = None, url: UrlOption = None, form: FormatOption = Format.table) -> None:
    """Check everything that a backup needs of a cluster; each finding names its fix."""
    with session() as context:
        from spanvault.engine.maintenance import preflight as check

        result = check(context, needed_cluster(context, cluster, url, "cluster preflight"))
    show(result, form)
    failed = [str(row.get("check")) for row in result.dicts() if row.get("status") == "failed"]
    if failed:
        raise Permanent(f"The cluster is not ready for backups: {', '.join(failed)}; the table says how to fix it.")


@app.command()
def nodes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A cluster of clusters.yaml, as with --cluster.")] = None,
    cluster: ClusterOption = None,
    url: UrlOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Show the nodes of a cluster: which is the primary, how far behind each standby is, which cannot be reached."""
    if name is not None and cluster is not None:
        raise BadInput("Give the cluster's name once: cluster nodes NAME.")
    with session() as context:
        from spanvault.engine.nodes import node_table

        result = node_table(needed_cluster(context, name or cluster, url, "cluster nodes", as_named=True))
    show(result, form)


@app.command()
def uninstall(
    cluster: ClusterOption = None,
    url: UrlOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Drop every slot, publication and DDL log of Spanvault's on a cluster; backups on storage stay."""
    if not yes:
        _ask(cluster or "the cluster of --url")
    with session("Run it again to finish.") as context:
        from spanvault.engine.maintenance import uninstall as remove

        result = remove(context, needed_cluster(context, cluster, url, "cluster uninstall"))
    show(result, form)


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise BadInput("cluster uninstall asks before it drops anything, and there is no terminal to ask on; give --yes.")
    if not typer.confirm(f"Drop all of Spanvault's slots, publications and DDL logs on {name}?", err=True):
        raise typer.Exit(1)
