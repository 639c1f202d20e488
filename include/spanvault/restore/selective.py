"""Which entries of a schema archive a restore takes. Pure: entries in, entries out.

A chosen table brings what belongs to it (defaults, constraints, indexes, triggers, policies, owned sequences, comments,
partitions, tables that inherit from it) and what it needs from around it (schemas, types, functions, sequences, extensions).
Relations that something chosen needs and that are not chosen are told to the caller: they may be in the target already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from spanvault.database.postgres.archive import Entry

OUR_PREFIX = "spanvault_"
RELATIONS = frozenset({"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"})
PUBLICATIONS = frozenset({"PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"})

# Entries whose name starts with the name of the relation that they are part of.
_NAMED_AFTER_RELATION = frozenset({"DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER", "RULE", "POLICY"})
# Entries that are part of all the relations they depend on.
_OF_RELATIONS = frozenset({"INDEX", "STATISTICS", "SEQUENCE", "TABLE ATTACH", "INDEX ATTACH", "ROW SECURITY"})
# Entries that say something about all that they depend on.
_ABOUT = frozenset({"COMMENT", "ACL", "SECURITY LABEL", "SEQUENCE OWNED BY"})
_FOR_THE_DATABASE = frozenset({"DATABASE", "DATABASE PROPERTIES"})
# Every database has this from birth, and only the schema's owner could say it again.
_COMMENT_FROM_BIRTH = "COMMENT ON SCHEMA \"public\" IS 'standard public schema';"
# As pg_dump writes it behind the columns of a table; a column's type may be another table, which is no inheritance.
_INHERITS = "\nINHERITS ("


@dataclass(frozen=True)
class Need:
    """`dependent` is restored and works only with `needed`, which is not: a relation, or what was left out."""

    dependent: Entry
    needed: Entry


@dataclass(frozen=True)
class Selection:
    """The entries to restore, in the archive's order, and the relations that must be in the target already."""

    entries: tuple[Entry, ...]
    needs: tuple[Need, ...] = ()


def select_all(entries: Sequence[Entry], *, grants: bool) -> Selection:
    """A whole database, without what is said about the database itself, and without our own publications."""
    return Selection(tuple(_allowed(entries, grants)))


def about_database(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """What is said about the database itself: its settings, comment and grants."""
    made = {entry.id for entry in entries if entry.kind == "DATABASE"}
    return tuple(entry for entry in entries if entry.kind == "DATABASE PROPERTIES" or made & set(entry.depends))


def select(
    entries: Sequence[Entry], wanted: Callable[[Entry], bool], *, grants: bool, left_out: Collection[int] = ()
) -> Selection:
    """The entries that `wanted` chooses among relations, sequences and other objects of their own, with all that goes with
    them. Those whose ids are in `left_out` are in no selection."""
    return _Selector(list(_allowed(entries, grants)), wanted, frozenset(left_out)).run()


def is_part(entry: Entry) -> bool:
    """Whether the entry is part of another object, or says something about one, and comes and goes with it."""
    return entry.kind in _NAMED_AFTER_RELATION | _OF_RELATIONS | _ABOUT


def _allowed(entries: Iterable[Entry], grants: bool) -> Iterable[Entry]:
    refused: set[int] = set()
    for entry in entries:
        ours = entry.kind in PUBLICATIONS | {"EVENT TRIGGER"} and entry.name.startswith(OUR_PREFIX)
        privileges = not grants and entry.kind in {"ACL", "DEFAULT ACL"}
        idle = entry.sql == _COMMENT_FROM_BIRTH
        if (
            ours
            or privileges
            or idle
            or entry.kind in _FOR_THE_DATABASE
            or (entry.kind in _ABOUT and refused & set(entry.depends))
        ):
            refused.add(entry.id)
        else:
            yield entry


class _Selector:
    def __init__(self, entries: list[Entry], wanted: Callable[[Entry], bool], left_out: frozenset[int]) -> None:
        known = [entry for entry in entries if entry.kind not in PUBLICATIONS]
        self._by_id = {entry.id: entry for entry in known}
        self._left_out = left_out
        self._entries = [entry for entry in known if entry.id not in left_out]
        self._attached = dict(filter(None, map(self._attachment, self._entries)))
        self._heirs = {entry.id: frozenset(entry.depends) for entry in self._entries if _INHERITS in entry.sql}
        self._tables = {entry.id for entry in self._entries if entry.kind == "TABLE"}
        of_its_own = (entry for entry in self._entries if entry.kind == "SEQUENCE" or not is_part(entry))
        self._chosen = {entry.id for entry in of_its_own if wanted(entry)}

    def run(self) -> Selection:
        before = -1
        while len(self._chosen) != before:
            before = len(self._chosen)
            self._chosen |= {leaf for leaf, root in self._attached.items() if root in self._chosen}
            self._chosen |= {heir for heir, above in self._heirs.items() if above & self._chosen & self._tables}
            self._chosen |= {entry.id for entry in self._entries if is_part(entry) and self._belongs(entry)}
            self._chosen |= {needed.id for entry in self._selected() for needed in self._missing(entry) if self._comes(needed)}
        needs = [Need(entry, needed) for entry in self._selected() for needed in self._missing(entry)]
        return Selection(tuple(self._selected()), tuple(needs))

    def _comes(self, needed: Entry) -> bool:
        """Whether it is restored because something needs it."""
        return not _relation(needed) and needed.id not in self._left_out

    def _selected(self) -> list[Entry]:
        return [entry for entry in self._entries if entry.id in self._chosen]

    def _attachment(self, entry: Entry) -> tuple[int, int] | None:
        """(leaf, root) of a partition."""
        if entry.kind != "TABLE ATTACH":
            return None
        tables = [self._by_id[number] for number in entry.depends if number in self._by_id]
        leaf = next(table for table in tables if (table.schema, table.name) == (entry.schema, entry.name))
        return leaf.id, next(table.id for table in tables if table is not leaf)

    def _belongs(self, entry: Entry) -> bool:
        depends = [self._by_id[number] for number in entry.depends if number in self._by_id]
        if entry.kind in _ABOUT:
            return bool(depends) and all(one.id in self._chosen for one in depends)
        relations = [one for one in depends if _relation(one)]
        if entry.kind in _NAMED_AFTER_RELATION:
            named = [one for one in relations if one.schema == entry.schema and entry.name.startswith(one.name + " ")]
            return bool(named) and max(named, key=lambda one: len(one.name)).id in self._chosen
        return bool(relations) and all(one.id in self._chosen for one in relations)

    def _missing(self, entry: Entry) -> list[Entry]:
        """What the entry needs and has not been chosen. A partition stands alone without its root. Parts come with what they
        are part of, and are missed only if they were left out; but a sequence may be needed for itself."""
        unchosen = [self._by_id[number] for number in entry.depends if number in self._by_id and number not in self._chosen]
        root = self._attached.get(entry.id)
        return [
            one for one in unchosen if one.id != root and (one.kind == "SEQUENCE" or not is_part(one) or one.id in self._left_out)
        ]


def _relation(entry: Entry) -> bool:
    return entry.kind in RELATIONS
