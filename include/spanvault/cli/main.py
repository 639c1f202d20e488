"""The command line. Exit codes: 0, 1 for an operation that failed, 2 for bad input, 130 after Ctrl-C."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from spanvault import __version__
from spanvault.cli import cluster, collection, demo, protection, storage
from spanvault.cli.hints import HintingGroup
from spanvault.cli.session import Interrupted
from spanvault.cli.sql import sql
from spanvault.columnar.start import leave_pandas_out
from spanvault.errors import SpanvaultError
from spanvault.model.uri import redact_text

INTERRUPTED = 130  # as shells report a process that SIGINT ended

app = typer.Typer(
    cls=HintingGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Backup and restore for PostgreSQL clusters, with CockroachDB's statements. Works without Airflow.",
    epilog="Exit codes: 0 done, 1 the operation failed, 2 bad input, 130 interrupted.",
)
app.command()(sql)
app.add_typer(collection.app, name="collection")
app.add_typer(storage.app, name="storage")
app.add_typer(protection.app, name="protection")
app.add_typer(cluster.app, name="cluster")
app.add_typer(demo.app, name="demo")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spanvault {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Backup and restore for PostgreSQL clusters, with CockroachDB's statements. Works without Airflow."""


def main() -> NoReturn:
    """The `spanvault` command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # They are for programmers, who ask for them by -W or PYTHONWARNINGS.
    leave_pandas_out()
    code = run(sys.argv[1:])
    if "duckdb" not in sys.modules:  # which would complain of all that is not collected
        gc.freeze()  # or the interpreter's end looks half a second for garbage in what was imported
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one message on standard error."""
    try:
        typer.main.get_command(app).main(list(arguments), prog_name="spanvault")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("Interrupted.", err=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Interrupted, KeyboardInterrupt) as stopped:
        typer.echo(f"Interrupted. {stopped}".rstrip(), err=True)
        return INTERRUPTED
    except SpanvaultError as error:
        typer.echo(f"Error: {error}", err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # the last place before the person
        typer.echo(_unexpected(error), err=True)
        return 1
    return 0


def _unexpected(error: Exception) -> str:
    """Write the traceback to a file that only its owner can read; a message for the person."""
    text = redact_text("".join(traceback.format_exception(error)))
    try:
        descriptor, path = tempfile.mkstemp(prefix="spanvault-", suffix=".traceback")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as problem:
        return f"Error: unexpected {type(error).__name__}; its traceback could not be written to a file ({problem.strerror})."
    return f"Error: unexpected {type(error).__name__}, a defect in Spanvault; the traceback is in {path}."
