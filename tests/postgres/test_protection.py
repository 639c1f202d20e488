"""Protections: which tables they publish, whose they are, when they end, and that they end before the disk is full."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from spanvault.backup import protection as life
from spanvault.config.settings import Settings
from spanvault.database.postgres import publication as publications
from spanvault.database.postgres.catalog import read_database, read_tables
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.preflight import advice
from spanvault.database.postgres.protect import Held, Owner, hold, leave, mark
from spanvault.database.postgres.server import Connection
from spanvault.engine.context import Context
from spanvault.engine.protections import all_held, protection_table, release_all, release_expired, release_slot, state_of
from spanvault.errors import Busy
from spanvault.model.manifest import Protection
from spanvault.model.schema import Table
from tests.kit.servers import TestDatabase, fresh_database

ID = "abcdef012345"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Notes:
    """Progress that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """Ignored."""

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


def tables_of(connection: Connection) -> tuple[Table, ...]:
    return read_tables(lambda text: connection.execute(text.encode()).fetchall())


def held_until(database: TestDatabase, end: datetime | None, collection_id: str = ID) -> Protection:
    """Hold the protection of all the database's tables until `end`."""
    owner = Owner(collection_id=collection_id, collection="file:///c", expires_at=end)
    with connect(database.endpoint, purpose="test") as connection:
        oid = read_database(lambda text: connection.execute(text.encode()).fetchall()).oid
        return hold(connection, owner, database.name, oid, tables_of(connection), 20)


def sweep(database: TestDatabase, notes: Notes | None = None, *, at: datetime = NOW, wal_limit: int = 0) -> list[str]:
    """Release what is over at the moment `at`; the names of slots."""
    settings = Settings.model_validate({"wal_limit": wal_limit})
    return release_expired(Context(settings=settings, clock=lambda: at, progress=notes or Notes()), database.cluster)


def published(database: TestDatabase) -> set[str]:
    return {row[0] for row in database.execute("select tablename from pg_publication_tables where pubname like 'spanvault%'")}


def left(database: TestDatabase) -> tuple[int, int]:
    """(slots, publications) of the database."""
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    return database.execute(slots)[0][0], database.execute("select count(*) from pg_publication")[0][0]


# --- what is published ---


def test_tables_whose_changes_the_log_tells_are_published(database: TestDatabase) -> None:
    database.execute(
        "create table keyed (id int primary key); create table counted (v int); alter table counted replica identity full;"
        "create table keyless (v int); create unlogged table passing (id int primary key)"
    )
    held_until(database, None)
    assert published(database) == {"keyed", "counted"}
    database.execute(
        "insert into keyless values (1); update keyless set v = 2; insert into counted values (1); update counted set v = 2"
    )


@pytest.mark.parametrize(
    "loss",
    [
        "alter table t drop constraint t_pkey",
        "alter table t replica identity nothing",
        "alter table t replica identity full, add g int generated always as (id) stored",
        "alter table t add g int generated always as (id) virtual, replica identity full",
    ],
    ids=["key dropped", "identity nothing", "generated column under full", "full over a generated column"],
)
def test_a_table_that_lost_its_identity_leaves_at_once(database: TestDatabase, loss: str) -> None:
    database.execute("create table t (id int primary key); create table u (id int primary key); insert into t values (1)")
    held_until(database, None)
    database.execute(loss)
    with pytest.raises(psycopg.Error, match=r"does not have a replica identity|unpublished generated columns"):
        database.execute("update t set id = 2")
    # Also when the run that comes by is about other tables.
    with connect(database.endpoint, purpose="test") as connection:
        others = [table for table in tables_of(connection) if table.name == "u"]
        oid = read_database(lambda text: connection.execute(text.encode()).fetchall()).oid
        owner = Owner(collection_id=ID, collection="file:///c", expires_at=None)
        protection = hold(connection, owner, database.name, oid, others, 20)
    assert published(database) == {"u"}
    assert [row.table_oid for row in protection.rows] == [others[0].oid]
    database.execute("update t set id = 2")


def test_leaving_twice_or_after_a_drop_is_no_error(database: TestDatabase) -> None:
    database.execute("create table t (id int primary key); create table u (id int primary key)")
    protection = held_until(database, None)
    with connect(database.endpoint, purpose="test") as connection:
        tables = tables_of(connection)
        leave(connection, protection.publication, tables[:1])
        leave(connection, protection.publication, tables[:1])
        connection.execute("drop table public.u")
        leave(connection, protection.publication, tables)
    assert published(database) == set()


