"""What pg_dump writes of objects of an older server in words that this server does not know: what the words say is always so
there (dumpSubscription and dumpSequence of src/bin/pg_dump/pg_dump.c)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.quoting import LABEL_ON
from spanvault.database.postgres.server import scalar, version_number
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, run_all

# Before 16. The connection string stands before the last of these, publications and options hold no string.
_RUN_AS_OWNER = re.compile(
    r"\A(CREATE SUBSCRIPTION .* WITH \(connect = false, slot_name = (?:NONE|'[^']*')[^';]*?), run_as_owner = true", re.DOTALL
)
# Before 15, for an identity column of an unlogged table.
_LOGGED = re.compile(r"\A(ALTER TABLE .* ADD GENERATED .*\(\n    SEQUENCE NAME .*)\n    LOGGED(?=\n    START WITH )", re.DOTALL)
_ABOUT_SUBSCRIPTION = re.compile(rf"(?:COMMENT ON|{LABEL_ON}) SUBSCRIPTION ")


def of_subscription(entry: Entry) -> bool:
    """Whether the entry is a subscription, or what is said about one."""
    return entry.kind == "SUBSCRIPTION" or _ABOUT_SUBSCRIPTION.match(entry.sql) is not None


def known_words(kind: str, sql: str, version: int) -> str:
    """The SQL of an archive's entry of this kind, for a server of this server_version_num."""
    if kind == "SUBSCRIPTION" and version < 160000:
        return _RUN_AS_OWNER.sub(r"\1", sql)
    if kind == "SEQUENCE" and version < 150000:
        return _LOGGED.sub(r"\1", sql)
    return sql


def prepare_public(connection: Connection, writer: int) -> None:
    """In the connection's transaction: before 15 everybody may make objects in a new database's schema public. pg_dump of the
    version `writer`, if that is 15 or later, takes it that nobody may (getNamespaces of pg_dump.c), and so does not say where
    it was revoked."""
    there = scalar(connection, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'public'")
    if there and writer >= 15 and version_number(connection) < 150000:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def made_apart(connection: Connection, entries: Sequence[Entry]) -> list[Entry]:
    """Those of the post-data entries that `make_apart` has to make on this server, as pg_restore cannot."""
    return [entry for entry in entries if of_subscription(entry)] if version_number(connection) < 160000 else []


def make_apart(connection: Connection, entries: Sequence[Entry]) -> None:
    """Make entries in words that the server knows."""
    version = version_number(connection)
    for entry in entries:
        with translated(f"Creating {entry.display}"):
            run_all(connection, [known_words(entry.kind, entry.sql, version)])
