"""Subscriptions on servers before version 16: pg_dump 16 and later writes `run_as_owner = true` for those of older servers,
which always do so and do not know the word (dumpSubscription of src/bin/pg_dump/pg_dump.c)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.server import version_number
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, run_all

# The connection string stands before the last of these, publications and options hold no string.
_UNKNOWN = re.compile(
    r"\A(CREATE SUBSCRIPTION .* WITH \(connect = false, slot_name = (?:NONE|'[^']*')[^']*?), run_as_owner = true", re.DOTALL
)
_ABOUT = re.compile(r"(?:COMMENT|SECURITY LABEL(?: FOR \S+)?) ON SUBSCRIPTION ")


def of_subscription(entry: Entry) -> bool:
    """Whether the entry is a subscription, or what is said about one."""
    return entry.kind == "SUBSCRIPTION" or _ABOUT.match(entry.sql) is not None


def made_apart(connection: Connection, entries: Sequence[Entry]) -> list[Entry]:
    """Those of the entries that `make_apart` has to make on this server, as pg_restore cannot."""
    return [entry for entry in entries if of_subscription(entry)] if version_number(connection) < 160000 else []


def make_apart(connection: Connection, entries: Sequence[Entry]) -> None:
    """Make subscriptions, with what is said about them, on a server that does not know the option."""
    for entry in entries:
        with translated(f"Creating {entry.display}"):
            run_all(connection, [known_options(entry.sql)])


def known_options(sql: str) -> str:
    """pg_dump's CREATE SUBSCRIPTION for a server before 16."""
    return _UNKNOWN.sub(r"\1", sql)
