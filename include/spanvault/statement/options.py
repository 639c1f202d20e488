"""WITH options: fields of a request's models, read by their types."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from lark import Token, Tree
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from spanvault.errors import BadInput
from spanvault.model.places import Places
from spanvault.model.request import BackupOptions, EncryptionOptions, RestoreOptions, ShowBackupRequest, ShowBackupsRequest
from spanvault.model.units import parse_bytes, parse_duration
from spanvault.statement import refuse
from spanvault.statement.problems import problem, shows
from spanvault.statement.words import folded, unquoted

Node = Tree[Token]

# The options of each statement: field by field, so that a new field is an option at once.
FIELDS: dict[str, dict[str, FieldInfo]] = {
    "BACKUP": dict(BackupOptions.model_fields),
    "RESTORE": dict(RestoreOptions.model_fields),
    "SHOW BACKUP": {
        name: ShowBackupRequest.model_fields[name]
        for name in ("privileges", "debug_ids", "check_files", "as_json", "incremental_location")
    },
    "SHOW BACKUPS": {name: ShowBackupsRequest.model_fields[name] for name in ("ids", "revision_start_time")},
}
# CockroachDB's names of options in other words; shown as in its statements.
SPELLINGS: dict[str, dict[str, str]] = {
    "BACKUP": {"execution locality": "execution_locality", "strict storage locality": "strict"},
    "RESTORE": {"execution locality": "execution_locality"},
    "SHOW BACKUPS": {"revision start time": "revision_start_time"},
}
# The options that say with what a backup is encrypted or read, with the fields of EncryptionOptions.
KEY_OPTIONS = {"encryption_passphrase": "passphrase", "encryption_passphrase_from": "passphrase_from", "kms": "kms"}
ENCRYPTED = frozenset({"BACKUP", "RESTORE", "SHOW BACKUP"})
_KEY_FORMS = {
    "passphrase": "a passphrase in single quotes",
    "passphrase_from": "'connection:ID', 'variable:NAME', 'env:NAME' or 'prompt'",
    "kms": "a URI in single quotes, or several as ('uri', 'uri')",
}
# Options whose meaning is narrower than their field's type.
BYTE_OPTIONS = frozenset({"rate_limit", "span_bytes"})
DURATION_OPTIONS = frozenset({"protection", "max_clock_skew"})
URI_OPTIONS = frozenset({"incremental_location"})
# A duration that may be given up altogether.
_OR_NONE = frozenset({"protection"})


def read_options(text: str, statement: str, node: Node | None) -> tuple[dict[str, Any], EncryptionOptions]:
    """The options under a with_options node of `statement` (a key of FIELDS) as field values, and those of encryption.

    Raises BadInput with the place for an option that is unknown, refused, given twice or of another form.
    """
    values: dict[str, Any] = {}
    keys: dict[str, str | tuple[str, ...]] = {}
    for option in node.find_data("option") if node else ():
        words = [child for child in option.children if isinstance(child, Token)]
        spelled = " ".join(folded(word) for word in words)
        name = SPELLINGS.get(statement, {}).get(spelled, spelled)
        try:
            if name in values or KEY_OPTIONS.get(name) in keys:
                raise BadInput(f"Option {name} is given twice.")
            if statement in ENCRYPTED and name in KEY_OPTIONS:
                keys[KEY_OPTIONS[name]] = _key_value(name, option)
                encryption(keys)
            elif name in FIELDS[statement]:
                given = _places(option) if name in URI_OPTIONS else _given(option)
                values[name] = _value(name, FIELDS[statement][name], given)
            else:
                raise BadInput(_unknown(statement, name, _shown_name(text, words)))
        except BadInput as error:
            raise problem(text, words[0].start_pos or 0, str(error).removesuffix(".")) from None
    return values, encryption(keys)


def encryption(keys: Mapping[str, str | tuple[str, ...]]) -> EncryptionOptions:
    """EncryptionOptions of the fields `keys`. Raises BadInput, without a value in the message."""
    return EncryptionOptions.model_validate(dict(keys))


def _key_value(name: str, option: Node) -> str | tuple[str, ...]:
    """A passphrase or reference, or URIs; single quotes are a must: a name would be folded, and a secret not masked."""
    field = KEY_OPTIONS[name]
    value = next((child for child in option.children if isinstance(child, Tree)), None)
    tokens = [child for child in value.children if isinstance(child, Token) and child.type != "LPAR"] if value else []
    if not tokens or any(token.type != "STRING" for token in tokens) or (value and value.data == "list" and field != "kms"):
        raise BadInput(f"Option {name} needs a value: {_KEY_FORMS[field]}.")
    return tuple(map(unquoted, tokens)) if field == "kms" else unquoted(tokens[0])


def _shown_name(text: str, words: Sequence[Token]) -> str:
    """An option's name without words that may be of a passphrase, whose '=' was forgotten or whose quotes do not pair."""
    return " ".join(folded(word) for word in words if shows(text, word.start_pos or 0, str(word)))


