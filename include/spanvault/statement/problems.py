"""Mistakes in a statement, told with their place: line, column, a caret, and what would have fitted.

Statements carry secrets (in URIs, as passphrases), and errors reach logs: what may be one is masked where it is shown.
"""

from __future__ import annotations

import re

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from spanvault.errors import BadInput

_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_URI = re.compile(r"[a-zA-Z0-9-]+://[^\s?@'\"]*")
# Outside single quotes, because the shell took them or double ones were typed.
_STRAY_SECRETS = (
    re.compile(r"(?i)(://[^\s?'\"]*\?)([^\s'\"]+)"),
    re.compile(r"(://)([^\s/'\"]*)(?=@)"),
    re.compile(r"(?i)((?:passphrase|password|secret|token|key|kms)\w*\s*=\s*)([^\s']+)"),
)
_MASK = "·"
_WIDTH = 100

_NAMES = {
    "WORD": "a name",
    "QUOTED": "a name",
    "STRING": "a string in single quotes",
    "AMOUNT": "a number",
    "COMMA": "','",
    "DOT": "'.'",
    "EQUAL": "'='",
    "LPAR": "'('",
    "RPAR": "')'",
    "AS": "AS OF SYSTEM TIME",
    "$END": "the end of the statement",
}
# Known so that they can be refused with a reason or be tolerated; not offered.
_NOT_OFFERED = frozenset({"TO", "INCREMENTAL", "SYSTEM_USERS", "SCHEMAS", "NEWER", "OLDER", "SEMICOLON", "STAR"})


def syntax_problem(text: str, error: UnexpectedInput) -> BadInput:
    """The parser's error for a person."""
    place = error.pos_in_stream or 0
    if isinstance(error, UnexpectedToken):
        accepts = set(error.accepts or error.expected)
        place = len(text.rstrip()) if error.token.type == "$END" else place
        found = _found(text, error.token, accepts)
    else:
        accepts = set(error.allowed or ()) if isinstance(error, UnexpectedCharacters) else set()
        opening = next((quote for quote in ("'", '"', "/*") if text.startswith(quote, place)), None)
        found = f"{opening} that is never closed" if opening else repr(text[place : place + 1])
    return problem(text, place, f"expected {_offered(accepts)}, found {found}")


def problem(text: str, place: int, sentence: str) -> BadInput:
    """An error at a character of the statement: one sentence, then the line with a caret."""
    start = text.rfind("\n", 0, place) + 1
    end = text.find("\n", place)
    line = masked(text)[start : len(text) if end < 0 else end].replace("\t", " ")
    column = place - start
    first = max(0, column - _WIDTH * 2 // 3)
    lead, tail = ("…" if first else ""), ("…" if len(line) > first + _WIDTH else "")
    caret = " " * (column - first + len(lead)) + "^"
    number = text.count("\n", 0, place) + 1
    shown = line[first : first + _WIDTH].rstrip()
    return BadInput(f"Line {number}, column {column + 1}: {sentence}.\n  {lead}{shown}{tail}\n  {caret}")


def masked(text: str) -> str:
    """The statement without quoted strings, except a URI's scheme, host and path; every place stays where it is."""
    if text.count("'") % 2:  # where strings begin and end is not certain: hide all from the first quote on
        first = text.index("'")
        return text[: first + 1] + _hidden(text[first + 1 :])
    text = _LITERAL.sub(lambda match: "'" + _mask_literal(match[1]) + "'", text)
    for pattern in _STRAY_SECRETS:
        text = pattern.sub(lambda match: match[1] + _hidden(match[2]), text)
    return text


def _mask_literal(content: str) -> str:
    uri = _URI.match(content)
    # A user or password stands before an '@': then all is hidden.
    length = uri.end() if uri and "@" not in content.partition("?")[0] else 0
    return content[:length] + _hidden(content[length:])


def _hidden(content: str) -> str:
    return re.sub(r"[^\n]", _MASK, content)


def _found(text: str, token: Token, accepts: set[str]) -> str:
    if token.type == "$END":
        return "the end of the statement"
    if token.type == "STRING":
        return "a string"
    if text.count("'") % 2:
        return "something else; it seems that a string is not closed"
    name = "a name in double quotes" if token.type == "QUOTED" else repr(str(token))
    return f"{name} (a string needs single quotes)" if "STRING" in accepts and token.type in {"WORD", "QUOTED"} else name


def _offered(accepts: set[str]) -> str:
    hidden = set(_NOT_OFFERED)
    if {"LPAR", "STRING"} <= accepts:
        hidden.add("LPAR")
    if {"LATEST", "IN"} <= accepts:
        hidden.add("IN")
    names = sorted({_NAMES.get(terminal, terminal) for terminal in accepts - hidden}, key=lambda name: (name.islower(), name))
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "something else"
