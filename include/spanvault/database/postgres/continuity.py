"""Whether a chain can go on: is every change since its newest layer's end still in the source's log, and in this log?

Every way in which it may not be has a sentence of its own, and ends the chain: never a gap.
"""

from __future__ import annotations

from typing import Any, NoReturn

import psycopg
from psycopg import errors as pg_errors

from spanvault.database.postgres.pgoutput import commit_time
from spanvault.database.postgres.publication import read as read_publication
from spanvault.database.postgres.server import Connection, flush_lsn, scalar, timeline
from spanvault.database.postgres.slots import SlotState, advance, foreign, read_slot
from spanvault.errors import BrokenChain, Busy, Refused
from spanvault.model.cut import Lsn, format_time
from spanvault.model.manifest import Commit, ManifestDatabase, SourceIdentity


class SlotAhead(BrokenChain):
    """The slot stands behind the chain's end, at `position`; `before` says of which slot, as the beginning of a sentence."""

    def __init__(self, before: str, position: Lsn, end: Lsn) -> None:
        self.before, self.position = before, position
        super().__init__(
            f"{before} is ahead, at {position}: somebody made it anew or moved it, so the chain ends at {end} and the next"
            " backup is a full one."
        )


def check(
    connection: Connection, entry: ManifestDatabase, end: Lsn, source: SourceIdentity, *, start: Lsn | None = None
) -> set[int]:
    """Make sure that the connected database still has its history since `end`, where the chain's newest layer ends;
    return the OIDs of tables whose place in the publication changed since that layer, so that the log may lack changes of
    theirs.

    `entry` and `source` are the newest layer's, `start` is where the history that it holds begins; a full's window of the
    log begins where its protection does, which also counts without `start`. A slot that lags, after a crash of the server
    or of a run between commit and advance, is moved to `end` once its repeats prove that this is the history the layer was
    read from. To be called before `hold`, which would make a missing slot anew.

    Raises BrokenChain with one sentence that says what happened; another run that commits a layer meanwhile moves the
    slot too, so a caller looks at the chain's newest layer again before it believes that. Raises Busy while another
    session uses the slot.
    """
    state, changed = look(connection, entry, end, source)
    if state.confirmed is not None and state.confirmed < end:
        begin = start if start is not None and start < end else entry.protection.start
        _prove_repeats(connection, entry, state.confirmed, end, begin)
        advance(connection, state.name, end)
    return changed


def look(connection: Connection, entry: ManifestDatabase, end: Lsn, source: SourceIdentity) -> tuple[SlotState, set[int]]:
    """What `check` can tell without reading the log or moving the slot: the slot, and the tables."""
    slot = read_slot(connection, entry.protection.slot)
    _same_source(connection, entry, end, source, slot)
    state = _usable(connection, entry, end, slot)
    return state, _changed_tables(connection, entry, end)


def _broken(what: str, end: Lsn) -> NoReturn:
    raise BrokenChain(f"{what}, so the chain ends at {end} and the next backup is a full one.")


def _same_source(
    connection: Connection, entry: ManifestDatabase, end: Lsn, source: SourceIdentity, slot: SlotState | None
) -> None:
    """The same cluster, the same database, and a log that contains the one that the chain was read from."""
    identifier = str(scalar(connection, "SELECT system_identifier FROM pg_catalog.pg_control_system()"))
    if identifier != source.system_identifier:
        _broken(f"The source is another cluster (system identifier {identifier}, not {source.system_identifier})", end)
    oid = scalar(connection, "SELECT oid::int8 FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()")
    if oid != entry.database.oid:
        _broken(f"The database {entry.database.name!r} was dropped and another one has its name", end)
    present = timeline(connection)
    if present != source.timeline:
        _same_branch(connection, source.timeline, present, end, slot)
    flushed = flush_lsn(connection)
    if flushed < end:
        _broken(f"The source was rolled back: its log ends at {flushed}", end)


def _same_branch(connection: Connection, before: int, present: int, end: Lsn, slot: SlotState | None) -> None:
    """A standby was promoted: what the chain has must lie before the switch, and the slot must have come along."""
    switch = switch_point(connection, before, present)
    if switch is None:
        _broken(f"The source goes on from another history: timeline {present} does not descend from {before}", end)
    moved = f"The source was promoted (timeline {before} to {present} at {switch})"
    if switch < end:
        _broken(f"{moved} without all that is in this backup", end)
    if slot is None or not slot.synced:
        without = "has no slot of this chain" if slot is None else "its slot was made there, not kept in step"
        _broken(f"{moved} and {without}", end)


def switch_point(connection: Connection, before: int, present: int) -> Lsn | None:
    """Where the server's timeline `present` left timeline `before`; None if it does not descend from it.

    From TIMELINE_HISTORY (https://www.postgresql.org/docs/18/protocol-replication.html), which needs a walsender; lines
    of the file are parent, switch point and reason, divided by tabs.
    """
    if present <= 1:
        return None
    parameters: dict[str, Any] = {
        **connection.info.get_parameters(),
        "password": connection.info.password,
        "replication": "database",
    }
    with psycopg.connect(autocommit=True, **parameters) as walsender:
        result = walsender.execute(f"TIMELINE_HISTORY {present}".encode()).pgresult
        content = result.get_value(0, 1) if result is not None else None
    for line in (content or b"").decode(errors="replace").splitlines():
        fields = line.split("\t")
        if fields[0].strip() == str(before) and len(fields) > 1:
            return Lsn.parse(fields[1].strip())
    return None


