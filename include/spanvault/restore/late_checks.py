"""Checks that are made after the rows are loaded: those that call functions, which may read tables that are still empty.

PostgreSQL takes a check for a matter of its row alone, so pg_dump writes it into CREATE TABLE and CREATE DOMAIN, and a
restore by pg_restore fails if its function looks elsewhere. Here such a check comes after all rows and indexes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.sqlstate import translated
from spanvault.database.postgres.target import Connection, passes
from spanvault.errors import SpanvaultError
from spanvault.restore.table_sql import items, without

_QUOTED = r'"(?:[^"]|"")+"'
# A call of a function, or an operator, that is not of the system.
_USERS = re.compile(rf'(?:OPERATOR\(|)(?!"pg_catalog"\.)({_QUOTED})\.(?:{_QUOTED}\(|[^\s"()]+\))')
_STRING = re.compile(r"'(?:[^']|'')*'")
_DOMAIN = re.compile(rf"^CREATE DOMAIN ({_QUOTED}\.{_QUOTED}) AS ", re.MULTILINE)
_TABLE = re.compile(rf"^CREATE (?:UNLOGGED )?TABLE ({_QUOTED}\.{_QUOTED}) ", re.MULTILINE)
# As dumpDomain of pg_dump.c writes them: each on a line of its own, the last one before the semicolon.
_DOMAIN_CHECK = re.compile(rf"\n\tCONSTRAINT ({_QUOTED}) CHECK \(.*?\)(?=\n\tCONSTRAINT |;\n|;\Z)", re.DOTALL)
_COMMENT = re.compile(rf"^COMMENT ON CONSTRAINT ({_QUOTED}) ON (?:DOMAIN )?({_QUOTED}\.{_QUOTED}) IS ", re.MULTILINE)


@dataclass(frozen=True)
class LateCheck:
    """A check that is left out of the statement of `entry`: of `owner`, as ALTER names it (`TABLE "s"."t"`)."""

    entry: int
    display: str
    owner: str
    name: str
    text: str


def late_checks(entries: Sequence[Entry], cuts: Mapping[int, Collection[str]]) -> tuple[LateCheck, ...]:
    """The checks to make later, in the archive's order; those in `cuts` are not made at all."""
    found = (check for entry in entries for check in _of(entry))
    return tuple(check for check in found if check.display not in cuts.get(check.entry, ()))


def without_late(entry: Entry, checks: Sequence[LateCheck]) -> str:
    """The entry's SQL without those of the `checks` that are its own, and nothing for a comment on one of them."""
    if entry.kind == "COMMENT":
        return "" if _comments_on(entry, checks) else entry.sql
    own = [check for check in checks if check.entry == entry.id]
    if not own:
        return entry.sql
    if entry.kind == "TABLE":
        return without(entry.sql, {check.display for check in own})
    texts = {check.text for check in own}
    return _DOMAIN_CHECK.sub(lambda found: "" if found[0].strip() in texts else found[0], entry.sql)


def make_late_checks(connection: Connection, checks: Sequence[LateCheck], entries: Sequence[Entry]) -> Iterator[str]:
    """Make the checks that are not there, then their comments; a sentence for each that the restored rows do not meet, and
    that is therefore NOT VALID: new rows must meet it. Harmless to repeat. Raises Retryable for a lost connection."""
    for check in checks:
        if not _is_there(connection, check):
            yield from _make(connection, check)
    for entry in entries:
        if entry.kind == "COMMENT" and _comments_on(entry, checks):
            with translated(f"Creating {entry.display}"):
                connection.execute(entry.sql.encode())


def _of(entry: Entry) -> Iterator[LateCheck]:
    if entry.kind == "TABLE" and (table := _TABLE.search(entry.sql)):
        for item in items(entry.sql):
            if item.is_constraint and item.droppable and _calls(item.text):
                yield LateCheck(entry.id, item.display, f"TABLE {table[1]}", item.name, item.text)
    elif entry.kind == "DOMAIN" and (domain := _DOMAIN.search(entry.sql)):
        for check in _DOMAIN_CHECK.finditer(entry.sql):
            if _calls(check[0]):
                name = check[1][1:-1].replace('""', '"')
                yield LateCheck(entry.id, f"the check {name}", f"DOMAIN {domain[1]}", name, check[0].strip())


def _calls(text: str) -> bool:
    return _USERS.search(_STRING.sub("''", text)) is not None


def _comments_on(entry: Entry, checks: Sequence[LateCheck]) -> bool:
    found = _COMMENT.search(entry.sql)
    return found is not None and any(
        (found[1][1:-1].replace('""', '"'), found[2]) == (check.name, check.owner.partition(" ")[2]) for check in checks
    )


def _shown(check: LateCheck) -> str:
    kind, _, owner = check.owner.partition(" ")
    return f"the {kind.lower()} {owner}"


def _is_there(connection: Connection, check: LateCheck) -> bool:
    kind, _, owner = check.owner.partition(" ")
    column, cast = ("conrelid", "regclass") if kind == "TABLE" else ("contypid", "regtype")
    found = connection.execute(
        f"SELECT FROM pg_catalog.pg_constraint WHERE {column} = %s::{cast} AND conname = %s AND (conislocal OR contypid <> 0)",
        [owner, check.name],
    )
    return found.fetchone() is not None


def _make(connection: Connection, check: LateCheck) -> Iterator[str]:
    statement = f"ALTER {check.owner} ADD {check.text}"
    try:
        with translated(f"Making the check {check.name} of {_shown(check)}"), connection.transaction():
            connection.execute(statement.encode())
    except SpanvaultError as error:
        if passes(connection, error):
            raise
        with translated(f"Making the check {check.name} of {_shown(check)}"):
            connection.execute(f"{statement} NOT VALID".encode())
        yield f"{error} It is there as NOT VALID: new rows must meet it, restored ones may not."
