"""What a backup's schema archive says of its objects, one by one: CREATE statements, privileges, owners and OIDs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spanvault.database.postgres.archive import Entry

ObjectName = tuple[str | None, str]
"""(schema, name) of a relation; (None, name) of a schema and of the database."""

RELATIONS = frozenset({"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE"})
_OTHERS = {
    "TYPE": "type", "DOMAIN": "type", "FUNCTION": "function", "PROCEDURE": "function", "AGGREGATE": "function",
}  # fmt: skip
# Parts whose name begins with that of their relation; other parts follow from what they depend on.
_NAMED_AFTER_RELATION = frozenset({"DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER", "RULE", "POLICY"})
_NAMED_AS_RELATION = frozenset({"TABLE ATTACH", "ROW SECURITY", "SEQUENCE OWNED BY", "SEQUENCE SET"})
# After all other parts: a partition with its own indexes keeps them when it is attached, and makes none.
_LAST = {"TABLE ATTACH": 1, "INDEX ATTACH": 2}
_PARTS = frozenset({"INDEX", "INDEX ATTACH", "STATISTICS", "COMMENT", "ACL"})
_OWNER = re.compile(r"\n*^ALTER [A-Z ]+ [^\n]+ OWNER TO [^\n]+;\s*\Z", re.MULTILINE)


@dataclass(frozen=True)
class Described:
    """An object: `kind` is an `object_type` of SHOW BACKUP. `create_statement` makes it with all that is part of it;
    `privileges` are the GRANTs and REVOKEs on it. None: there is nothing to say, or the archive has no entry of it."""

    kind: str
    name: ObjectName
    oid: int | None = None
    create_statement: str | None = None
    privileges: str | None = None
    owner: str | None = None


class SchemaObjects:
    """The objects of an archive that was read with owners. `held` says of a relation (schema, name) whether the backup has
    it: a foreign key is shown only if it has both sides."""

    def __init__(self, entries: Sequence[Entry], held: Callable[[ObjectName], bool]) -> None:
        self._by_id = {entry.id: entry for entry in entries}
        self._held = held
        self._parts: dict[int, list[Entry]] = defaultdict(list)
        self._relations = {(entry.schema, entry.name): entry for entry in entries if entry.kind in RELATIONS}
        for entry in entries:
            owner = self._object_of(entry)
            if owner is not None and owner.id != entry.id:
                self._parts[owner.id].append(entry)
        named = [entry for entry in entries if entry.kind in RELATIONS | _OTHERS.keys() | {"SCHEMA", "DATABASE"}]
        self._described = [self._describe(entry) for entry in named]
        self._by_name: Mapping[tuple[str, ObjectName], Described] = {(one.kind, one.name): one for one in self._described}

    def find(self, kind: str, name: ObjectName) -> Described:
        """What is known of the object; of one without an entry nothing."""
        return self._by_name.get((kind, name), Described(kind, name))

    def others(self, known: Collection[ObjectName]) -> Iterator[Described]:
        """Relations that are not `known` (partitioned and foreign tables), then types and functions, each kind by name."""
        for kinds in (("table",), ("type",), ("function",)):
            found = (one for one in self._described if one.kind in kinds and one.name not in known)
            yield from sorted(found, key=lambda one: (one.name[0] or "", one.name[1]))

    def _describe(self, entry: Entry) -> Described:
        parts = [part for part in self._parts[entry.id] if part.kind != "FK CONSTRAINT" or self._both_held(part)]
        parts.sort(key=lambda part: _LAST.get(part.kind, 0))
        grants = [part.sql for part in parts if part.kind == "ACL"]
        made = [_without_owner(part.sql) for part in (entry, *parts) if part.kind != "ACL" and part.sql]
        kind = "table" if entry.kind in RELATIONS else _OTHERS.get(entry.kind, entry.kind.lower())
        return Described(
            kind=kind,
            name=(None if entry.kind in {"SCHEMA", "DATABASE"} else entry.schema, entry.name),
            oid=entry.oid or None,
            create_statement="\n\n".join(made) or None,
            privileges="\n".join(grants) or None,
            owner=entry.owner,
        )

    def _object_of(self, entry: Entry) -> Entry | None:
        """The object that the entry is, or is part of."""
        if entry.kind in _NAMED_AS_RELATION:
            return self._relations.get((entry.schema, entry.name))
        if entry.kind in _NAMED_AFTER_RELATION:
            related = (one for one in self._needs(entry) if one.kind in RELATIONS and one.schema == entry.schema)
            named = [one for one in related if entry.name.startswith(f"{one.name} ")]
            return max(named, key=lambda one: len(one.name), default=None)
        if entry.kind not in _PARTS:
            return entry
        needs = list(self._needs(entry))
        if entry.kind in {"INDEX", "STATISTICS"}:
            needs = [one for one in needs if one.kind in RELATIONS and one.schema == entry.schema]
        return self._object_of(needs[0]) if needs else None

    def _both_held(self, key: Entry) -> bool:
        """Whether the backup has all relations that a foreign key speaks of: it depends on the constraint that it refers to."""
        owners = (self._object_of(one) for one in self._needs(key))
        return all(self._held((one.schema, one.name)) for one in owners if one is not None and one.kind in RELATIONS)

    def _needs(self, entry: Entry) -> Iterable[Entry]:
        return (self._by_id[number] for number in entry.depends if number in self._by_id)


def _without_owner(sql: str) -> str:
    return _OWNER.sub("", sql)
