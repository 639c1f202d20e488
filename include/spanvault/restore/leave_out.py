"""What a restore of schemas and tables leaves out because what it needs is nowhere, and by which option. Pure.

Leaving out never changes a row that is restored: foreign keys, checks, defaults, triggers, indexes, views and functions can
be missing; a column, a generated value, a parent by inheritance or a restrictive policy can not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spanvault.database.postgres.archive import Entry
from spanvault.database.postgres.quoting import qualified
from spanvault.errors import Refused
from spanvault.model.request import RestoreOptions
from spanvault.model.sentences import few
from spanvault.restore.existing import Existing
from spanvault.restore.foreign_keys import misfit
from spanvault.restore.selective import RELATIONS, Need, select
from spanvault.restore.table_sql import calls, items, qualified_names, without

FOREIGN_KEYS, SEQUENCES, OWNERS = "skip_missing_foreign_keys", "skip_missing_sequences", "skip_missing_sequence_owners"
VIEWS, FUNCTIONS = "skip_missing_views", "skip_missing_udfs"
_SHOWN = 3  # losses in a refusal
_NOTED = 20  # and in a note

_CALLABLE = frozenset({"FUNCTION", "PROCEDURE", "AGGREGATE"})
# What runs code, or is needed to make what does.
_FUNCTION_LIKE = _CALLABLE | {
    "OPERATOR", "OPERATOR CLASS", "OPERATOR FAMILY", "CAST", "TRANSFORM", "PROCEDURAL LANGUAGE", "EXTENSION",
}  # fmt: skip
_BY_FUNCTION = frozenset({"CHECK CONSTRAINT", "TRIGGER", "INDEX", "STATISTICS", "CONSTRAINT"})


@dataclass(frozen=True)
class Loss:
    """`what` (for people) cannot be made, because `needed` is missing; `option` allows to leave it out, None: nothing does.
    `why` completes a sentence about what is missing."""

    what: str
    needed: str
    why: str
    option: str | None

    def __str__(self) -> str:
        return f"{self.what} needs {self.needed}, {self.why}" if self.needed else f"{self.what} {self.why}"


@dataclass(frozen=True)
class Settled:
    """The entries to restore, the defaults and checks that are cut out of tables (as table_sql.Item.display, by the entry's
    id), and what is left out, in sentences."""

    entries: tuple[Entry, ...]
    cuts: Mapping[int, frozenset[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def settle(
    entries: Sequence[Entry], wanted: Callable[[Entry], bool], existing: Existing, options: RestoreOptions, *, grants: bool
) -> Settled:
    """What is restored of an archive into a database that has `existing`.

    Raises Refused for what needs something that is nowhere, unless the options allow to leave it out.
    """
    return _Settler(entries, wanted, existing, options, grants=grants).run()


class _Settler:
    def __init__(
        self,
        entries: Sequence[Entry],
        wanted: Callable[[Entry], bool],
        existing: Existing,
        options: RestoreOptions,
        *,
        grants: bool,
    ) -> None:
        self._entries, self._wanted, self._existing, self._options, self._grants = entries, wanted, existing, options, grants
        self._by_id = {entry.id: entry for entry in entries}
        self._names = {qualified(entry.schema, entry.name.split("(")[0]) for entry in entries if entry.schema}
        self._left_out: dict[int, str] = {}
        self._solved: set[tuple[int, int]] = set()
        self._cuts: dict[int, set[str]] = {}
        self._losses: list[Loss] = []
        for entry in entries:
            if reason := self._unmakeable(entry):
                self._left_out[entry.id] = reason

    def run(self) -> Settled:
        # Those that were asked for, or came with a schema, are told themselves.
        for number, why in self._left_out.items():
            entry = self._by_id[number]
            if self._wanted(entry):
                self._losses.append(Loss(_capital(entry.display), "", why.replace("which ", "", 1), FUNCTIONS))
        while True:
            chosen = select(self._entries, self._wanted, grants=self._grants, left_out=self._left_out)
            open_ = [need for need in chosen.needs if not self._met(need)]
            if not open_:
                break
            for need in open_:
                self._lose(need)
        self._refuse()
        if self._losses and not any(self._wanted(entry) for entry in chosen.entries):
            raise Refused(f"Nothing of what is named would be restored: {few([str(one) for one in self._losses], _SHOWN)}.")
        cuts = {number: frozenset(cut) for number, cut in self._cuts.items()}
        return Settled(chosen.entries, cuts, (*self._notes(), *self._alone(chosen.entries)))

    def _alone(self, chosen: Sequence[Entry]) -> Iterator[str]:
        """Partitions without the table that they are of."""
        ids = {entry.id for entry in chosen}
        attached = [entry for entry in self._entries if entry.kind == "TABLE ATTACH" and entry.id not in ids]
        leaves = [one for entry in attached for one in chosen if one.id in entry.depends and one.kind == "TABLE"]
        if leaves:
            names = few([f"{one.schema}.{one.name}" for one in leaves], _NOTED)
            yield f"Restored as tables of their own, without foreign keys and triggers of what they are partitions of: {names}."

    def _unmakeable(self, entry: Entry) -> str:
        """Why the target cannot have the entry, whatever is restored."""
        if entry.kind == "EXTENSION" and entry.identity not in self._existing.present:
            if entry.name not in self._existing.extensions:
                return "which the target's server does not have (pg_available_extensions)"
        elif entry.kind in _CALLABLE and self._existing.differs(entry):
            return f"of which the database {self._existing.database!r} has another version"
        return ""

    def _met(self, need: Need) -> bool:
        """Whether the target has what is needed, or the dependent itself."""
        dependent, needed = need.dependent, need.needed
        if (dependent.id, needed.id) in self._solved:
            return True
        if self._existing.shares(dependent, self._wanted):
            return True
        if needed.id in self._left_out or needed.kind not in RELATIONS or not self._existing.has_relation(needed):
            return False
        return dependent.kind != "FK CONSTRAINT" or not self._misfit(dependent, needed)

    def _misfit(self, foreign_key: Entry, needed: Entry) -> str:
        return misfit(foreign_key, needed, self._existing.present.values())

    def _lose(self, need: Need) -> None:
        dependent, needed = need.dependent, need.needed
        if dependent.id in self._left_out:  # for another reason, a moment ago
            return
        self._solved.add((dependent.id, needed.id))
        if dependent.kind == "TABLE":
            self._cut(dependent, needed)
            return
        if dependent.kind == "SEQUENCE" and dependent.sql.startswith("ALTER"):  # an identity column's
            self._lost(dependent, needed, None)
        elif dependent.kind == "SEQUENCE" and not (
            self._options.skip_missing_sequences and not self._options.skip_missing_sequence_owners
        ):
            self._lost(dependent, needed, OWNERS)
            self._leave_out_owner(dependent)
        elif dependent.kind == "INDEX ATTACH":
            self._left_out[dependent.id] = "which is left out"
        else:
            option = self._option(dependent, needed)
            self._lost(dependent, needed, option)
            if option is not None:
                self._leave_out(dependent)

    def _option(self, dependent: Entry, needed: Entry) -> str | None:
        """By which option the dependent may be left out."""
        by_function = needed.kind in _FUNCTION_LIKE
        if dependent.kind == "FK CONSTRAINT":
            return FOREIGN_KEYS
        if dependent.kind in {"VIEW", "MATERIALIZED VIEW"} or (dependent.kind == "RULE" and dependent.name.endswith(" _RETURN")):
            return VIEWS
        if dependent.kind == "SEQUENCE":
            return SEQUENCES
        if dependent.kind == "DEFAULT" and needed.kind == "SEQUENCE":
            return SEQUENCES
        if dependent.kind in _FUNCTION_LIKE:
            return FUNCTIONS
        permissive = dependent.kind == "POLICY" and " AS RESTRICTIVE" not in dependent.sql
        return FUNCTIONS if by_function and (permissive or dependent.kind in _BY_FUNCTION | {"DEFAULT"}) else None

    def _leave_out(self, dependent: Entry) -> None:
        """A view that a primary key is needed for has its query in a rule (`GROUP BY` it): both go."""
        self._left_out[dependent.id] = "which is left out"
        if dependent.kind == "RULE":
            for number in dependent.depends:
                view = self._by_id.get(number)
                if view is not None and (view.schema, f"{view.name} _RETURN") == (dependent.schema, dependent.name):
                    self._left_out[view.id] = "which is left out"

    def _leave_out_owner(self, sequence: Entry) -> None:
        for entry in self._entries:
            if entry.kind == "SEQUENCE OWNED BY" and sequence.id in entry.depends:
                self._left_out[entry.id] = "which is left out"

    def _cut(self, table: Entry, needed: Entry) -> None:
        """Defaults and checks that stand within CREATE TABLE."""
        uses = self._uses(needed)
        using = [item for item in items(table.sql) if uses(item.text)]
        free = [item for item in using if item.droppable and uses(item.droppable) and not uses(item.kept)]
        shown = {item.display for item in free}
        if uses(without(table.sql, shown)) or not free:
            held = [f"column {item.name}" for item in using if item not in free]
            what = f"{table.display} ({few(held, _SHOWN)})" if held else table.display
            self._losses.append(Loss(_capital(what), needed.display, self._why(needed), None))
            return
        option = SEQUENCES if needed.kind == "SEQUENCE" else FUNCTIONS
        for item in free:
            what = f"{_capital(item.display)} in {table.display}"
            self._losses.append(Loss(what, needed.display, self._why(needed), option))
        self._cuts.setdefault(table.id, set()).update(shown)

    def _uses(self, needed: Entry) -> Callable[[str], bool]:
        """Whether SQL uses what is missing. What else needs it is not known: then nothing can be cut."""
        if needed.kind == "SEQUENCE":
            literal = "'" + qualified(needed.schema or "", needed.name).replace("'", "''") + '\'::"regclass"'
            return lambda text: literal in text
        if needed.kind in _CALLABLE:
            name = qualified(needed.schema or "", needed.name.split("(")[0])
            return lambda text: calls(text, name)
        if needed.kind == "EXTENSION":  # what is in it, the archive does not say
            return lambda text: any(not one.startswith('"pg_catalog".') for one in qualified_names(text) - self._names)
        return lambda _: False

    def _lost(self, dependent: Entry, needed: Entry, option: str | None) -> None:
        what = f"The {_kind(dependent)} {dependent.schema + '.' if dependent.schema else ''}{dependent.name}"
        self._losses.append(Loss(what, needed.display, self._why(needed, dependent), option))

    def _why(self, needed: Entry, dependent: Entry | None = None) -> str:
        if needed.id in self._left_out:
            return self._left_out[needed.id]
        if dependent is not None and dependent.kind == "FK CONSTRAINT" and self._existing.has_relation(needed):
            return f"which in the database {self._existing.database!r} {self._misfit(dependent, needed)}"
        if dependent is not None and dependent.kind == "SEQUENCE":
            return "which owns it and is not restored"
        return f"which is neither restored nor in the database {self._existing.database!r}"

    def _refuse(self) -> None:
        refused = [one for one in self._losses if one.option is None]
        if refused:
            raise Refused(
                f"{_sentence(refused)}; this cannot be left out. Name what is missing in the RESTORE too, or make it in the"
                " target first."
            )
        refused = [one for one in self._losses if one.option and not getattr(self._options, one.option)]
        if not refused:
            return
        needed = {one.option or "" for one in refused}
        if needed == {OWNERS}:
            needed |= {SEQUENCES}
            how = f"keep the sequence without its owner with {OWNERS}, or leave its default out with {SEQUENCES}"
        else:
            how = f"leave out what needs it with {', '.join(sorted(needed))}"
        raise Refused(f"{_sentence(refused)}. Name what is missing in the RESTORE too, or {how}.")

    def _notes(self) -> Iterator[str]:
        for option in dict.fromkeys(one.option for one in self._losses):
            lost = [str(one) for one in self._losses if one.option == option]
            what = "Without their owners" if option == OWNERS else "Left out"
            yield f"{what} ({option}): {few(lost, _NOTED)}."


def _sentence(losses: Sequence[Loss]) -> str:
    shown = [str(one) if number == 0 else str(one)[0].lower() + str(one)[1:] for number, one in enumerate(losses[:_SHOWN])]
    more = len(losses) - _SHOWN
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _kind(entry: Entry) -> str:
    return "foreign key" if entry.kind == "FK CONSTRAINT" else entry.kind.lower()


def _capital(text: str) -> str:
    return f"The {text.removeprefix('the ')}"
