"""Roles, memberships and role settings, from the script of pg_dumpall --globals-only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spanvault.database.postgres.quoting import LABEL_ON, quote
from spanvault.database.postgres.server import scalar
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection

# A statement up to its semicolon, with quoted names, literals, comments and psql's own commands passed over.
_STATEMENT = re.compile(r"""(?:--[^\n]*+|\\[^\n]*+|"[^"]*+"|'[^']*+'|[^;"'\\-]++|-)*+;""")
_COMMENT_OR_COMMAND = re.compile(r"\A(?:\s++|--[^\n]*+\n|\\[^\n]*+\n)*+")
_TABLESPACE = re.compile(
    rf"(?P<verb>CREATE|ALTER|COMMENT ON|{LABEL_ON}|(?:GRANT|REVOKE) .*? ON) TABLESPACE"
    r' (?P<name>"(?:[^"]|"")+"|\w+)',
    re.IGNORECASE | re.DOTALL,
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
    of a machine: those that the target has of the same names get what they were given, others are left out. Raises BadInput
    when the role may not make roles.
    """
    own = str(scalar(connection, "SELECT current_user"))
    existing = {quote(str(row[0])) for row in connection.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall()}
    spaces = {quote(str(row[0])) for row in connection.execute("SELECT spcname FROM pg_catalog.pg_tablespace").fetchall()}
    notes = []
    with translated("Restoring roles"), connection.transaction():
        for statement in statements(script):
            created = _CREATE.match(statement)
            if created and _quoted(created[1]) in existing:
                continue
            if statement.startswith((f"ALTER ROLE {quote(own)} WITH ", f"ALTER ROLE {own} WITH ")):
                notes.append(f"The role {own}, which restores, keeps its own password and attributes.")
            elif (space := _TABLESPACE.match(statement)) and _is_left_out(space, spaces):
                if _quoted(space["name"]) not in spaces:
                    notes.append(f"Left out, as the target has no tablespace of that name: {statement}")
            else:
                connection.execute(statement.encode())
    return notes


def _is_left_out(space: re.Match[str], spaces: set[str]) -> bool:
    return space["verb"].upper() == "CREATE" or _quoted(space["name"]) not in spaces


def _quoted(name: str) -> str:
    return name if name.startswith('"') else quote(name)
