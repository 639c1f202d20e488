"""Names, strings and places: how they are read, and how they are written so that they read the same."""

from __future__ import annotations

import re
import string

from lark import Token

_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
# What the grammar's WORD leaves out.
_RESERVED = frozenset({"into", "to", "in", "from", "with", "as", "table"})


def folded(token: Token) -> str:
    """The name that an unquoted word or a quoted name stands for: PostgreSQL folds A-Z of unquoted ones."""
    if token.type == "QUOTED":
        return token[1:-1].replace('""', '"')
    return str(token).translate(_FOLD)


def unquoted(token: Token) -> str:
    """The content of a string in single quotes."""
    return token[1:-1].replace("''", "'")


def name_text(name: str) -> str:
    """A name, in double quotes where it needs them."""
    if _PLAIN.fullmatch(name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def string_text(content: str) -> str:
    """A string in single quotes."""
    return "'" + content.replace("'", "''") + "'"


def in_one_line(text: str) -> str:
    """Places for a sentence or a table: the first URI of the text, and how many more there are."""
    first, *more = uris_of(text)
    return f"{first} and {len(more)} more" if more else first


def uris_of(places: str) -> list[str]:
    """The URIs of a text of places, as model/places.py reads it."""
    return [line for line in places.split("\n") if line.strip()] or [places]
