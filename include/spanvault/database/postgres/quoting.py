"""SQL identifiers and literals as text, for statements that go through drivers without composition (COPY, asyncpg)."""

from __future__ import annotations


def quote(name: str) -> str:
    """An identifier in double quotes. PostgreSQL allows any character but NUL in it."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """`"schema"."name"`."""
    return f"{quote(schema)}.{quote(name)}"


def literal(text: str) -> str:
    """A string literal; relies on standard_conforming_strings, which every session pins on."""
    return "'" + text.replace("'", "''") + "'"
