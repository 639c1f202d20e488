"""pg_dump's CREATE TABLE and CREATE TYPE as text: columns and constraints, and the statement without some of them. Pure.

pg_dump writes one statement whose items stand in parentheses, names in double quotes, what is not of the system with its
schema, expressions with parentheses around every operator (ruleutils.c without "pretty"). A column is `name type [DEFAULT
expression | GENERATED ...] [[CONSTRAINT name] NOT NULL] [COLLATE collation]` (dumpTableSchema of pg_dump.c).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()\[\],]|[^'"()\[\],]+""")
_HEAD = re.compile(
    r'^CREATE (?:(?:[A-Z]+ )*?TABLE|TYPE) "(?:[^"]|"")+"\."(?:[^"]|"")+"(?: OF "(?:[^"]|"")+"\."(?:[^"]|"")+"| AS)? \(',
    re.MULTILINE,
)
_NAME = re.compile(r'"((?:[^"]|"")+)"')
_DEFAULT = re.compile(r"\sDEFAULT\s")
_BEHIND_DEFAULT = re.compile(r"\s(?:NOT NULL|CONSTRAINT|COLLATE)(?:\s|\Z)")
_BEHIND_TYPE = re.compile(r"\s(?:DEFAULT|GENERATED|WITH OPTIONS|NOT NULL|CONSTRAINT|COLLATE)(?:\s|\Z)")


@dataclass(frozen=True)
class Item:
    """A column, or a constraint of the table. `default` is the column's default with the word before it, or empty."""

    text: str
    name: str
    is_constraint: bool
    default: str = ""

    @property
    def droppable(self) -> str:
        """What may be left out without changing a row: a default, or a check."""
        if not self.is_constraint:
            return self.default
        return self.text if " CHECK (" in self.text else ""

    @property
    def display(self) -> str:
        """For people."""
        return f"the check {self.name}" if self.is_constraint else f"the default of {self.name}"

    @property
    def kept(self) -> str:
        """The item when `droppable` is left out."""
        return "" if self.is_constraint else self.text.replace(self.default, "", 1).rstrip()

    @property
    def type_name(self) -> str:
        """A column's type."""
        name = _NAME.match(self.text)
        text = self.text[name.end() :] if name else ""
        end = next(_at_base(text, _BEHIND_TYPE), None)
        return text[: end[0] if end else len(text)].strip()


def items(statement: str) -> tuple[Item, ...]:
    """The columns and constraints of a CREATE TABLE, the attributes of a composite type; none of a statement of another form."""
    found = _body(statement)
    return tuple(map(_item, found[1])) if found else ()


def without(statement: str, displays: Collection[str]) -> str:
    """The CREATE TABLE without the defaults and checks of these displays."""
    found = _body(statement)
    if found is None:
        return statement
    start, texts, end = found
    parsed = [_item(text) for text in texts]
    kept = [one.kept if one.display in displays and one.droppable else one.text for one in parsed]
    body = ",\n    ".join(text for text in kept if text)
    return f"{statement[:start]}\n    {body}\n{statement[end:]}"


def calls(text: str, function: str) -> bool:
    """Whether SQL calls the function of this name, written `"schema"."name"`; the like in a string does not count."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", text)
    return f"{function}(" in bare


def qualified_names(text: str) -> set[str]:
    """All names with a schema outside of strings, as written."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", text)
    return set(re.findall(r'"(?:[^"]|"")+"\."(?:[^"]|"")+"', bare))


def _body(statement: str) -> tuple[int, list[str], int] | None:
    """Where the list of items begins, the items, and where its closing parenthesis stands."""
    head = _HEAD.search(statement)
    if head is None:
        return None
    depth, texts, first = 0, [], head.end()
    for token in _TOKEN.finditer(statement, head.end()):
        if token[0] in {"(", "["}:
            depth += 1
        elif token[0] in {")", "]"} and depth:
            depth -= 1
        elif token[0] == ")" or (token[0] == "," and not depth):
            texts.append(statement[first : token.start()].strip())
            first = token.end()
            if token[0] == ")":
                return head.end(), [text for text in texts if text], token.start()
    return None


def _item(text: str) -> Item:
    is_constraint = text.startswith("CONSTRAINT ")
    name = _NAME.search(text)
    shown = name[1].replace('""', '"') if name else text
    if is_constraint or not name:
        return Item(text, shown, is_constraint)
    begin = next(_at_base(text, _DEFAULT), None)
    if begin is None:
        return Item(text, shown, is_constraint)
    end = next((place for place, _ in _at_base(text, _BEHIND_DEFAULT) if place >= begin[1]), len(text))
    return Item(text, shown, is_constraint, text[begin[0] : end])


def _at_base(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Where the pattern is found outside of quotes and parentheses. A word's neighbours may be such tokens."""
    depth, bare = 0, []
    for token in _TOKEN.finditer(text):
        depth += (token[0] in {"(", "["}) - (token[0] in {")", "]"})
        plain = depth == 0 and token[0][0] not in "'\"()[]"
        bare.append(token[0] if plain else "\0" * len(token[0]))
    return (match.span() for match in pattern.finditer("".join(bare)))