def test_leaving_never_queues_the_application_up(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publications, "_LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr("spanvault.database.postgres.publication.time.sleep", lambda _: None)
    database.execute("create table t (id int primary key)")
    protection = held_until(database, None)
    with connect(database.endpoint, purpose="test") as connection, database.connect(autocommit=False) as other:
        other.execute("lock table t in share update exclusive mode")
        with pytest.raises(Busy, match="could not join or leave the publication"):
            leave(connection, protection.publication, tables_of(connection))
    assert published(database) == {"t"}


# --- owner and end ---


def test_an_end_is_put_off_and_never_brought_forward(database: TestDatabase) -> None:
    publication = held_until(database, NOW + timedelta(days=30)).publication
    held_until(database, NOW + timedelta(hours=4))
    comment = "select obj_description(oid, 'pg_publication')::json ->> 'expires_at' from pg_publication"
    assert database.execute(comment) == [("2030-01-31T00:00:00Z",)]
    with connect(database.endpoint, purpose="test") as connection:
        for end in (None, NOW):
            mark(connection, publication, Owner(collection_id=ID, collection="file:///c", expires_at=end))
            assert database.execute(comment) == [(None,)]


def test_a_schedule_may_ask_for_a_longer_protection_than_the_request() -> None:
    from spanvault.model.request import BackupOptions, BackupRequest

    short = BackupRequest(into="file:///c", options=BackupOptions(protection="1h"))
    long = BackupRequest(into="file:///c", options=BackupOptions(protection="7d"))
    none = BackupRequest(into="file:///c", options=BackupOptions(protection="none"))
    assert life.protection_length(short) == timedelta(hours=4)
    assert life.protection_length(short, timedelta(days=2)) == timedelta(days=2)
    assert life.protection_length(long, timedelta(days=2)) == timedelta(days=7)
    assert life.protection_length(none) == timedelta(hours=4)


def test_what_has_expired_goes_and_nothing_else(database: TestDatabase) -> None:
    database.execute("create table t (id int primary key)")
    over = held_until(database, NOW - timedelta(seconds=1), "0" * 12)
    stays = held_until(database, NOW + timedelta(seconds=1), "1" * 12)
    for_ever = held_until(database, None, "2" * 12)
    notes = Notes()
    assert sweep(database, notes) == [over.slot]
    assert notes.notes == [f"Released the protection {over.slot}, which expired at 2029-12-31 23:59:59 UTC."]
    held = {entry.slot for entry in all_held(database.cluster)}
    assert {stays.slot, for_ever.slot} <= held
    assert over.slot not in held


def test_a_protection_of_another_database_is_found_and_released(database: TestDatabase) -> None:
    """The cluster's own address names one database; protections are in all."""
    with fresh_database(database.server, "elsewhere") as other:
        over = held_until(other, NOW - timedelta(seconds=1))
        assert sweep(database) == [over.slot]
        assert left(other) == (0, 0)


def test_a_publication_that_a_crash_left_without_a_slot_goes_when_it_expires(database: TestDatabase) -> None:
    protection = held_until(database, NOW)
    database.execute(f"select pg_drop_replication_slot('{protection.slot}')")
    (entry,) = [entry for entry in all_held(database.cluster) if entry.database == database.name]
    assert (entry.present, entry.publication) == (False, protection.publication)
    assert sweep(database, at=NOW - timedelta(seconds=1)) == []
    assert sweep(database) == [protection.slot]
    assert left(database) == (0, 0)


def test_a_slot_without_publication_goes_when_nobody_has_used_it_for_as_long_as_a_run_may_be_silent(
    database: TestDatabase,
) -> None:
    protection = held_until(database, None)
    database.execute(f"drop publication {protection.publication}")
    (entry,) = [entry for entry in all_held(database.cluster) if entry.database == database.name]
    assert entry.idle_since is not None
    assert sweep(database, at=entry.idle_since + life.RUN_PROTECTION - timedelta(seconds=1)) == []
    assert sweep(database, at=entry.idle_since + life.RUN_PROTECTION) == [protection.slot]
    assert left(database) == (0, 0)


@pytest.mark.parametrize("comment", ["null", "'ours'", "'{}'"], ids=["none", "text", "other json"])
def test_what_may_be_somebody_elses_is_left_and_named(database: TestDatabase, comment: str) -> None:
    protection = held_until(database, NOW)
    database.execute(f"comment on publication {protection.publication} is {comment}")
    notes = Notes()
    assert sweep(database, notes, at=NOW + timedelta(days=365)) == []
    assert sweep(database, notes, wal_limit=1) == []
    assert f"{protection.slot}, which kept " in notes.notes[-1]
    assert "whose it is cannot be told" in notes.notes[-1]
    rows = [row for row in table(database) if row["slot"] == protection.slot]
    assert str(rows[0]["state"]).startswith("Unknown owner")
    release_slot(database.cluster, protection.slot)
    assert left(database) == (0, 0)


def test_slots_that_only_look_like_ours_are_left_also_by_an_uninstall(database: TestDatabase) -> None:
    database.execute("select pg_create_logical_replication_slot('spanvault_theirs', 'pgoutput')")
    database.execute("select pg_create_physical_replication_slot('spanvault_abcdef012345_1', true)")
    try:
        assert sweep(database, at=NOW + timedelta(days=365), wal_limit=1) == []
        release_all(database.cluster)
        query = "select slot_name from pg_replication_slots where slot_name like 'spanvault%' order by 1"
        assert database.execute(query) == [("spanvault_abcdef012345_1",), ("spanvault_theirs",)]
    finally:
        database.execute("select pg_drop_replication_slot('spanvault_abcdef012345_1')")


# --- the disk ---


def test_a_protection_that_keeps_too_much_log_is_released_loudly(
    database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    protection = held_until(database, NOW + timedelta(days=30))
    database.execute("create table t as select repeat('x', 1000) from generate_series(1, 3000)")
    notes = Notes()
    assert sweep(database, notes, wal_limit=1 << 40) == []
    assert sweep(database, notes, wal_limit=0) == []
    with caplog.at_level(logging.ERROR):
        assert protection.slot in sweep(database, notes, wal_limit=1 << 20)
    (told,) = [note for note in notes.notes if protection.slot in note]
    assert "bytes of log on the source's disk, more than the 1048576 bytes that SPANVAULT_WAL_LIMIT allows." in told
    assert told.endswith("Its chain is closed, and the next backup is a full one.")
    assert told in [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert left(database) == (0, 0)


def test_a_slot_that_is_read_at_this_moment_stays_and_the_alarm_says_so(
    database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    protection = held_until(database, NOW)
    with connect(database.endpoint, purpose="test", replication=True) as walsender:
        options = f"(proto_version '1', publication_names '{protection.publication}')"
        walsender.pgconn.send_query(f"START_REPLICATION SLOT {protection.slot} LOGICAL 0/0 {options}".encode())
        walsender.pgconn.get_result()
        assert sweep(database) == []
        with caplog.at_level(logging.ERROR):
            assert protection.slot not in sweep(database, wal_limit=1)
        walsender.pgconn.finish()
    assert f"{protection.slot}, which kept " in caplog.text
    assert "stays for now: " in caplog.text


# --- the listing ---


def table(database: TestDatabase, wal_limit: int = 0) -> list[dict[str, object]]:
    """The listing's rows."""
    context = Context(settings=Settings.model_validate({"wal_limit": wal_limit}), clock=lambda: NOW)
    return [dict(row) for row in protection_table(context, database.cluster, all_held(database.cluster)).dicts()]


def test_the_listing_tells_owner_age_end_log_and_what_pins_it(database: TestDatabase) -> None:
    database.execute("create table t (id int primary key)")
    protection = held_until(database, NOW + timedelta(days=1))
    owner = Owner(
        collection_id=ID,
        collection="file:///c?COCKROACH_LOCALITY=default\nfile:///eu?COCKROACH_LOCALITY=region%3Deu",
        expires_at=NOW + timedelta(days=1),
        run_key="run 7",
        seen_at=NOW - timedelta(hours=1),
    )
    with connect(database.endpoint, purpose="test") as connection:
        mark(connection, protection.publication, owner)
    with psycopg.connect(database.url, application_name="till") as writer:
        writer.execute("insert into t values (1)")
        (row,) = [row for row in table(database) if row["slot"] == protection.slot]
        assert str(row["oldest_transaction"]).startswith(
            f"process {writer.info.backend_pid} (till, database {database.name}, open"
        )
    assert (row["database"], row["run"]) == (database.name, "run 7")
    assert row["collection"] == "file:///c?COCKROACH_LOCALITY=default and 1 more"
    assert row["seen_at"] == "2029-12-31 23:00:00.000000+00"
    assert row["expires_at"] == "2030-01-02 00:00:00.000000+00"
    assert (row["status"], row["active"], row["headroom_bytes"]) == ("reserved", False, None)
    assert int(str(row["wal_retained_bytes"])) > 0
    assert row["state"] == "Holds."


OWNER = Owner(collection_id=ID, collection="file:///c", expires_at=NOW + timedelta(days=1))
HELD = Held(
    slot=f"spanvault_{ID}_5", database="shop", publication=f"spanvault_{ID}", owner=OWNER, active=False, status="reserved",
    retained_bytes=40, headroom_bytes=None, confirmed=None,
)  # fmt: skip
STATES = {
    "holds": ({}, 100, "Holds."),
    "no limit": ({"retained_bytes": 1 << 50}, 0, "Holds."),
    "no slot": ({"present": False}, 100, "A publication without a slot: "),
    "lost": ({"status": "lost"}, 100, "The server gave its log up (it held more log than max_slot_wal_keep_size): "),
    "idle": ({"status": "lost", "reason": "idle_timeout"}, 100, "The server gave its log up (idle_timeout): "),
    "closed database": ({"seen": False, "publication": None, "owner": None}, 100, "Its database cannot be looked into"),
    "no publication": ({"publication": None, "owner": None}, 100, "Its publication is gone"),
    "unknown": ({"owner": None}, 100, "Unknown owner: "),
    "foreign": ({"named": False, "owner": None}, 100, "Not Spanvault's"),
    "read": ({"active": True}, 100, "A run reads it."),
    "expired": ({"owner": OWNER.model_copy(update={"expires_at": NOW})}, 100, "Expired: "),
    "unreserved": ({"status": "unreserved"}, 100, "The server is about to give its log up"),
    "over": ({"retained_bytes": 101}, 100, "It keeps more log than SPANVAULT_WAL_LIMIT allows"),
    "half of ours": ({"retained_bytes": 51}, 100, "More than half of the log that it may keep is used up"),
    "half of the server's": ({"headroom_bytes": 39}, 100, "More than half of the log that it may keep is used up"),
}


@pytest.mark.parametrize(("facts", "limit", "sentence"), STATES.values(), ids=STATES)
def test_where_a_protection_stands(facts: dict[str, object], limit: int, sentence: str) -> None:
    assert state_of(HELD.model_copy(update=facts), NOW, limit).startswith(sentence)


# --- preflight ---


def advised(database: TestDatabase, name: str, interval: timedelta | None = None) -> list[tuple[str, str]]:
    """(status, detail) of the checks of that name."""
    with connect(database.endpoint, purpose="test") as connection:
        return [(check.status, check.detail) for check in advice(connection, interval) if check.name == name]


@pytest.mark.parametrize(
    ("hours", "status"),
    [(None, "warning"), (1, "ok"), (12, "ok"), (13, "warning"), (24, "failed"), (48, "failed")],
    ids=["unknown", "hourly", "half", "more than half", "equal", "longer"],
)
def test_the_idle_limit_is_held_against_the_interval(database: TestDatabase, hours: int | None, status: str) -> None:
    database.execute("alter system set idle_replication_slot_timeout = '24h'")
    database.execute("select pg_reload_conf()")
    try:
        (found,) = advised(database, "idle_replication_slot_timeout", None if hours is None else timedelta(hours=hours))
    finally:
        database.execute("alter system reset idle_replication_slot_timeout")
        database.execute("select pg_reload_conf()")
    assert found[0] == status
    assert "1 day, 0:00:00" in found[1]


def test_slots_that_fail_over_should_wait_for_their_standbys(database: TestDatabase) -> None:
    assert advised(database, "synchronized_standby_slots") == []
    database.execute("select pg_create_logical_replication_slot('over', 'pgoutput', false, false, true)")
    ((status, detail),) = advised(database, "synchronized_standby_slots")
    assert status == "warning"
    assert "slots fail over (over) and wait for no standby" in detail


def test_the_disk_that_reading_the_log_takes_is_told(database: TestDatabase) -> None:
    ((status, detail),) = advised(database, "temporary disk")
    assert status == "ok"
    assert "larger than 64MB" in detail


def test_the_limit_on_log_is_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANVAULT_WAL_LIMIT", raising=False)
    assert Settings.load().wal_limit == 10 * 1024**3
    monkeypatch.setenv("SPANVAULT_WAL_LIMIT", "64GiB")
    assert Settings.load().wal_limit == 64 * 1024**3
    monkeypatch.setenv("SPANVAULT_WAL_LIMIT", "0")
    assert Settings.load().wal_limit == 0


def test_a_database_that_refuses_us_does_not_keep_a_backup_from_starting(database: TestDatabase, tmp_path: Path) -> None:
    with fresh_database(database.server, "closed") as other:
        protection = held_until(other, NOW)
        database.execute(f'alter database "{other.name}" allow_connections false')
        try:
            assert protection.slot not in sweep(database)
            (entry,) = [entry for entry in all_held(database.cluster) if entry.slot == protection.slot]
            assert (entry.seen, entry.owner) == (False, None)
        finally:
            database.execute(f'alter database "{other.name}" allow_connections true')
