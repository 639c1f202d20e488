"""`spanvault sql`: a statement, executed here and now, without Airflow."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from spanvault.cli.output import Format, rest_shown, show
from spanvault.cli.session import ClusterOption, FormatOption, UrlOption, chosen_cluster, needed_cluster, session
from spanvault.engine.worker_template import begin_template
from spanvault.errors import BadInput
from spanvault.model.request import BackupRequest, Request, RestoreRequest
from spanvault.statement.parse import parse

if TYPE_CHECKING:
    from spanvault.config.clusters import Cluster
    from spanvault.engine.context import Context

_UNCHANGED = "Nothing was changed."
_GOING_ON = {
    "backup": "What is on storage stays; run the same statement again and it continues from there.",
    "restore": "What was restored stays; run the same statement again and it continues from there.",
}


def sql(
    statement: Annotated[
        str,
        typer.Argument(
            metavar="STATEMENT",
            help="BACKUP ..., RESTORE ..., SHOW BACKUPS IN ... or SHOW BACKUP ...; `-` reads it from standard input, which "
            "keeps secrets in it out of the list of processes.",
        ),
    ],
    cluster: ClusterOption = None,
    url: UrlOption = None,
    form: FormatOption = Format.table,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate bytes, spans, time and WAL at risk; nothing is written.")
    ] = False,
) -> None:
    """Run one statement and print its result."""
    request = parse(sys.stdin.read() if statement == "-" else statement)
    if isinstance(request, BackupRequest | RestoreRequest) and request.options.detached:
        raise BadInput(
            f"Option detached needs somebody who goes on with the work: trigger the DAG {_dag(request)} in Airflow, "
            "or leave the option out."
        )
    if _has_workers(request) and not dry_run:
        begin_template()
    with rest_shown(form), session(_UNCHANGED if dry_run else _GOING_ON.get(request.kind, _UNCHANGED)) as context:
        from spanvault.engine.execute import execute

        result = execute(context, request, cluster=_cluster(context, request, cluster, url), dry_run=dry_run)
    show(result, form)


def _has_workers(request: Request) -> bool:
    return isinstance(request, RestoreRequest) or (isinstance(request, BackupRequest) and request.append is None)


def _dag(request: BackupRequest | RestoreRequest) -> str:
    if isinstance(request, RestoreRequest):
        return "restore"
    return "full_backup" if request.append is None else "incremental_backup"


def _cluster(context: Context, request: Request, cluster: str | None, url: str | None) -> Cluster | None:
    if isinstance(request, BackupRequest | RestoreRequest):
        return needed_cluster(context, cluster, url, request.kind.upper())
    return chosen_cluster(context, cluster, url)
