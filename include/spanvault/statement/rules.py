"""What a request must hold whichever way it came: statement, form or call."""

from __future__ import annotations

from spanvault.errors import BadInput
from spanvault.model.request import BackupRequest, Request, RestoreRequest
from spanvault.model.target import DatabaseTarget, SchemaTarget, TableTarget, Target
from spanvault.model.units import parse_duration


def check(request: Request) -> None:
    """Raise BadInput for a request whose parts contradict each other."""
    if isinstance(request, BackupRequest):
        if request.options.protection != "none":
            parse_duration(request.options.protection)
        _no_duplicates(request.target)
    if isinstance(request, RestoreRequest):
        _no_duplicates(request.target)
        _check_restore(request)


def _check_restore(request: RestoreRequest) -> None:
    options, target = request.options, request.target
    if options.new_db_name is not None and not (isinstance(target, DatabaseTarget) and len(target.names) == 1):
        raise BadInput("Option new_db_name can only be used for RESTORE DATABASE with a single target database.")
    if options.into_db is not None and not isinstance(target, TableTarget | SchemaTarget):
        raise BadInput("Option into_db is for RESTORE TABLE and RESTORE SCHEMA; for a database use new_db_name.")
    if options.verify_backup_table_data and not options.schema_only:
        raise BadInput("To set the verify_backup_table_data option, the schema_only option must be set.")
    if options.verify_fingerprint and options.schema_only:
        raise BadInput("Option verify_fingerprint compares rows, and schema_only restores none; give one of them.")


def _no_duplicates(target: Target) -> None:
    items: tuple[object, ...] = ()
    if isinstance(target, DatabaseTarget | SchemaTarget):
        items = target.names
    elif isinstance(target, TableTarget):
        items = target.patterns
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        text = ".".join(filter(None, twice)) if isinstance(twice, tuple) else str(twice)
        raise BadInput(f"{text!r} is named twice; name it once.")
