"""`spanvault collection`: care for a place that holds backups."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from spanvault.cli.output import Format, show
from spanvault.cli.session import FormatOption, UriArgument, session
from spanvault.model.units import parse_duration

_SWEPT = "Part of the garbage is removed; run it again for the rest."

app = typer.Typer(no_args_is_help=True, help="Check and tidy a collection.")


class Level(StrEnum):
    """How thoroughly a collection is checked."""

    check_files = "check_files"
    checksums = "checksums"
    schema_only = "schema_only"


@app.command()
def check(
    uri: UriArgument,
    level: Annotated[
        Level,
        typer.Option(
            "--level",
            help="check_files: every file is there with its size, chains and index agree; checksums: also reads every file; "
            "schema_only: also restores the newest backup's schema into a scratch server.",
        ),
    ] = Level.check_files,
    backup: Annotated[
        str | None, typer.Option("--backup", metavar="PATH", help="Check only this backup (LATEST: the newest) at that level.")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Check all backups of a collection, or one of them; damage is exit code 1."""
    with session() as context:
        from spanvault.engine.maintenance import collection_check

        result = collection_check(context, uri, level.value, backup)
    show(result, form)


@app.command(name="rebuild-index")
def rebuild_index(uri: UriArgument, form: FormatOption = Format.table) -> None:
    """Write the index that SHOW BACKUPS reads anew from the manifests."""
    with session("Run it again to finish; backups are not touched.") as context:
        from spanvault.engine.maintenance import rebuild_index as rebuild

        result = rebuild(context, uri)
    show(result, form)


@app.command()
def sweep(
    uri: UriArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only counted.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Leave what is younger: a run may be writing it.")
    ] = "24h",
    form: FormatOption = Format.table,
) -> None:
    """Count what runs that failed or were killed left behind, or remove it; never anything that belongs to a backup."""
    age = parse_duration(older_than)
    with session(_SWEPT if delete else "Nothing was changed.") as context:
        from spanvault.engine.maintenance import sweep as sweep_collection

        result = sweep_collection(context, uri, dry_run=not delete, older_than=age)
    show(result, form)
