"""Roles, memberships and role settings, from the script of pg_dumpall --globals-only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spanvault.database.postgres.quoting import quote
from spanvault.database.postgres.server import scalar
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection

# A statement up to its semicolon, with quoted names, literals, comments and psql's own commands passed over.
_STATEMENT = re.compile(r"""(?:--[^\n]*+|\\[^\n]*+|"[^"]*+"|'[^']*+'|[^;"'\\-]++|-)*+;""")
_COMMENT_OR_COMMAND = re.compile(r"\A(?:\s++|--[^\n]*+\n|\\[^\n]*+\n)*+")
_TABLESPACE = re.compile(
    r"(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL .* ON) TABLESPACE |(?:GRANT|REVOKE) .* ON TABLESPACE ", re.IGNORECASE | re.DOTALL
)
_CREATE = re.compile(r'CREATE ROLE ("(?:[^"]|"")+"|\w+)', re.IGNORECASE)


def statements(script: str) -> Iterator[str]:
    """The SQL statements of a pg_dumpall script, without comments before them and psql's own commands."""
    for match in _STATEMENT.finditer(script):
        statement = _COMMENT_OR_COMMAND.sub("", match[0])
        if not statement.startswith("SET "):
            yield statement


def restore_roles(connection: Connection, script: str) -> list[str]:
    """Make the roles that are missing, give all of them their attributes, and tell in sentences what was left out.

    The role that restores keeps its password and attributes, or a second try could not log in. Tablespaces are folders
    of the old machine and are left out. Raises BadInput when the role may not make roles.
    """
    own = str(scalar(connection, "SELECT current_user"))
    existing = {quote(str(row[0])) for row in connection.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall()}
    notes = []
    with translated("Restoring roles"), connection.transaction():
        for statement in statements(script):
            created = _CREATE.match(statement)
            if created and _quoted(created[1]) in existing:
                continue
            if statement.startswith((f"ALTER ROLE {quote(own)} WITH ", f"ALTER ROLE {own} WITH ")):
                notes.append(f"The role {own}, which restores, keeps its own password and attributes.")
            elif _TABLESPACE.match(statement):
                notes.append(f"Left out, as objects are restored to the default tablespace: {statement}")
            else:
                connection.execute(statement.encode())
    return notes


def _quoted(name: str) -> str:
    return name if name.startswith('"') else quote(name)
