"""What every command needs: the engine's context with progress on standard error, and the cluster that was meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from spanvault.cli.output import Format
from spanvault.errors import BadInput

if TYPE_CHECKING:
    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context

ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="A cluster of clusters.yaml (SPANVAULT_CLUSTERS_FILE).")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="postgresql://...",
        help="A cluster of one node. The password may come from PGPASSWORD or ~/.pgpass instead.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is written.")]
UriArgument = Annotated[str, typer.Argument(metavar="URI", help="The collection, such as 's3://bucket/path?...'.")]


class Interrupted(Exception):  # stopping is no error
    """Ctrl-C; the text says how to go on."""


@contextmanager
def session(going_on: str = "Nothing was changed.") -> Iterator[Context]:
    """The engine's context while a command works. Ctrl-C raises Interrupted with the sentence `going_on`."""
    from spanvault.engine.context import make_context
    from spanvault.observe.progress_bars import shown_progress

    try:
        with shown_progress() as progress:
            yield make_context(progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(going_on) from None


def chosen_cluster(context: Context, cluster: str | None, url: str | None) -> Cluster | None:
    """The cluster that the options name; None if they name none.

    Raises BadInput for both options at once or a bad URL, NotFound for an unknown name.
    """
    from spanvault.config.clusters import cluster_from_url

    if cluster is not None and url is not None:
        raise BadInput("Give --cluster or --url, not both.")
    if url is not None:
        return cluster_from_url(url)
    return None if cluster is None else context.cluster(cluster)


def needed_cluster(context: Context, cluster: str | None, url: str | None, what: str) -> Cluster:
    """The cluster that the options name. Raises BadInput if they name none; `what` needs it."""
    chosen = chosen_cluster(context, cluster, url)
    if chosen is None:
        raise BadInput(f"{what} needs a cluster: give --cluster NAME or --url postgresql://user@host:port/database.")
    return chosen