def _given(option: Node) -> str | bool | None:
    """The value as text, True for an option without one, None for a list."""
    value = next((child for child in option.children if isinstance(child, Tree)), None)
    if value is None:
        return True
    token = value.children[0]
    if value.data == "list" or not isinstance(token, Token):
        return None
    return unquoted(token) if token.type == "STRING" else folded(token) if token.type in {"WORD", "QUOTED"} else str(token)


def _places(option: Node) -> str | bool | None:
    """The value of an option that takes URIs: one, or a list."""
    value = next((child for child in option.children if isinstance(child, Tree)), None)
    if value is None or value.data != "list":
        return _given(option)
    return places_text([unquoted(token) for token in value.children if isinstance(token, Token) and token.type == "STRING"])


def places_text(uris: Sequence[str]) -> str:
    """The URIs of a statement as one text. Raises BadInput for what cannot be places of one collection."""
    for uri in uris:
        if not uri.strip():
            raise BadInput("the URI is empty; write it as in 's3://bucket/backups'")
        if "\n" in uri:
            raise BadInput("the URI holds a line break; write several URIs as ('uri', 'uri')")
    if len(uris) > 1:
        Places.of(uris)
    return "\n".join(uris)


def names_of(statement: str) -> tuple[str, ...]:
    """The names of the options that `statement` has."""
    return (*FIELDS[statement], *(KEY_OPTIONS if statement in ENCRYPTED else ()))


def _unknown(statement: str, name: str, shown: str) -> str:
    if reason := refuse.option(statement, name):
        return f"Option {name} of {statement} is not possible here: {reason}."
    known = sorted(names_of(statement))
    if shown in known:
        return f"Option {shown} needs a value: write '=' between them."
    near = difflib.get_close_matches(name, known, n=1)
    owner = next((other for other in FIELDS if name in names_of(other)), None)
    hint = f"; did you mean {near[0]}" if near else f"; it is an option of {owner}" if owner else ""
    what = f"option {shown!r}" if shown else "option of the name that stands here"
    return f"{statement} has no {what}{hint} (it has {', '.join(known) or 'none'})."


def _value(name: str, field: FieldInfo, given: str | bool | None) -> Any:
    form, read = _form(name, field)
    if given is None or (given is True and form != "true or false"):
        raise BadInput(f"Option {name} needs a value: {form}.")
    value = read(given)
    bounded: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(bounded).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should", "it should")
        raise BadInput(f"Option {name} cannot be {given!r}: {reason}.") from None


def _form(name: str, field: FieldInfo) -> tuple[str, Callable[[Any], Any]]:
    """How the option's value is written, for a message, and its reader."""
    if name in BYTE_OPTIONS:
        return "a size such as '50MB' or '64MiB'", parse_bytes
    if name in DURATION_OPTIONS:
        or_none = name in _OR_NONE
        what = "a duration such as '4h', or 'none'" if or_none else "a duration such as '4h'"
        return what, lambda given: _duration(given, or_none=or_none)
    if field.annotation is bool:
        return "true or false", lambda given: _flag(name, given)
    if field.annotation is int:
        return "a whole number", lambda given: _integer(name, given)
    if get_origin(field.annotation) is Literal:
        return " or ".join(repr(choice) for choice in get_args(field.annotation)), str
    what = "a URI" if name in URI_OPTIONS else "tiers such as 'region=eu'" if name == "execution_locality" else "a name"
    return what, lambda given: _text(name, what, given)


def _duration(given: str, *, or_none: bool) -> str:
    if or_none and given.lower() == "none":
        return "none"
    parse_duration(given)
    return given


def _flag(name: str, given: str | bool) -> bool:
    if given is True or str(given).lower() in {"true", "false"}:
        return str(given).lower() == "true"
    raise BadInput(f"Option {name} is a switch: true or false, not {given!r}.")


def _integer(name: str, given: str) -> int:
    if given.isascii() and given.isdigit() and len(given) < 19:
        return int(given)
    raise BadInput(f"Option {name} needs a whole number, not {given!r}.")


def _text(name: str, what: str, given: str) -> str:
    # A database's name may be a space; a place may not, and tiers are more than the commas between them.
    meaningful = given.strip() if name in URI_OPTIONS else given.strip(" ,") if name == "execution_locality" else given
    if not meaningful or "\0" in given:
        raise BadInput(f"Option {name} needs {what}; it is empty.")
    return given
