"""Text to request."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedInput

from spanvault.errors import BadInput
from spanvault.model.clock import Clock, now
from spanvault.model.cut import Lsn, format_time
from spanvault.model.request import (
    AlterBackupRequest,
    BackupOptions,
    BackupRequest,
    EncryptionOptions,
    Request,
    RestoreOptions,
    RestoreRequest,
    ShowBackupRequest,
    ShowBackupsRequest,
)
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from spanvault.model.units import parse_duration
from spanvault.statement import refuse
from spanvault.statement.options import Node, encryption, places_text, read_options
from spanvault.statement.problems import problem, syntax_problem
from spanvault.statement.rules import problems
from spanvault.statement.words import folded, unquoted

_TIME = "a time such as '2026-11-22 14:30:00' (UTC unless it says otherwise) or '-10m'"
_AGE = "a time such as '2026-11-22 14:30:00' (UTC unless it says otherwise), or so long before now, as in '7d'"
_DURATION = re.compile(r"(?:\d[\d.]*[a-z]+)+", re.ASCII | re.IGNORECASE)
_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_LEADING = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)


def parse(text: str, *, clock: Clock = now) -> Request:
    """The request that a statement makes. `clock` is the present for relative times ('-10s').

    Raises BadInput, always with line, column and a caret: for a syntax error with what was expected; for what CockroachDB
    knows and this version does not do with the reason; for a time that has not come yet; for parts that contradict each
    other. URIs' parameters and passphrases never stand in the message.
    """
    start = len(text) - len(_LEADING.sub("", text, count=1))
    if not text[start:].strip(" \t\n;"):
        raise BadInput("The statement is empty; write BACKUP, RESTORE, SHOW BACKUPS, SHOW BACKUP or ALTER BACKUP.")
    if reason := refuse.statement(text[start:]):
        raise problem(text, start, reason)
    try:
        tree = _grammar().parse(text)
    except UnexpectedInput as error:
        raise syntax_problem(text, error) from None
    node = _child(tree, 0)
    request = _Reader(text, clock).request(node)
    for part, sentence in problems(request):
        raise problem(text, _place_of(node, part), sentence.removesuffix("."))
    return request


@cache
def _grammar() -> Lark:
    return Lark.open("grammar.lark", rel_to=__file__, parser="lalr", propagate_positions=True, maybe_placeholders=False)


def _child(node: Node, index: int) -> Node:
    return [child for child in node.children if isinstance(child, Tree)][index]


def _tokens(node: Node) -> list[Token]:
    return [child for child in node.children if isinstance(child, Token)]


def _find(node: Node, *names: str) -> Node | None:
    return next((child for child in node.children if isinstance(child, Tree) and child.data in names), None)


def _log_position(as_of: Node) -> Lsn | None:
    token = _tokens(as_of)[-1]
    return Lsn.parse(unquoted(token)) if token.type == "STRING" and _LSN.fullmatch(unquoted(token)) else None


def _place_of(node: Node, part: str) -> int:
    """Where a part of a request that rules.problems names stands in its statement."""
    names = {
        "target": ("databases", "schemas", "tables"),
        "append": ("inside",),
        "as_of": ("as_of",),
        "older_than": ("age_filter",),
    }.get(part)
    if names is not None:
        found = _find(node, *names)
    else:
        found = next((option for option in node.find_data("option") if folded(_tokens(option)[0]) == part), None)
    return (found or node).meta.start_pos


class _Reader:
    """Reads a parse tree; refusals point at their token."""

    def __init__(self, text: str, clock: Clock) -> None:
        self._text = text
        self._clock = clock

    def request(self, node: Node) -> Request:
        match str(node.data):
            case "backup":
                return self._backup(node)
            case "restore":
                return self._restore(node)
            case "show_backups":
                return self._show_backups(node)
            case "show_backup":
                return self._show_backup(node)
            case "alter_backup":
                return self._alter_backup(node)
            case "backup_to":
                raise self._refused(node, "TO", refuse.BACKUP_TO)
            case "restore_system_users":
                raise self._refused(node, "SYSTEM_USERS", refuse.SYSTEM_USERS)
            case _:
                raise self._refused(node, "BACKUP", refuse.SHOW_BACKUP_IN)

    def _backup(self, node: Node) -> BackupRequest:
        place, as_of = next(node.find_pred(lambda below: below.data in {"root", "inside"})), _find(node, "as_of")
        append, into = (None, self._uri(place)) if place.data == "root" else self._within(place)
        options, keys = read_options(self._text, "BACKUP", _find(node, "with_options"))
        return BackupRequest(
            target=self._target(node),
            append=append.strip("/") if append else append,
            into=into,
            as_of=self._end(as_of) if as_of else None,
            options=BackupOptions(**options),
            encryption=keys,
        )

    def _restore(self, node: Node) -> RestoreRequest:
        subdir, collection = self._inside(node, refuse.RESTORE_FROM_URI)
        as_of = _find(node, "as_of")
        options, keys = read_options(self._text, "RESTORE", _find(node, "with_options"))
        return RestoreRequest(
            target=self._target(node),
            subdir=subdir,
            collection=collection,
            as_of=self._position(as_of) if as_of else None,
            options=RestoreOptions(**options),
            encryption=keys,
        )

    def _show_backups(self, node: Node) -> ShowBackupsRequest:
        options, _ = read_options(self._text, "SHOW BACKUPS", _find(node, "with_options"))
        for age_filter in node.find_data("age_filter"):
            word = _tokens(age_filter)[0]
            field = f"{word.lower()}_than"
            if field in options:
                raise problem(self._text, word.start_pos or 0, f"{word.upper()} THAN is given twice")
            options[field] = self._moment(_tokens(age_filter)[-1], _AGE, bare=True)
        return ShowBackupsRequest(collection=self._uri(node), **options)

    def _show_backup(self, node: Node) -> ShowBackupRequest:
        schemas = any(token.type == "SCHEMAS" for token in _tokens(node))
        subdir, collection = self._inside(node, refuse.SHOW_BACKUP_IN)
        options, keys = read_options(self._text, "SHOW BACKUP", _find(node, "with_options"))
        return ShowBackupRequest(subdir=subdir, collection=collection, schemas=schemas, encryption=keys, **options)

    def _alter_backup(self, node: Node) -> AlterBackupRequest:
        subdir, collection = self._within(_child(node, 0))
        new, old = self._keys(_child(node, 1)), self._keys(_child(node, 2))
        return AlterBackupRequest(subdir=subdir, collection=collection, old=old, new=new)

    def _keys(self, node: Node) -> EncryptionOptions:
        """What NEW_KMS, OLD_PASSPHRASE and the like give."""
        name, *values = (token for token in node.scan_values(lambda _: True) if token.type != "LPAR")
        texts = tuple(map(unquoted, values))
        field = name.type.partition("_")[2].lower()
        try:
            return encryption({field: texts if field == "kms" else texts[0]})
        except BadInput as error:
            raise problem(self._text, name.start_pos or 0, str(error).removesuffix(".")) from None

    def _inside(self, node: Node, without: str) -> tuple[str, str]:
        """(subdir, collection) of `LATEST | 'subdir' IN uri`."""
        place = _find(node, "inside")
        if place is None:
            raise self._refused(node, _tokens(node)[-1].type, without)
        return self._within(place)

    def _within(self, place: Node) -> tuple[str, str]:
        token = _tokens(place)[0]
        subdir = unquoted(token) if token.type == "STRING" else "LATEST"
        return ("LATEST" if subdir.upper() == "LATEST" else subdir), self._uri(place)

    def _uri(self, node: Node) -> str:
        """One URI, or several with localities, as model/places.py reads them."""
        tokens = [token for token in _tokens(_child(node, 0)) if token.type == "STRING"]
        try:
            return places_text([unquoted(token) for token in tokens])
        except BadInput as error:
            raise problem(self._text, tokens[0].start_pos or 0, str(error).removesuffix(".")) from None

    def _target(self, node: Node) -> Target:
        target = _find(node, "databases", "schemas", "tables")
        if target is None:
            return ClusterTarget()
        paths = [child for child in target.children if isinstance(child, Tree)]
        if target.data == "databases":
            return DatabaseTarget(names=tuple(self._names(path, 1, "a database's name")[0] for path in paths))
        if target.data == "schemas":
            return SchemaTarget(names=tuple(self._schema(path) for path in paths))
        return TableTarget(patterns=tuple(self._pattern(path) for path in paths))

    def _schema(self, path: Node) -> tuple[str | None, str]:
        *database, schema = self._names(path, 2, "a schema, as 'schema' or 'database.schema'")
        return (database[0] if database else None), schema

    def _pattern(self, path: Node) -> TablePattern:
        tokens = _tokens(path)
        if tokens[-1].type == "STAR":
            names = self._names(path, 3, "all tables of a schema, as 'schema.*' or 'database.schema.*'", star=True)
            return TablePattern(database=names[0] if len(names) == 2 else None, schema_name=names[-1], name=None)
        names = self._names(path, 3, "a table, as 'table', 'schema.table' or 'database.schema.table'")
        return TablePattern(
            database=names[0] if len(names) == 3 else None,
            schema_name=names[-2] if len(names) > 1 else "public",
            name=names[-1],
        )

    def _names(self, path: Node, most: int, what: str, *, star: bool = False) -> list[str]:
        """The parts of a dotted name, without the final '*' where there may be one."""
        tokens = _tokens(path)
        plain = tokens[:-1] if star else tokens
        wrong = next((token for token in plain if token.type == "STAR" or "\0" in token), None)
        if wrong is not None or not plain or len(tokens) > most:
            raise problem(self._text, (wrong or tokens[0]).start_pos or 0, f"expected {what}")
        return [folded(token) for token in plain]

    def _end(self, as_of: Node) -> datetime:
        """The time at which a backup ends."""
        if _log_position(as_of) is not None:
            raise problem(self._text, _tokens(as_of)[-1].start_pos or 0, refuse.BACKUP_AS_OF_POSITION)
        return self._time(as_of, _TIME)

    def _position(self, as_of: Node) -> datetime | Lsn:
        """What a restore shows: a time, or a position in the log."""
        position = _log_position(as_of)
        return self._time(as_of, f"{_TIME}, or a log position such as '16/B374D848'") if position is None else position

    def _time(self, as_of: Node, expected: str) -> datetime:
        token, present = _tokens(as_of)[-1], self._clock()
        moment = self._moment(token, expected)
        if moment > present:
            sentence = f"{format_time(moment)} lies in the future: it is {format_time(present)} now; give a time that has passed"
            raise problem(self._text, token.start_pos or 0, sentence)
        return moment

    def _moment(self, token: Token, expected: str, *, bare: bool = False) -> datetime:
        """A time, or so long before now; with `bare` that may be without the minus."""
        text = unquoted(token) if token.type == "STRING" else ""
        try:
            if text.startswith("-") and text[1:2].isdigit():
                return self._clock() - parse_duration(text[1:])
            if bare and _DURATION.fullmatch(text):
                return self._clock() - parse_duration(text)
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError, BadInput):
            raise problem(self._text, token.start_pos or 0, f"expected {expected}") from None

    def _refused(self, node: Node, token_type: str, reason: str) -> BadInput:
        token = next(token for token in _tokens(node) if token.type == token_type)
        return problem(self._text, token.start_pos or 0, reason)
