"""`spanvault storage`: find out whether a place can hold backups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from spanvault.cli.output import Format, show
from spanvault.cli.session import FormatOption, PlaceOption, all_places, session
from spanvault.errors import Permanent
from spanvault.model.result import Cell

app = typer.Typer(no_args_is_help=True, help="Find out whether a place can hold backups.")


@app.callback()
def _group() -> None:
    """Find out whether a place can hold backups."""


@app.command()
def check(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The place, such as 's3://bucket/path?...'.")],
    place: PlaceOption = None,
    transfer: Annotated[
        str, typer.Option("--transfer", metavar="SIZE", help="How much is streamed there and back to measure speeds.")
    ] = "64MiB",
    leave_behind: Annotated[
        bool,
        typer.Option("--leave-behind", help="Check everything also where nothing can be deleted: what is written stays."),
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Try everything that backups need of a place, and of its localities', below a folder that is removed again; a failure
    is exit code 1."""
    with session("What the check wrote was removed, unless a line above says otherwise.") as context:
        from spanvault.engine.storage_check import storage_check

        result = storage_check(context, all_places(uri, place), transfer=transfer, leave_behind=leave_behind)
    show(result, form)
    failed = [_named(row) for row in result.dicts() if row.get("status") in {"failed", "not checked"}]
    if failed:
        raise Permanent(f"The place was not found fit for backups: {', '.join(failed)}; the table says why.")


def _named(row: Mapping[str, Cell]) -> str:
    """A row's property, and of several places whose."""
    return f"{row['check']} ({row['locality']})" if "locality" in row else str(row.get("check"))