def _usable(connection: Connection, entry: ManifestDatabase, end: Lsn, slot: SlotState | None) -> SlotState:
    name, database = entry.protection.slot, entry.database.name
    if slot is None:
        _broken(f"The replication slot {name!r} of database {database!r} was dropped, or the source restored without it", end)
    if foreign(connection, slot):
        _broken(f"The replication slot {name!r} is not Spanvault's: it is of plugin {slot.plugin!r} in {slot.database!r}", end)
    if slot.lost:
        _broken(f"The server gave up the replication slot {name!r} of database {database!r} ({_why(slot)})", end)
    if slot.confirmed is not None and slot.confirmed > end:
        raise SlotAhead(f"The replication slot {name!r} of database {database!r}", slot.confirmed, end)
    if slot.active:
        raise Busy(f"The replication slot {name!r} is in use by another session; try again shortly.")
    return slot


_REASONS = {
    "wal_removed": "wal_removed: it held more log than max_slot_wal_keep_size",
    "idle_timeout": "idle_timeout: it was not used for idle_replication_slot_timeout",
    "rows_removed": "rows_removed: rows of system catalogs that it needs were removed",
    "wal_level_insufficient": "wal_level_insufficient: wal_level was lowered",
}


def _why(slot: SlotState) -> str:
    if slot.reason is None:
        return f"wal_status {slot.status}: it held more log than max_slot_wal_keep_size"
    return _REASONS.get(slot.reason, slot.reason)


def _changed_tables(connection: Connection, entry: ManifestDatabase, end: Lsn) -> set[int]:
    remembered = entry.protection
    name = f"{remembered.publication!r} of database {entry.database.name!r}"
    found = scalar(connection, "SELECT oid::int8 FROM pg_catalog.pg_publication WHERE pubname = %s", (remembered.publication,))
    if found is None:
        _broken(f"The publication {name} was dropped", end)
    if found != remembered.publication_oid:
        _broken(f"The publication {name} was dropped and made anew", end)
    try:
        present = read_publication(connection, remembered.database, remembered.slot, remembered.publication, end)
    except Refused:
        _broken(f"The publication {name} was altered: it does not publish every operation by leaf table any more", end)
    before, after = set(remembered.rows), set(present.rows)
    if present.publication_xmin != remembered.publication_xmin:  # altered and perhaps altered back: any change may lack
        return {row.table_oid for row in before | after}
    return {row.table_oid for row in before ^ after}


def _prove_repeats(connection: Connection, entry: ManifestDatabase, confirmed: Lsn, end: Lsn, start: Lsn) -> None:
    """A slot behind the chain is what a crash leaves, and what a source leaves that was rolled back and went on: then the
    last transaction before `end` is not the one that the layer remembers."""
    remembered = entry.window.last_commit
    since = max(confirmed, remembered.lsn if remembered else start)
    expected = remembered if remembered is not None and remembered.lsn >= confirmed else None
    last = _last_commit(connection, entry, since, end)
    if last != expected:
        _broken(f"The source was rolled back and went on: its log has {_told(last)} last, not {_told(expected)}", end)


def _told(commit: Commit | None) -> str:
    return f"transaction {commit.xid} at {commit.lsn} ({format_time(commit.time)})" if commit else "no transaction"


# Only Begin messages, and of them the last: byte 0 is B, then the commit record's start (8 bytes), so text order is log order.
_LAST_BEGIN = (
    "SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes(%s, %s::pg_lsn, NULL,"
    " 'proto_version', '1', 'publication_names', %s)"
    " WHERE pg_catalog.get_byte(data, 0) = 66 AND pg_catalog.substr(data, 2, 8) >= %s AND pg_catalog.substr(data, 2, 8) < %s"
    " ORDER BY data DESC LIMIT 1"
)


def _last_commit(connection: Connection, entry: ManifestDatabase, since: Lsn, end: Lsn) -> Commit | None:
    """The last published transaction with `since <= commit record < end`, read from a copy of the slot."""
    copy = f"spanvault_copy_{connection.info.backend_pid}"
    found = (copy, str(end), entry.protection.publication, since.to_bytes(8), end.to_bytes(8))
    try:
        connection.execute("SELECT pg_catalog.pg_copy_logical_replication_slot(%s, %s, true)", (entry.protection.slot, copy))
        try:
            message = scalar(connection, _LAST_BEGIN, found)
        finally:
            connection.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (copy,))
    except (pg_errors.UndefinedObject, pg_errors.ObjectNotInPrerequisiteState, pg_errors.InternalError_) as error:
        _broken(f"The change log of database {entry.database.name!r} cannot be read ({error.diag.message_primary})", end)
    except pg_errors.ConfigurationLimitExceeded:
        raise Busy("The server has no free replication slot for reading the change log; raise max_replication_slots.") from None
    if message is None:
        return None
    time = int.from_bytes(message[9:17], signed=True)
    return Commit(lsn=Lsn.from_bytes(message[1:9]), xid=int.from_bytes(message[17:21]), time=commit_time(time))
