"""Protections over all databases of a cluster: listing, releasing, sweeping what has expired or holds too much."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from spanvault.backup.captured import query_of
from spanvault.backup.protection import RUN_PROTECTION
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.holdings import oldest_transaction
from spanvault.database.postgres.protect import PREFIX, Held, held, release
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.errors import NotFound, Retryable, SpanvaultError
from spanvault.model.cut import format_time
from spanvault.model.result import Cell, Result
from spanvault.statement.words import in_one_line

_log = logging.getLogger(__name__)


def all_held(cluster: Cluster) -> list[Held]:
    """The protections of every database of the cluster, publications without a slot included, by slot name.

    A database that cannot be looked into leaves its slots without an owner (`Held.seen` is false).
    """
    with connect(cluster.primary, purpose="protection") as connection:
        databases = user_databases(query_of(connection))
        found = {entry.slot: entry for entry in held(connection)}
    for name in databases:
        if name == cluster.primary.database:
            continue
        try:
            with connect(cluster.primary, name, purpose="protection") as connection:
                found.update({entry.slot: entry for entry in held(connection) if entry.database == name and entry.seen})
        except SpanvaultError as error:
            _log.debug("Database %s was not looked into for protections: %s", name, error)
    return [found[slot] for slot in sorted(found)]


def release_expired(context: Context, cluster: Cluster) -> list[str]:
    """Release every protection whose end has passed, that nothing can be read from, or that keeps more log than
    `Settings.wal_limit`; the names of their slots.

    Nothing of somebody else's is touched, nor what a run reads at this moment. What cannot be released now is noted and
    left for the next time: it must not keep a backup from starting.
    """
    released = []
    for entry in all_held(cluster):
        over = _keeps_too_much(entry, context.settings.wal_limit)
        reason = over or _why_over(entry, context.clock())
        if reason is None:
            continue
        problem = _try_release(cluster, entry)
        if problem is not None:
            told = f"The protection {entry.slot}, which {reason}, stays for now: {problem}"
        else:
            told = f"Released the protection {entry.slot}, which {reason}."
            released.append(entry.slot)
        if over:  # in the log too: whoever reads only that must hear that a chain ended, or that a disk fills up
            told += "" if problem else " Its chain is closed, and the next backup is a full one."
            _log.error("%s", told)
        context.progress.note(told)
    return released


def _try_release(cluster: Cluster, entry: Held) -> str | None:
    """Release the protection; why that cannot be, else None. Only what bears our name and an owner's mark that can be
    read, or our name and no publication at all, is taken for ours."""
    if entry.owner is None and not entry.orphan:
        return "whose it is cannot be told; if it is yours, release it with `spanvault protection release`."
    try:
        _release(cluster, entry)
    except SpanvaultError as error:
        return str(error)
    return None


def _keeps_too_much(entry: Held, wal_limit: int) -> str | None:
    """That the protection keeps more log than it may, as the end of "which ..."; else None."""
    if not entry.named or not wal_limit or (entry.retained_bytes or 0) <= wal_limit:
        return None
    return (
        f"kept {entry.retained_bytes} bytes of log on the source's disk, more than the {wal_limit} bytes that "
        "SPANVAULT_WAL_LIMIT allows"
    )


def _why_over(entry: Held, now: datetime) -> str | None:
    """Why the protection is over, as the end of "which ..."; None if it is not."""
    if entry.active:
        return None
    if entry.owner is not None and entry.owner.expires_at is not None and entry.owner.expires_at <= now:
        return f"expired at {entry.owner.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if entry.orphan and entry.idle_since is not None and entry.idle_since + RUN_PROTECTION <= now:
        return f"has no publication and was last used at {entry.idle_since:%Y-%m-%d %H:%M:%S} UTC"
    return None


_COLUMNS = (
    "slot", "database", "collection", "run", "seen_at", "expires_at", "status", "active", "wal_retained_bytes",
    "headroom_bytes", "oldest_transaction", "state",
)  # fmt: skip


def protection_table(context: Context, cluster: Cluster, entries: Sequence[Held]) -> Result:
    """The protections for people: owner, age and end, log kept and headroom in bytes, what pins the log, and a sentence on
    where each stands."""
    with connect(cluster.primary, purpose="protection") as connection:
        oldest = oldest_transaction(connection)
    now, limit = context.clock(), context.settings.wal_limit
    return Result(columns=_COLUMNS, rows=tuple(_row(entry, now, limit, oldest) for entry in entries))


def _row(entry: Held, now: datetime, wal_limit: int, oldest: str | None) -> tuple[Cell, ...]:
    owner = entry.owner
    return (
        entry.slot,
        entry.database,
        in_one_line(owner.collection) if owner else None,
        owner.run_key if owner else None,
        format_time(owner.seen_at) if owner and owner.seen_at else None,
        format_time(owner.expires_at) if owner and owner.expires_at else None,
        entry.status,
        entry.active,
        entry.retained_bytes,
        entry.headroom_bytes,
        oldest if entry.present and not entry.lost else None,
        state_of(entry, now, wal_limit),
    )


def state_of(entry: Held, now: datetime, wal_limit: int) -> str:
    """One sentence: whether the protection serves its chain, and if not, what follows."""
    expired = entry.owner is not None and entry.owner.expires_at is not None and entry.owner.expires_at <= now
    kept, why = entry.retained_bytes or 0, entry.reason or "it held more log than max_slot_wal_keep_size"
    cases = (
        (not entry.present, "A publication without a slot: it keeps no log, and goes when it expires."),
        (not entry.named, "Not Spanvault's, whatever its name says: it is left alone."),
        (entry.lost, f"The server gave its log up ({why}): its chain is closed, and the next backup is a full one."),
        (not entry.seen, "Its database cannot be looked into, so its owner is not known."),
        (entry.orphan, "Its publication is gone, so nothing can be read from it: release it."),
        (entry.owner is None, "Unknown owner: its mark cannot be read, so it is left alone until you release it."),
        (entry.active, "A run reads it."),
        (expired, "Expired: the next run or listing releases it."),
        (entry.status == "unreserved", "The server is about to give its log up: take an incremental backup now."),
        (0 < wal_limit < kept, "It keeps more log than SPANVAULT_WAL_LIMIT allows: the next run or listing releases it."),
        (
            0 < wal_limit < 2 * kept or (entry.headroom_bytes is not None and entry.headroom_bytes < kept),
            "More than half of the log that it may keep is used up: take an incremental backup soon.",
        ),
    )
    return next((sentence for holds, sentence in cases if holds), "Holds.")


def release_slot(cluster: Cluster, slot: str) -> Held:
    """Release the protection with this slot. Raises NotFound, naming what there is."""
    entries = all_held(cluster)
    for entry in entries:
        if entry.slot == slot:
            _release(cluster, entry)
            return entry
    names = ", ".join(entry.slot for entry in entries) or "none"
    raise NotFound(f"Cluster {cluster.name!r} has no protection {slot!r}; it has {names}.")


def release_all(cluster: Cluster) -> list[Held]:
    """Release every protection of Spanvault on the cluster, and all publications of its name."""
    entries = [entry for entry in all_held(cluster) if entry.named]
    for entry in entries:
        _release(cluster, entry)
    with connect(cluster.primary, purpose="uninstall") as connection:
        databases = user_databases(query_of(connection))
    for name in databases:
        with connect(cluster.primary, name, purpose="uninstall") as connection:
            rows = connection.execute(
                "SELECT pubname FROM pg_catalog.pg_publication WHERE pg_catalog.starts_with(pubname, %s)", (PREFIX,)
            ).fetchall()
            for row in rows:
                release(connection, f"{PREFIX}no_such_slot", row[0])
    return entries


def _release(cluster: Cluster, entry: Held) -> None:
    if entry.active:
        raise Retryable(f"The slot {entry.slot} is being read by a running backup; wait for it or stop it first.")
    publication = entry.slot.rpartition("_")[0]
    with (
        translated(f"Releasing the protection {entry.slot}"),
        connect(cluster.primary, entry.database, purpose="protection") as connection,
    ):
        release(connection, entry.slot, publication)
