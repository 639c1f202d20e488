"""SQL identifiers and literals as text, for statements that go through drivers without composition (COPY, asyncpg)."""

from __future__ import annotations

# As a regular expression: what pg_dump and pg_dumpall write before that which has a security label.
LABEL_ON = r'SECURITY LABEL FOR (?:"(?:[^"]|"")+"|\w+) ON'


def quote(name: str) -> str:
    """An identifier in double quotes. PostgreSQL allows any character but NUL in it."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """`"schema"."name"`."""
    return f"{quote(schema)}.{quote(name)}"


def literal(text: str) -> str:
    """A string literal; relies on standard_conforming_strings, which every session pins on."""
    return "'" + text.replace("'", "''") + "'"
