"""What a request must hold whichever way it came: statement, form or call."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from spanvault.errors import BadInput
from spanvault.model.cut import format_time, time_of_subdir
from spanvault.model.places import Places
from spanvault.model.request import (
    AlterBackupRequest,
    BackupRequest,
    Request,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.target import DatabaseTarget, SchemaTarget, TableTarget, Target
from spanvault.model.units import parse_duration
from spanvault.statement.refuse import FULL_AS_OF, FULL_LOCATION

# A part of a request that is wrong (`target`, `append`, `as_of`, or an option by its name), and a sentence.
Problem = tuple[str, str]


def check(request: Request) -> None:
    """Raise BadInput for a request whose parts contradict each other, with the first of its problems."""
    for _, sentence in problems(request):
        raise BadInput(sentence)


def problems(request: Request) -> Iterator[Problem]:
    """What is wrong with a request, part by part; nothing if it may be carried out."""
    if isinstance(request, BackupRequest):
        yield from _duplicates(request.target)
        yield from _backup(request)
    elif isinstance(request, RestoreRequest):
        yield from _duplicates(request.target)
        yield from _zone(request.as_of if isinstance(request.as_of, datetime) else None)
        yield from _restore(request)
    elif isinstance(request, ShowBackupsRequest):
        yield from _show_backups(request)
    elif isinstance(request, ShowBackupRequest):
        yield from _show_backup(request)
    elif isinstance(request, AlterBackupRequest):
        if not (request.old.given and request.new.given):
            yield "new", "ALTER BACKUP needs both, the new key or passphrase and an old one that opens the backup."
        elif bool(request.old.kms) != bool(request.new.kms):
            yield "new", "A passphrase is replaced by a passphrase, and keys are added to keys: give two of the same kind."


def _backup(request: BackupRequest) -> Iterator[Problem]:
    options = request.options
    if options.protection != "none":
        yield from _duration("protection", options.protection)
    yield from _duration("max_clock_skew", options.max_clock_skew)
    yield from _zone(request.as_of)
    if request.append is None:
        if request.as_of is not None:
            yield "as_of", f"{FULL_AS_OF}."
        if options.incremental_location is not None:
            yield "incremental_location", f"{FULL_LOCATION}."
    yield from _places(request)
    if request.append not in {None, "LATEST"}:
        try:
            time_of_subdir(request.append or "")
        except BadInput as error:
            yield "append", str(error)


def _places(request: BackupRequest) -> Iterator[Problem]:
    """What is wrong with the localities of the URIs; what is wrong with a URI itself is told where it is opened."""
    options = request.options
    try:
        given = Places.parse(request.into).localities
        location = Places.parse(options.incremental_location).localities if options.incremental_location else given
    except BadInput:
        return
    if location != given:
        yield (
            "incremental_location",
            f"Option incremental_location has URIs for the localities {', '.join(location)}, and the collection for"
            f" {', '.join(given)}: give the same for both.",
        )
    if options.strict and len(given) == 1:
        yield "strict", "STRICT STORAGE LOCALITY is about several URIs with localities; there is one: leave it out."


def _duration(option: str, text: str) -> Iterator[Problem]:
    try:
        parse_duration(text)
    except BadInput as error:
        yield option, str(error)


def _zone(as_of: datetime | None) -> Iterator[Problem]:
    if as_of is not None and as_of.tzinfo is None:
        yield "as_of", f"The time {as_of.isoformat(' ')} has no time zone; add one, for example +00:00 for UTC."


def _restore(request: RestoreRequest) -> Iterator[Problem]:
    options, target = request.options, request.target
    if options.new_db_name is not None and not (isinstance(target, DatabaseTarget) and len(target.names) == 1):
        yield "new_db_name", "Option new_db_name can only be used for RESTORE DATABASE with a single target database."
    if options.into_db is not None and not isinstance(target, TableTarget | SchemaTarget):
        yield "into_db", "Option into_db is for RESTORE TABLE and RESTORE SCHEMA; for a database use new_db_name."
    if options.verify_backup_table_data and not options.schema_only:
        yield "verify_backup_table_data", "To set the verify_backup_table_data option, the schema_only option must be set."
    if options.verify_fingerprint and options.schema_only:
        yield "verify_fingerprint", "Option verify_fingerprint compares rows, and schema_only restores none; give one of them."


def _show_backups(request: ShowBackupsRequest) -> Iterator[Problem]:
    newer, older = request.newer_than, request.older_than
    for part, moment in (("newer_than", newer), ("older_than", older)):
        if moment is not None and moment.tzinfo is None:
            yield part, f"The time {moment.isoformat(' ')} has no time zone; add one, for example +00:00 for UTC."
            return
    if newer is not None and older is not None and newer >= older:
        yield (
            "older_than",
            f"No backup is newer than {format_time(newer)} and older than {format_time(older)}: exchange the two times.",
        )


def _show_backup(request: ShowBackupRequest) -> Iterator[Problem]:
    others = {"SCHEMAS": request.schemas, "privileges": request.privileges, "debug_ids": request.debug_ids}
    given = [name for name, asked in others.items() if asked]
    if request.as_json and given:
        yield "as_json", f"Option as_json shows stored manifests, which have no columns for {' and '.join(given)}; leave one out."
    if request.incremental_location is not None and not request.check_files:
        yield "incremental_location", "Option incremental_location is for check_files; nothing else is read there: leave it out."


def _duplicates(target: Target) -> Iterator[Problem]:
    items: tuple[object, ...] = ()
    if isinstance(target, DatabaseTarget | SchemaTarget):
        items = target.names
    elif isinstance(target, TableTarget):
        items = target.patterns
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        text = ".".join(filter(None, twice)) if isinstance(twice, tuple) else str(twice)
        yield "target", f"{text!r} is named twice; name it once."
