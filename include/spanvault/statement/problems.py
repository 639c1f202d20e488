"""Mistakes in a statement, told with their place: line, column, a caret, and what would have fitted.

Statements carry secrets (in URIs, as passphrases), and errors reach logs: what may be one is masked where it is shown.
"""

from __future__ import annotations

import re

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from spanvault.errors import BadInput

# What ends where it ends, as the grammar has it; an opening that nothing closes makes all that follows uncertain.
_LEXICAL = re.compile(
    r"""--[^\n]*|/\*.*?\*/|"[^"]*"|'(?P<literal>(?:[^']|'')*)'|(?P<unclosed>['"]|/\*)""",
    re.DOTALL,
)
_URI = re.compile(r"(?:s3|gs|azure(?:-blob|-storage|-kms)?|aws(?:-kms)?|gcp-kms|file|nodelocal)://[^\s?@'\"]*", re.IGNORECASE)
# Where a passphrase begins, whatever quotes stand around it or are missing. Where it ends is not certain in a statement that
# is not understood: an unpaired quote inside ends it too early.
_PASSPHRASE = re.compile(
    r"""(?ix) \b (?: encryption | new | old ) _ (?: passphrase | password ) \w*+ "?+ (?: \s* = )?+
    | (?: pass | phrase | pwd ) \w*+ "? \s* =
    | (?: passphrase | password ) \w*+ "?+ (?! \s* (?: \Z | [,.;)] | (?: into|from|in|as|with ) \b ) )"""
)
# Keys whose value is anything but strings in single quotes, as far as the strings' contents are masked.
_STRAY_KEY = re.compile(
    r"""(?ix) (?: secret | token | credential | key | kms ) \w*+ "? \s* =
    (?! \s* (?: '[^']*' | \( \s* '[^']*' (?: \s* , \s* '[^']*' )* \s* \) ) \s* (?: \Z | [,;)] | with\b ) )"""
)
# Outside single quotes, because the shell took them or double ones were typed.
_STRAY_SECRETS = (
    re.compile(r"(?i)(://[^\s?'\"]*\?)([^\s'\"]+)"),
    re.compile(r"(://)([^\s/'\"]*)(?=@)"),
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
        found = f"{opening} that is never closed" if opening else _shown(text, place, text[place : place + 1])
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
    """The statement without quoted strings, except a URI's scheme, host and path, and without all that follows a passphrase's
    name; every place stays where it is."""
    secret = _PASSPHRASE.search(text)
    shown = text[: secret.end()] if secret else text
    if unclosed := next((match for match in _LEXICAL.finditer(shown) if match["unclosed"]), None):
        shown = shown[: min(place for place in (unclosed.start(), shown.find("'")) if place >= 0) + 1]
    else:
        shown = _LEXICAL.sub(_mask_literal, shown)
    for pattern in _STRAY_SECRETS:
        shown = pattern.sub(lambda match: match[1] + _hidden(match[2]), shown)
    if stray := _STRAY_KEY.search(shown):
        shown = shown[: stray.end()]
    return shown + _hidden(text[len(shown) :])


def shows(text: str, place: int, part: str) -> bool:
    """Whether `part` of the statement, which stands at `place`, is no part of what may be a secret."""
    return masked(text)[place : place + len(part)] == part


def _mask_literal(match: re.Match[str]) -> str:
    content = match["literal"]
    if content is None:
        return match[0] if match[0].startswith('"') else match[0][:2] + _hidden(match[0][2:])
    uri = _URI.match(content)
    # A user or password stands before an '@': then all is hidden.
    length = uri.end() if uri and "@" not in content.partition("?")[0] else 0
    return f"'{content[:length]}{_hidden(content[length:])}'"


def _hidden(content: str) -> str:
    return re.sub(r"[^\n]", _MASK, content)


def _found(text: str, token: Token, accepts: set[str]) -> str:
    if token.type == "$END":
        return "the end of the statement"
    if token.type == "STRING":
        return "a string"
    name = "a name in double quotes" if token.type == "QUOTED" else _shown(text, token.start_pos or 0, str(token))
    return f"{name} (a string needs single quotes)" if "STRING" in accepts and token.type in {"WORD", "QUOTED"} else name


def _shown(text: str, place: int, found: str) -> str:
    """What was found, unless it may be of a secret."""
    if shows(text, place, found):
        return repr(found)
    return "something else; it seems that a string is not closed" if text.count("'") % 2 else "something that is not shown here"


def _offered(accepts: set[str]) -> str:
    hidden = set(_NOT_OFFERED)
    if {"LPAR", "STRING"} <= accepts:
        hidden.add("LPAR")
    if {"LATEST", "IN"} <= accepts:
        hidden.add("IN")
    names = sorted({_NAMES.get(terminal, terminal) for terminal in accepts - hidden}, key=lambda name: (name.islower(), name))
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "something else"
