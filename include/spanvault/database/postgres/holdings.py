"""What Spanvault holds on a server: slots and publications with their owners, and what they cost."""

from __future__ import annotations

import json
import re
from datetime import datetime

from spanvault.database.postgres.publication import Owner, parse_owner
from spanvault.database.postgres.server import Connection, scalar
from spanvault.database.postgres.slots import PLUGIN, SlotState, slot_state
from spanvault.model.base import Value
from spanvault.model.cut import Lsn

PREFIX = "spanvault_"
_SLOT_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{1,12}}_[0-9]+")
_PUBLICATION_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{1,12}}")


def names(collection_id: str, database_oid: int) -> tuple[str, str]:
    """(slot, publication). Slot names are unique in the whole cluster, so the database's OID is part of theirs."""
    return f"{PREFIX}{collection_id[:12]}_{database_oid}", f"{PREFIX}{collection_id[:12]}"


class Held(Value):
    """A protection as found on a server. `present`: its slot exists; `publication`: its publication, if that exists and
    its database was looked at (`seen`). `named`: its name and kind are those that Spanvault gives.

    `retained_bytes`: log kept on its account; `headroom_bytes`: what may still be written before the server invalidates
    it (None: no limit is set); `reason`: why the server did; `idle_since`: when it was last used (17 and later).
    """

    slot: str
    database: str
    publication: str | None
    owner: Owner | None
    active: bool
    status: str | None
    retained_bytes: int | None
    headroom_bytes: int | None
    confirmed: Lsn | None
    present: bool = True
    seen: bool = True
    named: bool = True
    reason: str | None = None
    idle_since: datetime | None = None

    @property
    def orphan(self) -> bool:
        """Whether this is a slot of ours whose publication is gone: nothing can be read from it any more."""
        return self.present and self.seen and self.named and self.publication is None

    @property
    def lost(self) -> bool:
        """Whether the server has given its log up."""
        return self.present and (self.status == "lost" or self.reason is not None)


_SLOTS = (
    "SELECT pg_catalog.to_jsonb(s)::text,"
    " (pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn))::int8,"
    " s.database = pg_catalog.current_database()"
    " FROM pg_catalog.pg_replication_slots s"
    " WHERE s.slot_name LIKE 'spanvault\\_%' AND s.slot_type = 'logical' AND NOT s.temporary ORDER BY s.slot_name"
)
_PUBLICATIONS = (
    "SELECT pubname, pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication"
    " WHERE pubname LIKE 'spanvault\\_%' ORDER BY 1"
)


def held(connection: Connection) -> list[Held]:
    """All protections of the connected database, publications without a slot included, and the slots of other databases
    (without publication and owner), by slot name."""
    # Slots first: a publication is made before its slot, so one that is missing behind this is truly gone.
    slots = connection.execute(_SLOTS).fetchall()
    owners = {name: parse_owner(comment) for name, comment in connection.execute(_PUBLICATIONS)}
    found = [_held(slot_state(json.loads(text)), retained, seen=here, owners=owners) for text, retained, here in slots]
    used = {entry.publication for entry in found if entry.seen}
    lonely = [name for name in owners if name not in used and _PUBLICATION_NAME.fullmatch(name)]
    if lonely:
        oid = scalar(connection, "SELECT oid::int8 FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()")
        found += [_without_slot(connection, name, int(oid), owners[name]) for name in lonely]
    return sorted(found, key=lambda entry: entry.slot)


def _held(state: SlotState, retained: int | None, *, seen: bool, owners: dict[str, Owner | None]) -> Held:
    publication = state.name.rpartition("_")[0]
    known = seen and publication in owners
    return Held(
        slot=state.name,
        database=state.database or "",
        publication=publication if known else None,
        owner=owners[publication] if known else None,
        active=state.active,
        status=state.status,
        retained_bytes=retained,
        headroom_bytes=state.headroom_bytes,
        confirmed=state.confirmed,
        seen=seen,
        named=state.plugin == PLUGIN and _SLOT_NAME.fullmatch(state.name) is not None,
        reason=state.reason,
        idle_since=state.idle_since,
    )


def _without_slot(connection: Connection, publication: str, database_oid: int, owner: Owner | None) -> Held:
    return Held(
        slot=f"{publication}_{database_oid}",
        database=connection.info.dbname,
        publication=publication,
        owner=owner,
        active=False,
        status=None,
        retained_bytes=None,
        headroom_bytes=None,
        confirmed=None,
        present=False,
    )


_OLDEST = """
SELECT told FROM (
    SELECT 'process ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no application name') || ', database '
           || coalesce(datname, '-') || ', open for ' || date_trunc('second', clock_timestamp() - xact_start) || ')' AS told,
           xact_start AS since
    FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
    UNION ALL
    SELECT 'prepared transaction ' || quote_literal(gid) || ' (database ' || database || ', prepared '
           || date_trunc('second', clock_timestamp() - prepared) || ' ago)', prepared
    FROM pg_catalog.pg_prepared_xacts
) open_ones ORDER BY since LIMIT 1
"""


def oldest_transaction(connection: Connection) -> str | None:
    """The writing transaction of the whole cluster that has been open longest, prepared ones included: no slot lets go of
    the log behind its beginning. None: no transaction is writing."""
    oldest: str | None = scalar(connection, _OLDEST)
    return oldest
