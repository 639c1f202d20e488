"""What PostgreSQL's own tools say of a database and of a cluster, as text that two places can be compared by."""

from __future__ import annotations

import re
import subprocess

from spanvault.embedded.binaries import tool, tool_environment
from tests.kit.servers import TestDatabase

# Lines that may differ: the key of \\restrict is random, and the two comments name versions.
_RANDOM = re.compile(r"^\\(?:un)?restrict .*\n", re.MULTILINE)
_VERSIONS = re.compile(r"^-- Dumped (?:from database|by pg_dump) version .*\n", re.MULTILINE)
# The publication that a backup's protection keeps on the source, and what pg_dump writes of it.
_OURS = re.compile(
    r'^--\n-- Name: [^\n]*"?spanvault_[0-9a-f]{12}\b[^\n]*Type: (?:PUBLICATION|COMMENT|PUBLICATION TABLE)\b.*?'
    r"(?=^--\n-- (?:Name|PostgreSQL))",
    re.MULTILINE | re.DOTALL,
)
# Rows, and settings of roles in a database, come in the order in which they lie in their table.
_UNORDERED = re.compile(r"(?:^INSERT INTO [^\n]*\n)+|(?:^ALTER ROLE [^\n]* IN DATABASE [^\n]*\n)+", re.MULTILINE)


def database_text(database: TestDatabase, *options: str) -> str:
    """pg_dump of the database: definitions, and each table's rows in order, a line each."""
    arguments = ["--inserts", "--quote-all-identifiers", "--no-unlogged-table-data", *options, database.url]
    text = _VERSIONS.sub("", _OURS.sub("", _RANDOM.sub("", _run("pg_dump", *arguments))))
    return _UNORDERED.sub(lambda lines: "".join(sorted(lines[0].splitlines(keepends=True))), text)


def rows_text(database: TestDatabase, *options: str) -> list[str]:
    """pg_dump of the rows, a statement each, sorted; values may have several lines."""
    text = _RANDOM.sub("", _run("pg_dump", "--data-only", "--inserts", "--quote-all-identifiers", *options, database.url))
    pieces = re.split(r"^(?=INSERT INTO |--$)", _VERSIONS.sub("", text), flags=re.MULTILINE)
    return sorted(piece.rstrip("\n") for piece in pieces)  # the last row of a table has empty lines behind it


def globals_text(database: TestDatabase) -> str:
    """pg_dumpall of roles, memberships, settings of roles and tablespaces; these lie wherever the server does."""
    arguments = ["--globals-only", "--quote-all-identifiers", f"--dbname={database.url}"]
    return _RANDOM.sub("", _run("pg_dumpall", *arguments)).replace(str(database.server.directory), "<server>")


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run([str(tool(program)), *arguments], env=tool_environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    # Not read as text, which would lose the difference between a carriage return and a newline.
    return done.stdout.decode("utf-8")
