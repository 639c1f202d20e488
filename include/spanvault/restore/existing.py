"""What the target database has already, against what a restore brings: shared, in the way, or another. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from spanvault.database.postgres.archive import Entry
from spanvault.errors import AlreadyExists, Refused
from spanvault.model.sentences import few
from spanvault.restore.selective import RELATIONS, is_part
from spanvault.restore.table_sql import items

Identity = tuple[str, str | None, str]

_SHOWN = 3
_KEPT_IF_THERE = frozenset({"SCHEMA", "EXTENSION"})
# Kinds that share one name space in a schema.
_NAMED_LIKE_RELATIONS = RELATIONS | {"SEQUENCE", "INDEX"}
_NAMED_LIKE_TYPES = RELATIONS | {"TYPE", "DOMAIN", "SHELL TYPE"}
_INDEXED = re.compile(r'ADD CONSTRAINT "((?:[^"]|"")+)" (?:PRIMARY KEY|UNIQUE|EXCLUDE)')
_OWNER = re.compile(r'\s+ALTER (?:[^;"]|"(?:[^"]|"")+")*? OWNER TO (?:"(?:[^"]|"")+"|\w+);\s*\Z')
_LABEL = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True)
class Existing:
    """What the database `database` has, by what names it, and the names of `extensions` that can be made there and of the
    server's `roles`."""

    database: str
    present: Mapping[Identity, Entry]
    extensions: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()

    @cached_property
    def _relations(self) -> frozenset[tuple[str | None, str]]:
        return frozenset((one.schema, one.name) for one in self.present.values() if one.kind in RELATIONS)

    @cached_property
    def _taken(self) -> Mapping[tuple[str | None, str], Entry]:
        """What takes a name that relations have."""
        return {name: entry for entry in self.present.values() if (name := relation_name(entry))}

    @cached_property
    def _types(self) -> Mapping[tuple[str | None, str], Entry]:
        return {(one.schema, one.name): one for one in self.present.values() if one.kind in _NAMED_LIKE_TYPES}

    def has_relation(self, entry: Entry) -> bool:
        """Whether there is a table or view of the entry's name."""
        return (entry.schema, entry.name) in self._relations

    def differs(self, entry: Entry) -> bool:
        """Whether there is another object of the entry's kind and name."""
        there = self.present.get(entry.identity)
        return there is not None and not is_part(entry) and bare(there.sql) != bare(entry.sql)

    def shares(self, entry: Entry, wanted: Callable[[Entry], bool]) -> bool:
        """Whether the entry is not made, because an equal one is there: not of relations, which hold rows, nor of sequences
        that are restored for themselves."""
        there = self.present.get(entry.identity)
        if there is None or entry.kind in RELATIONS or (is_part(entry) and entry.kind != "SEQUENCE"):
            return False
        if entry.kind == "SEQUENCE" and wanted(entry):
            return False
        return entry.kind in _KEPT_IF_THERE or bare(there.sql) == bare(entry.sql)

    def without_present(self, entries: Sequence[Entry], wanted: Callable[[Entry], bool]) -> tuple[Entry, ...]:
        """The entries less those that the target shares.

        Raises AlreadyExists for relations, sequences and indexes that are in the way, Refused for another object of the same
        name that differs.
        """
        chosen = {entry.id for entry in entries}
        tables = {entry.id for entry in entries if entry.kind in RELATIONS}
        shared: set[int] = set()
        for entry in entries:
            # A sequence that a restored table owns is a part of it; one that it uses only may be shared.
            owned = entry.kind == "SEQUENCE" and bool(tables & set(entry.depends))
            if not owned and self.shares(entry, wanted):
                shared.add(entry.id)
        self._refuse_obstacles([entry for entry in entries if entry.id not in shared])
        needed = {one.id: set(one.depends) & chosen for one in entries if is_part(one) and one.kind != "SEQUENCE"}
        parts = {number for number, depends in needed.items() if depends and depends <= shared}
        return tuple(one for one in entries if one.id not in shared and one.id not in parts)

    def _refuse_obstacles(self, entries: Sequence[Entry]) -> None:
        found = [self._taken.get(name) for one in entries if (name := relation_name(one))]
        found += [self._types.get((one.schema, one.name)) for one in entries if one.kind in RELATIONS]
        obstacles = list(dict.fromkeys(one.display for one in found if one is not None))
        if obstacles:
            raise AlreadyExists(
                f"The database {self.database!r} has {few(obstacles, _SHOWN)} already. Drop or rename them, or restore into"
                " another database with into_db."
            )
        for entry in entries:
            there = self.present.get(entry.identity) or (self._types.get((entry.schema, entry.name)) if _is_type(entry) else None)
            if there is not None and not is_part(entry):
                raise Refused(
                    f"The database {self.database!r} has another {entry.display} than the backup: {difference(there, entry)}."
                    " Drop or rename it, or restore into another database with into_db."
                )


def relation_name(entry: Entry) -> tuple[str | None, str] | None:
    """The name that the entry takes among relations and their indexes; None if it takes none."""
    if entry.kind in _NAMED_LIKE_RELATIONS:
        return entry.schema, entry.name
    found = _INDEXED.search(entry.sql) if entry.kind == "CONSTRAINT" else None
    return (entry.schema, found[1].replace('""', '"')) if found else None


def bare(sql: str) -> str:
    """The SQL of an entry without its owner."""
    return _OWNER.sub("", sql).strip()


def difference(there: Entry, here: Entry) -> str:
    """In what an object of the target differs from that of the backup, in words."""
    if there.kind != here.kind:
        return f"there it is a {there.kind.lower()}"
    if " AS ENUM (" in here.sql and " AS ENUM (" in there.sql:
        return _of_lists(_labels(there.sql), _labels(here.sql), "label")
    if here.kind == "TYPE":
        attributes = [[f"{item.name} {_plain(item.type_name)}" for item in items(one.sql)] for one in (there, here)]
        if all(attributes):
            return _of_lists(attributes[0], attributes[1], "attribute")
    if len(there.sql) + len(here.sql) < 300:
        return f"there it is {_plain(bare(there.sql))} and in the backup {_plain(bare(here.sql))}"
    return "its definition differs"


def _of_lists(there: list[str], here: list[str], what: str) -> str:
    lacking, more = [one for one in here if one not in there], [one for one in there if one not in here]
    found = list(_phrases(lacking, more, what))
    return " and ".join(found) if found else f"there the {what}s are in the order {', '.join(there)}"


def _phrases(lacking: Sequence[str], more: Sequence[str], what: str) -> Iterator[str]:
    if lacking:
        yield f"there it lacks the {what} {few(lacking, _SHOWN)}"
    if more:
        yield f"there it has the {what} {few(more, _SHOWN)}, which the backup has not"


def _is_type(entry: Entry) -> bool:
    return entry.kind in {"TYPE", "DOMAIN"}


def _labels(sql: str) -> list[str]:
    return [label.replace("''", "'") for label in _LABEL.findall(sql.partition(" AS ENUM (")[2])]


def _plain(sql: str) -> str:
    return " ".join(sql.replace('"', "").rstrip(";").split())
