"""Request to text: a statement that parses to the same request, or one to show, without secrets."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from spanvault.errors import BadInput
from spanvault.model.cut import format_time
from spanvault.model.request import BackupRequest, Request, RestoreRequest, ShowBackupsRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, Target
from spanvault.model.units import format_bytes
from spanvault.model.uri import StorageUri, redact_text
from spanvault.statement.options import BYTE_OPTIONS, FIELDS
from spanvault.statement.words import name_text, string_text


def render(request: Request) -> str:
    """The statement of a request on one line, secrets included; options at their defaults are left out."""
    return _render(request, str)


def render_redacted(request: Request) -> str:
    """The statement to show and to store: secrets in its URI are replaced, so it may need them again to run."""
    return _render(request, _redacted)


def _redacted(uri: str) -> str:
    try:
        return StorageUri.parse(uri).redacted()
    except BadInput:
        return redact_text(uri)


def _render(request: Request, show: Callable[[str], str]) -> str:
    if isinstance(request, BackupRequest):
        parts = ["BACKUP", _target(request.target), "INTO", string_text(show(request.into)), _options("BACKUP", request.options)]
        return " ".join(filter(None, parts))
    collection = string_text(show(request.collection))
    if isinstance(request, ShowBackupsRequest):
        return f"SHOW BACKUPS IN {collection}"
    subdir = "LATEST" if request.subdir == "LATEST" else string_text(request.subdir)
    if isinstance(request, RestoreRequest):
        as_of = f"AS OF SYSTEM TIME '{format_time(request.as_of)}'" if request.as_of else ""
        options = _options("RESTORE", request.options)
        return " ".join(filter(None, ("RESTORE", _target(request.target), f"FROM {subdir} IN {collection}", as_of, options)))
    return f"SHOW BACKUP FROM {subdir} IN {collection} {_options('SHOW BACKUP', request)}".rstrip()


def _target(target: Target) -> str:
    match target:
        case ClusterTarget():
            return ""
        case DatabaseTarget():
            return "DATABASE " + ", ".join(map(name_text, target.names))
        case SchemaTarget():
            return "SCHEMA " + ", ".join(".".join(map(name_text, filter(None, names))) for names in target.names)
        case _:
            return "TABLE " + ", ".join(map(_pattern, target.patterns))


def _pattern(pattern: TablePattern) -> str:
    names = [name_text(name) for name in (pattern.database, pattern.schema_name) if name]
    return ".".join((*names, "*" if pattern.name is None else name_text(pattern.name)))


def _options(statement: str, model: BaseModel) -> str:
    given = [
        _option(name, value)
        for name, field in FIELDS[statement].items()
        if (value := getattr(model, name)) != field.get_default()
    ]
    return "WITH " + ", ".join(given) if given else ""


def _option(name: str, value: bool | int | str) -> str:
    if value is True:
        return name
    if value is False:
        return f"{name} = false"
    if isinstance(value, int):
        return f"{name} = {string_text(format_bytes(value)) if name in BYTE_OPTIONS else value}"
    return f"{name} = {string_text(value)}"
