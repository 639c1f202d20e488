"""`spanvault collection`: care for a place that holds backups."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from spanvault.cli.output import Format, rest_shown, show
from spanvault.cli.session import FormatOption, KmsOption, PassphraseOption, PlaceOption, UriArgument, all_places, session
from spanvault.errors import BadInput
from spanvault.model.cut import time_of_subdir
from spanvault.model.units import parse_duration

_COMPACTED = "The chain's layers are as they were; run it again to begin anew."
_LOCKED = "Part of the chain is protected for longer; run it again for the rest."
_SWEPT = "Part of the garbage is removed; run it again for the rest."

app = typer.Typer(no_args_is_help=True, help="Look into, check and tidy a collection.")


class Level(StrEnum):
    """How thoroughly a collection is checked."""

    check_files = "check_files"
    checksums = "checksums"
    schema_only = "schema_only"
    verify_backup_table_data = "verify_backup_table_data"


@app.command()
def check(
    uri: UriArgument,
    place: PlaceOption = None,
    level: Annotated[
        Level,
        typer.Option(
            "--level",
            help="check_files: every file is there with its size, chains and index agree; checksums: also reads every file; "
            "schema_only: also restores the newest backup's schema into a scratch server; verify_backup_table_data: then also "
            "reads and merges its rows as a restore does.",
        ),
    ] = Level.check_files,
    backup: Annotated[
        str | None, typer.Option("--backup", metavar="PATH", help="Check only this backup (LATEST: the newest) at that level.")
    ] = None,
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Check all backups of a collection, or one of them; damage is exit code 1."""
    with rest_shown(form), session("Nothing was changed.", passphrase_from, kms) as context:
        from spanvault.engine.maintenance import collection_check

        result = collection_check(context, all_places(uri, place), level.value, backup)
    show(result, form)


@app.command(name="rebuild-index")
def rebuild_index(
    uri: UriArgument,
    place: PlaceOption = None,
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Write the index that SHOW BACKUPS reads anew from the manifests."""
    with rest_shown(form), session("Run it again to finish; backups are not touched.", passphrase_from, kms) as context:
        from spanvault.engine.maintenance import rebuild_index as rebuild

        result = rebuild(context, all_places(uri, place))
    show(result, form)


@app.command()
def sweep(
    uri: UriArgument,
    place: PlaceOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only counted.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Leave what is younger: a run may be writing it.")
    ] = "24h",
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Count what runs that failed or were killed left behind, or remove it; never anything that belongs to a backup."""
    age = parse_duration(older_than)
    with rest_shown(form), session(_SWEPT if delete else "Nothing was changed.", passphrase_from, kms) as context:
        from spanvault.engine.maintenance import sweep as sweep_collection

        result = sweep_collection(context, all_places(uri, place), dry_run=not delete, older_than=age)
    show(result, form)


@app.command()
def windows(
    uri: UriArgument,
    place: PlaceOption = None,
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """List from when to when each chain can be restored: at any time, or at the ends of its layers only."""
    with rest_shown(form), session("Nothing was changed.", passphrase_from, kms) as context:
        from spanvault.engine.maintenance import restorable

        result = restorable(context, all_places(uri, place))
    show(result, form)


@app.command()
def compact(
    uri: UriArgument,
    place: PlaceOption = None,
    subdir: Annotated[
        str, typer.Argument(metavar="SUBDIR", help="The chain's path as SHOW BACKUPS lists it; LATEST is the newest.")
    ] = "LATEST",
    first: Annotated[
        int | None,
        typer.Option(
            "--from", metavar="N", min=0, help="The first layer to merge: 1 if not given; 0 makes a full.", show_default=False
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--to", metavar="N", min=0, help="The last layer to merge: the newest if not given.", show_default=False),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Merge from the chain's full on (--from 0): a full at the last layer's end.")
    ] = False,
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Merge layers of a chain into one that stands for them; the source is not read and the merged layers stay."""
    if full and first:
        raise BadInput(f"--full merges from layer 0 on, and --from says {first}; give one of them.")
    begin = 0 if full else 1 if first is None else first
    if number is not None and number <= begin:
        raise BadInput(f"One layer is nothing to merge: --to {number} must be greater than the first layer, {begin}.")
    with session(_COMPACTED, passphrase_from, kms) as context:
        from spanvault.engine.maintenance import compact_backups

        result = compact_backups(context, all_places(uri, place), _chain(subdir), first=begin, number=number)
    show(result, form)


@app.command(name="extend-lock")
def extend_lock(
    uri: UriArgument,
    place: PlaceOption = None,
    subdir: Annotated[
        str, typer.Argument(metavar="SUBDIR", help="The chain's path as SHOW BACKUPS lists it; LATEST is the newest.")
    ] = "LATEST",
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="Protect it at least until then, such as '2027-01-31 12:00'; UTC, or with a zone."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", metavar="N", min=1, help="Protect it for so many days from now.", show_default=False)
    ] = None,
    passphrase_from: PassphraseOption = None,
    kms: KmsOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Protect all objects of a chain for longer by object locks: as long as its newest layer, unless told until when."""
    end = None if until is None else _time(until)
    with session(_LOCKED, passphrase_from, kms) as context:
        from spanvault.engine.locks import extend_lock as extend

        result = extend(context, all_places(uri, place), _chain(subdir), until=end, days=days)
    show(result, form)


def _time(text: str) -> datetime:
    """A time in ISO 8601, UTC without a zone. Raises BadInput."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadInput(
            f"--until {text!r} is no time; write it as in '2027-01-31 12:00' or '2027-01-31T12:00:00+02:00'."
        ) from None


def _chain(subdir: str) -> str:
    """A chain's path in its normal form. Raises BadInput."""
    if subdir.upper() == "LATEST":
        return "LATEST"
    time_of_subdir(subdir)
    return subdir.strip("/")
