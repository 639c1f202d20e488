"""Request to text: a statement that parses to the same request, or one to show, without secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from pydantic import BaseModel, SecretStr

from spanvault.errors import BadInput
from spanvault.model.cut import Lsn, format_time
from spanvault.model.kms_uri import KmsUri
from spanvault.model.request import (
    AlterBackupRequest,
    BackupRequest,
    EncryptionOptions,
    Request,
    RestoreRequest,
    ShowBackupsRequest,
)
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, Target
from spanvault.model.units import format_bytes
from spanvault.model.uri import REDACTED, StorageUri, redact_text
from spanvault.statement.options import BYTE_OPTIONS, FIELDS, KEY_OPTIONS, SPELLINGS, URI_OPTIONS
from spanvault.statement.words import name_text, string_text, uris_of

_NO_KEYS = EncryptionOptions()


def render(request: Request) -> str:
    """The statement of a request on one line; options at their defaults are left out. Secrets in the URIs of places are
    included, passphrases and secrets in the URIs of keys never are: `redacted` stands there."""
    return _render(request, str)


def render_redacted(request: Request) -> str:
    """The statement to show and to store: all secrets are replaced, so it may need them again to run."""
    return _render(request, _redacted)


def _redacted(uri: str) -> str:
    try:
        return StorageUri.parse(uri).redacted()
    except BadInput:
        return redact_text(uri)


def _render(request: Request, show: Callable[[str], str]) -> str:
    if isinstance(request, BackupRequest):
        place = f"INTO {_within(request.append)} IN" if request.append is not None else "INTO"
        parts = ("BACKUP", _target(request.target), place, _uris(request.into, show), _as_of(request.as_of))
        return " ".join(filter(None, (*parts, _options("BACKUP", request.options, request.encryption, show))))
    collection = _uris(request.collection, show)
    if isinstance(request, ShowBackupsRequest):
        return " ".join(filter(None, (f"SHOW BACKUPS IN {collection}", *_ages(request), _options("SHOW BACKUPS", request))))
    if isinstance(request, AlterBackupRequest):
        verb = "ADD" if request.new.kms else "SET"
        change = f"{verb} {_alter_key('NEW', request.new)} WITH {_alter_key('OLD', request.old)}"
        return f"ALTER BACKUP {_within(request.subdir)} IN {collection} {change}"
    place = f"FROM {_within(request.subdir)} IN {collection}"
    if isinstance(request, RestoreRequest):
        options = _options("RESTORE", request.options, request.encryption, show)
        return " ".join(filter(None, ("RESTORE", _target(request.target), place, _as_of(request.as_of), options)))
    options = _options("SHOW BACKUP", request, request.encryption, show)
    return " ".join(filter(None, ("SHOW BACKUP", "SCHEMAS" * request.schemas, place, options)))


def _ages(request: ShowBackupsRequest) -> Iterator[str]:
    for word, moment in (("NEWER", request.newer_than), ("OLDER", request.older_than)):
        if moment is not None:
            yield f"{word} THAN {string_text(format_time(moment))}"


def _uris(places: str, show: Callable[[str], str]) -> str:
    texts = [string_text(show(uri)) for uri in uris_of(places)]
    return f"({', '.join(texts)})" if len(texts) > 1 else texts[0]


def _within(subdir: str) -> str:
    return "LATEST" if subdir == "LATEST" else string_text(subdir)


def _as_of(as_of: datetime | Lsn | None) -> str:
    if as_of is None:
        return ""
    return f"AS OF SYSTEM TIME '{as_of if isinstance(as_of, Lsn) else format_time(as_of)}'"


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


def _options(statement: str, model: BaseModel, keys: EncryptionOptions = _NO_KEYS, show: Callable[[str], str] = str) -> str:
    given = [
        f"{name} = {_uris(value, show)}" if name in URI_OPTIONS else _option(_spelled(statement, name), value)
        for name, field in FIELDS[statement].items()
        if (value := getattr(model, name)) != field.get_default()
    ]
    given += [f"{name} = {value}" for name, field in KEY_OPTIONS.items() if (value := _key(keys, field))]
    return "WITH " + ", ".join(given) if given else ""


def _spelled(statement: str, name: str) -> str:
    spelled = {ours: theirs for theirs, ours in SPELLINGS.get(statement, {}).items()}
    return spelled[name].upper() if name in spelled else name


def _key(keys: EncryptionOptions, field: str) -> str:
    """A field of `keys` as a value to show, or nothing."""
    match field:
        case "passphrase":
            return string_text(REDACTED) if keys.passphrase is not None else ""
        case "passphrase_from":
            return string_text(keys.passphrase_from) if keys.passphrase_from is not None else ""
        case _:
            uris = [string_text(_redacted_key(uri)) for uri in keys.kms]
            return f"({', '.join(uris)})" if len(uris) > 1 else "".join(uris)


def _redacted_key(uri: SecretStr) -> str:
    """The URI of a key as it was given, if it holds no secret."""
    text = uri.get_secret_value()
    key = KmsUri.parse(text)
    return key.redacted() if key.has_inline_secrets else text


def _alter_key(prefix: str, keys: EncryptionOptions) -> str:
    return " ".join(f"{prefix}_{field.upper()} = {value}" for field in KEY_OPTIONS.values() if (value := _key(keys, field)))


def _option(name: str, value: bool | int | str) -> str:
    if value is True:
        return name
    if value is False:
        return f"{name} = false"
    if isinstance(value, int):
        return f"{name} = {string_text(format_bytes(value)) if name in BYTE_OPTIONS else value}"
    return f"{name} = {string_text(value)}"
