"""`spanvault demo`: a cluster, an object store and Airflow on this machine."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="A PostgreSQL cluster, S3 and Airflow to try Spanvault on, all local.")


@app.command()
def start() -> None:
    """Start all, back up under load into S3, restore under another name, prove both equal; stays up until Ctrl-C."""
    from spanvault.demo.commands import start as start_demo

    start_demo()


@app.command()
def stop() -> None:
    """Stop whatever a demo left running and remove its data."""
    from spanvault.demo.commands import stop as stop_demo

    stop_demo()


@app.command()
def status() -> None:
    """Say what runs, and where."""
    from spanvault.demo.commands import status as show_status

    show_status()
