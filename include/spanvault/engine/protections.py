"""Protections over all databases of a cluster: listing, releasing, sweeping what has expired."""

from __future__ import annotations

from spanvault.backup.sealing import query_of
from spanvault.config.clusters import Cluster
from spanvault.database.postgres.catalog import user_databases
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import PREFIX, Held, held, release
from spanvault.database.postgres.sqlstate import translated
from spanvault.engine.context import Context
from spanvault.errors import NotFound, Retryable, SpanvaultError


def all_held(cluster: Cluster) -> list[Held]:
    """The protections of every database of the cluster, by slot name."""
    with connect(cluster.primary, purpose="protection") as connection:
        databases = user_databases(query_of(connection))
        found = {entry.slot: entry for entry in held(connection)}
    for name in databases:
        if name == cluster.primary.database or not any(entry.database == name for entry in found.values()):
            continue
        with connect(cluster.primary, name, purpose="protection") as connection:
            found.update({entry.slot: entry for entry in held(connection) if entry.database == name})
    return [found[slot] for slot in sorted(found)]


def release_expired(context: Context, cluster: Cluster) -> list[str]:
    """Release every protection whose end has passed; the names of their slots. One that cannot be released now is
    noted and left for the next time: it must not keep a backup from starting."""
    released = []
    for entry in all_held(cluster):
        expires = entry.owner.expires_at if entry.owner else None
        if expires is None or expires > context.clock() or entry.active:
            continue
        try:
            _release(cluster, entry)
        except SpanvaultError as error:
            context.progress.note(f"The expired protection {entry.slot} stays for now: {error}")
            continue
        context.progress.note(f"Released the protection {entry.slot}, which expired at {expires:%Y-%m-%d %H:%M:%S} UTC.")
        released.append(entry.slot)
    return released


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
    """Release every protection of Spanvault on the cluster, and publications without a slot."""
    entries = all_held(cluster)
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
