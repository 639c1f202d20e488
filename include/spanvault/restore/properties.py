"""What is said about a database itself: settings, also of roles in it, limits, comment, labels and privileges.

It comes last of all: a setting such as default_transaction_read_only, or a connection limit, is for the application's
sessions and would meet those of the restore.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.quoting import LABEL_ON, quote
from spanvault.database.postgres.roles import statements
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, passes
from spanvault.errors import SpanvaultError
from spanvault.restore.selective import about_database

_QUOTED = r'"(?:[^"]|"")+"'
# Where pg_dump's statements name the database; what stands before it holds no string.
_NAMED = re.compile(
    rf"\A((?:ALTER DATABASE|COMMENT ON DATABASE|ALTER ROLE {_QUOTED} IN DATABASE|{LABEL_ON} DATABASE"
    rf"|(?:GRANT|REVOKE) [^;']*? ON DATABASE) ){_QUOTED}"
)
_OF_ROLE = re.compile(rf"\AALTER ROLE ({_QUOTED}) IN DATABASE ")


def restore_properties(
    connection: Connection, entries: Sequence[Entry], database: str, roles: Collection[str], *, grants: bool
) -> Iterator[str]:
    """Give `database` what the archive says about the one that was backed up; a sentence for each statement that the target
    refuses, and for settings of roles that it does not have. Privileges only with `grants`. Harmless to repeat. Raises
    Retryable for a lost connection."""
    for entry in about_database(entries):
        if entry.kind == "ACL" and not grants:
            continue
        for statement in statements(entry.sql):
            yield from _run(connection, for_database(statement, database), roles)


def for_database(statement: str, database: str) -> str:
    """pg_dump's statement about a database, about the one of another name."""
    return _NAMED.sub(lambda found: found[1] + quote(database), statement, count=1)


def _run(connection: Connection, statement: str, roles: Collection[str]) -> Iterator[str]:
    of_role = _OF_ROLE.match(statement)
    if of_role and of_role[1][1:-1].replace('""', '"') not in roles:
        yield f"The target has no role {of_role[1]}: left out is {statement}"
        return
    try:
        with translated(f"Setting a property of the database, {statement.rstrip(';')},"), connection.transaction():
            connection.execute(statement.encode())
    except SpanvaultError as error:
        if passes(connection, error):
            raise
        yield str(error)
