"""What every command needs: the engine's context with progress on standard error, and the cluster that was meant."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from spanvault.cli.output import Format
from spanvault.errors import BadInput
from spanvault.model.kms_uri import KmsUri
from spanvault.model.places import Places
from spanvault.model.request import EncryptionOptions

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
PassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-from",
        metavar="REFERENCE",
        help="Where the passphrase of encrypted backups is kept: env:NAME, connection:ID, variable:NAME, or prompt.",
    ),
]
KmsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--kms", metavar="URI", help="A key of a key service that opens encrypted backups, by ?conn_id= or AUTH=implicit."
    ),
]
PlaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--place",
        metavar="URI",
        help="A locality's URI of the collection, with COCKROACH_LOCALITY; once for each. URI is then the default one.",
    ),
]
UriArgument = Annotated[str, typer.Argument(metavar="URI", help="The collection, such as 's3://bucket/path?...'.")]


class Interrupted(Exception):  # stopping is no error
    """Ctrl-C; the text says how to go on."""


@contextmanager
def session(
    going_on: str = "Nothing was changed.", passphrase_from: str | None = None, kms: list[str] | None = None
) -> Iterator[Context]:
    """The engine's context while a command works, with the keys that are named. Ctrl-C raises Interrupted with the sentence
    `going_on`."""
    from spanvault.engine.context import make_context
    from spanvault.observe.progress_bars import shown_progress

    try:
        keys = _keys(passphrase_from, kms or [])
        with shown_progress() as progress:
            yield make_context(progress=progress, ask=_ask, encryption=keys)
    except KeyboardInterrupt:
        raise Interrupted(going_on) from None


def _keys(passphrase_from: str | None, kms: list[str]) -> EncryptionOptions:
    """Raises BadInput, too, for a secret: everybody on the machine sees a command's arguments."""
    for uri in kms:
        if KmsUri.parse(uri).has_inline_secrets:
            raise BadInput("--kms shows its secrets in the list of processes: name a connection with ?conn_id= instead.")
    return EncryptionOptions(passphrase_from=passphrase_from, kms=tuple(SecretStr(uri) for uri in kms))


def _ask(question: str) -> SecretStr:
    if not sys.stdin.isatty():
        raise BadInput("There is no terminal to ask for the passphrase on; name env:NAME, connection:ID or variable:NAME.")
    try:
        return SecretStr(getpass.getpass(f"{question}: "))
    except EOFError:
        raise BadInput("The input ended where the passphrase was asked for; type it and press Enter.") from None
    except UnicodeDecodeError:
        raise BadInput("The passphrase that was typed holds bytes or characters that are no UTF-8; give one in UTF-8.") from None


def all_places(uri: str, places: list[str] | None) -> str:
    """The collection's URI with those of its localities, as the engine takes them. Raises BadInput."""
    uris = [uri, *(places or [])]
    if places:
        Places.of(uris)
    return "\n".join(uris)


def chosen_cluster(context: Context, cluster: str | None, url: str | None, *, as_named: bool = False) -> Cluster | None:
    """The cluster that the options name; None if they name none. With `as_named` no node is asked which is the primary.

    Raises BadInput for both options at once or a bad URL, NotFound for an unknown name.
    """
    from spanvault.config.clusters import cluster_from_url

    if cluster is not None and url is not None:
        raise BadInput("Give --cluster or --url, not both.")
    if url is not None:
        return cluster_from_url(url)
    if cluster is None:
        return None
    return context.named_cluster(cluster) if as_named else context.cluster(cluster)


def needed_cluster(context: Context, cluster: str | None, url: str | None, what: str, *, as_named: bool = False) -> Cluster:
    """The cluster that the options name. Raises BadInput if they name none; `what` needs it."""
    chosen = chosen_cluster(context, cluster, url, as_named=as_named)
    if chosen is None:
        raise BadInput(f"{what} needs a cluster: give --cluster NAME or --url postgresql://user@host:port/database.")
    return chosen
