"""Owners and privileges of roles that the target does not have. Pure: pg_dump's SQL in, SQL out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from spanvault.database.postgres.archive import Entry

_ROLE = r'"(?:[^"]|"")+"'
_REST = r'(?:[^;"]|"(?:[^"]|"")+")*?'  # of a statement
# pg_restore writes this at an entry's end, with quotes where they are needed; all else pg_dump wrote, with quotes.
_OWNER = re.compile(rf"^ALTER {_REST} OWNER TO ({_ROLE}|\w+);\Z", re.MULTILINE)
_AS_ROLE = re.compile(rf"^SET SESSION AUTHORIZATION ({_ROLE});\n(.*?)^RESET SESSION AUTHORIZATION;$", re.MULTILINE | re.DOTALL)
_PRIVILEGE = re.compile(
    rf"^(?:ALTER DEFAULT PRIVILEGES FOR ROLE (?P<of>{_ROLE}) {_REST})?(?:GRANT|REVOKE) {_REST}"
    rf" (?:TO|FROM) (?P<to>{_ROLE}|PUBLIC){_REST};$",
    re.MULTILINE,
)
_POLICY = re.compile(
    rf"^CREATE POLICY {_ROLE} ON {_ROLE}\.{_ROLE}(?: AS [A-Z]+)?(?: FOR [A-Z]+)? TO ((?:{_ROLE}|PUBLIC)(?:, {_ROLE})*)"
)
_PRIVILEGES = frozenset({"ACL", "DEFAULT ACL"})


def missing_roles(entries: Iterable[Entry], roles: Collection[str]) -> dict[str, list[str]]:
    """The roles that the entries give something and that are not among `roles`, each with what it would be given."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for role in sorted(set(_given(entry)) - set(roles)):
            found.setdefault(role, []).append(entry.display)
    return found


def policies_for(entries: Iterable[Entry], roles: Collection[str]) -> dict[str, list[str]]:
    """The roles that policies name and that are not among `roles`, each with the policies."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        named = _POLICY.search(entry.sql) if entry.kind == "POLICY" else None
        for role in sorted(set(map(_plain, re.findall(_ROLE, named[1]))) - set(roles)) if named else ():
            found.setdefault(role, []).append(entry.display)
    return found


def without_roles(entry: Entry, missing: Collection[str]) -> str:
    """The entry's SQL without owners and privileges of the roles `missing`: the role that restores owns what they owned."""
    if not missing:
        return entry.sql
    sql = _OWNER.sub(lambda found: "" if _plain(found[1]) in missing else found[0], entry.sql)
    if entry.kind not in _PRIVILEGES:
        return sql.strip()
    sql = _AS_ROLE.sub(lambda found: "" if _plain(found[1]) in missing else found[0], sql)
    return _PRIVILEGE.sub(lambda found: found[0] if _named(found).isdisjoint(missing) else "", sql).strip()


def _given(entry: Entry) -> Iterator[str]:
    yield from (_plain(found[1]) for found in _OWNER.finditer(entry.sql))
    if entry.kind in _PRIVILEGES:
        yield from (_plain(found[1]) for found in _AS_ROLE.finditer(entry.sql))
        for found in _PRIVILEGE.finditer(entry.sql):
            yield from _named(found)


def _named(found: re.Match[str]) -> set[str]:
    roles = (found["of"], found["to"])
    return {_plain(role) for role in roles if role and role != "PUBLIC"}


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
