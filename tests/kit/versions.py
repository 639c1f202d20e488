"""Servers of other versions than the wheel's: where their programs are, and what they do not know yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Those that Spanvault backs up beside the wheel's.
VERSIONS = (14, 15, 16, 17)
# Where Debian, Ubuntu and apt.postgresql.org put them, each version in a folder of its own.
FOLDER_VARIABLE = "SPANVAULT_TEST_POSTGRES"
DEBIAN_FOLDER = "/usr/lib/postgresql"

# Since which version there is something that the tests' SQL says, and what is said instead before.
_SINCE = (
    (16, " WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;", ";"),
    (16, " WITH INHERIT TRUE, SET FALSE, ADMIN TRUE;", " WITH ADMIN OPTION;"),
    (16, "long_text text STORAGE EXTERNAL", "long_text text"),
    (15, "ON DELETE SET NULL (at)", "ON DELETE SET NULL"),
    (15, "NULLS NOT DISTINCT", ""),
    (15, "CREATE UNLOGGED SEQUENCE", "CREATE SEQUENCE"),
    (15, "security_barrier, security_invoker = true", "security_barrier"),
    (15, "zoo.target (id), zoo.watched WHERE (n > 0)", "zoo.target, zoo.watched"),
    (15, "FOR TABLES IN SCHEMA zoo, TABLE", "FOR TABLE"),
    (15, "GRANT SET ON PARAMETER log_min_duration_statement TO zoo_group;", ""),
    (15, "GRANT ALTER SYSTEM ON PARAMETER work_mem TO zoo_owner WITH GRANT OPTION;", ""),
)


def programs(version: int) -> Path:
    """The folder of the programs of PostgreSQL `version`, a major number. Skips the test where they are not installed."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, DEBIAN_FOLDER)) / str(version) / "bin"
    if not (folder / "postgres").is_file():
        pytest.skip(f"NO TEST OF POSTGRESQL {version}: it is not installed (apt-get install postgresql-{version}).")
    return folder


def understood(text: str, version: int) -> str:
    """SQL of the tests as PostgreSQL `version` takes it."""
    for since, said, before in _SINCE:
        if version < since:
            text = text.replace(said, before)
    return text
