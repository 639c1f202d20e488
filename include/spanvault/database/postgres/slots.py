"""Logical replication slots: their state, creation, advance and end."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

from psycopg import errors as pg_errors
from psycopg import sql

from spanvault.database.postgres.blockers import blockers
from spanvault.database.postgres.server import Connection, scalar
from spanvault.errors import BadInput, Busy, Refused
from spanvault.model.base import Value
from spanvault.model.cut import Lsn

_log = logging.getLogger(__name__)

PLUGIN = "pgoutput"
_ADVANCE_TIMEOUT = "10min"


class SlotState(Value):
    """A replication slot as the server shows it. What older servers do not have is None or false.

    `reason` is why the server invalidated it (17 and later: wal_removed, rows_removed, wal_level_insufficient; 18 also
    idle_timeout); `synced` that it came from the former primary; `idle_since` when it was last used.
    """

    name: str
    plugin: str | None
    database: str | None
    temporary: bool
    active: bool
    status: str | None
    confirmed: Lsn | None
    headroom_bytes: int | None = None
    reason: str | None = None
    synced: bool = False
    failover: bool = False
    idle_since: datetime | None = None

    @property
    def lost(self) -> bool:
        """Whether the server has given its log up."""
        return self.status == "lost" or self.reason is not None or self.confirmed is None


def read_slot(connection: Connection, slot: str) -> SlotState | None:
    """The slot, wherever in the cluster it is; None if there is none of the name."""
    row = scalar(
        connection,
        "SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %s",
        (slot,),
    )
    return slot_state(json.loads(row)) if row else None


def slot_state(fields: dict[str, Any]) -> SlotState:
    """The state that a row of pg_replication_slots, as JSON, tells."""
    confirmed = fields.get("confirmed_flush_lsn")
    return SlotState(
        name=fields["slot_name"],
        plugin=fields["plugin"],
        database=fields["database"],
        temporary=fields["temporary"],
        active=fields["active"],
        status=fields["wal_status"],
        confirmed=Lsn.parse(confirmed) if confirmed else None,
        headroom_bytes=fields["safe_wal_size"],
        reason=fields.get("invalidation_reason"),
        synced=bool(fields.get("synced")),
        failover=bool(fields.get("failover")),
        idle_since=fields.get("inactive_since"),
    )


def ensure_slot(connection: Connection, slot: str, wait_seconds: float) -> None:
    """Create the slot in the connected database unless it is there. One that the server has given up is made anew: it
    holds nothing, and whoever needed its log finds the new one ahead.

    Raises Busy when transactions stay open, Refused for somebody else's slot of that name, BadInput.
    """
    state = read_slot(connection, slot)
    if state is not None and foreign(connection, state):
        raise Refused(f"The replication slot {slot!r} is not Spanvault's ({_described(state)}); drop or rename it.")
    if state is not None and not state.lost:
        return
    if state is not None:
        _log.warning("The server gave the replication slot %s up (%s); it is made anew.", slot, state.reason or state.status)
        drop_slot(connection, slot)
    _create(connection, slot, wait_seconds)


def foreign(connection: Connection, state: SlotState) -> bool:
    """Whether the slot cannot be one of ours for the connected database."""
    return state.plugin != PLUGIN or state.temporary or state.database != connection.info.dbname


def _described(state: SlotState) -> str:
    kind = "temporary, " if state.temporary else ""
    return f"{kind}plugin {state.plugin or 'none'}, database {state.database or 'none'}"


def _create(connection: Connection, slot: str, wait_seconds: float) -> None:
    try:
        with connection.transaction():
            milliseconds = max(1, int(wait_seconds * 1000))
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(milliseconds)))
            connection.execute("SELECT pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    except pg_errors.LockNotAvailable:
        raise Busy(
            f"The replication slot could not be created because transactions stayed open: {blockers(connection)}. "
            "End them, or start the backup again later."
        ) from None
    except pg_errors.DuplicateObject:
        return
    except pg_errors.ConfigurationLimitExceeded:
        raise BadInput(
            "The server has no free replication slot; raise max_replication_slots (a restart), "
            "or release one with `spanvault protection release`."
        ) from None
    except (pg_errors.ObjectNotInPrerequisiteState, pg_errors.InsufficientPrivilege) as error:
        raise BadInput(
            f"The replication slot cannot be created: {error.diag.message_primary}; `spanvault cluster preflight` prints the fix."
        ) from None


def advance(connection: Connection, slot: str, to: Lsn) -> bool:
    """Move the slot to `to`, never backwards; False if there is none any more, or the server has given it up.

    Durable at the server's next checkpoint: it may lag after a crash, and must never be ahead of what is committed in the
    collection. Raises Busy while another session uses it, or the standbys of synchronized_standby_slots do not follow.
    """
    state = read_slot(connection, slot)
    if state is None or state.lost:
        return False
    if state.confirmed is not None and state.confirmed >= to:
        return True
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(_ADVANCE_TIMEOUT)))
            connection.execute("SELECT pg_catalog.pg_replication_slot_advance(%s, %s::pg_lsn)", (slot, str(to)))
    except pg_errors.ObjectInUse:
        raise _in_use(slot) from None
    except pg_errors.QueryCanceled:
        raise Busy(
            f"The replication slot {slot!r} did not move within {_ADVANCE_TIMEOUT}: "
            "are the standbys that synchronized_standby_slots names running?"
        ) from None
    except (pg_errors.UndefinedObject, pg_errors.ObjectNotInPrerequisiteState):
        return False  # dropped or given up at this moment
    return True


def drop_slot(connection: Connection, slot: str) -> None:
    """Drop the slot if it exists. Raises Busy while another session uses it."""
    try:
        connection.execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
            (slot,),
        )
    except pg_errors.ObjectInUse:
        raise _in_use(slot) from None
    except pg_errors.UndefinedObject:
        pass


def _in_use(slot: str) -> Busy:
    return Busy(f"The replication slot {slot!r} is in use by another session; try again shortly.")
