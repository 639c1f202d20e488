"""What a restore makes in one database, decided before anything is written there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spanvault.columnar.scratch import scratch_file
from spanvault.database.postgres.archive import Entry, dump_now, read_archive
from spanvault.database.postgres.target import Connection, available_extensions, role_names
from spanvault.errors import Refused
from spanvault.model.sentences import few
from spanvault.restore.existing import Existing, Identity
from spanvault.restore.leave_out import settle
from spanvault.restore.plan import DatabaseRestore, chooser
from spanvault.restore.role_names import missing_roles, policies_for
from spanvault.restore.selective import select_all
from spanvault.restore.work import Work

_SHOWN = 5


@dataclass(frozen=True)
class Decision:
    """The entries to make, the defaults and checks to leave out of tables (by the entry's id), and what to tell."""

    entries: tuple[Entry, ...]
    cuts: Mapping[int, frozenset[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def decide(work: Work, control: Connection, database: DatabaseRestore, entries: Sequence[Entry]) -> Decision:
    """What of the archive's entries is made in `database.target`. Only reads.

    Raises AlreadyExists for what is in the way; Refused for what differs there, for what needs something that is nowhere
    and no option allows to leave out, for extensions that the server lacks and for policies of roles that it lacks.
    """
    decision = _whole(work, control, entries) if database.whole else _part(work, control, database, entries)
    roles = role_names(control)
    _check_policies(decision.entries, roles)
    if not work.plan.grants:
        return decision
    notes = (*decision.notes, *_without_roles(decision.entries, roles))
    return Decision(decision.entries, decision.cuts, notes)


def present_in(work: Work, target: str) -> Mapping[Identity, Entry]:
    """What the target database has now, by what names it."""
    with scratch_file(work.scratch, ".dump") as (file, local):
        dump_now(work.cluster.primary, target, local, file.folder)
        return {entry.identity: entry for entry in read_archive(local)}


def _whole(work: Work, control: Connection, entries: Sequence[Entry]) -> Decision:
    chosen = select_all(entries, grants=work.plan.grants).entries
    there = available_extensions(control)
    missing = [entry.name for entry in chosen if entry.kind == "EXTENSION" and entry.name not in there]
    if missing:
        raise Refused(
            f"The target's server does not have the extension {few(missing, _SHOWN)} (pg_available_extensions), which the"
            " database uses; install it there, or restore tables that do not use it."
        )
    return Decision(chosen)


def _part(work: Work, control: Connection, database: DatabaseRestore, entries: Sequence[Entry]) -> Decision:
    existing = Existing(database.target, present_in(work, database.target), available_extensions(control))
    request = work.plan.request
    wanted = chooser(work.manifest, request, database.source, work.cluster.primary.database)
    settled = settle(entries, wanted, existing, request.options, grants=work.plan.grants)
    made = existing.without_present(settled.entries, wanted)
    return Decision(made, settled.cuts, (*settled.notes, *_shared(settled.entries, made, database.target)))


def _shared(chosen: Sequence[Entry], made: Sequence[Entry], target: str) -> Iterator[str]:
    kept = {entry.id for entry in made}
    names = [f"{one.schema}.{one.name}" for one in chosen if one.kind == "SEQUENCE" and one.id not in kept]
    if names:
        yield (
            f"Used as they stand in the database {target!r}, where they may be behind restored rows: sequences"
            f" {few(names, _SHOWN)}."
        )


def _check_policies(entries: Sequence[Entry], roles: Collection[str]) -> None:
    found = policies_for(entries, roles)
    if found:
        named = "; ".join(f"{role} ({few(policies, _SHOWN)})" for role, policies in sorted(found.items()))
        raise Refused(f"Policies are for roles that the target does not have: {named}. Create these roles there first.")


def _without_roles(entries: Sequence[Entry], roles: Collection[str]) -> Iterator[str]:
    for role, given in sorted(missing_roles(entries, roles).items()):
        yield (
            f"The target has no role {role}: what it owned belongs to the role that restores, and what it was granted is left out"
            f" ({few(given, _SHOWN)})."
        )
