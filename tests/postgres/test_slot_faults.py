"""What can happen to a source's change log between two layers of a chain, each really done to a real server.

`check` must say in one sentence what happened and that the next backup is a full one, or prove that nothing is missing.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from spanvault.database.postgres.catalog import read_database, read_tables
from spanvault.database.postgres.connect import connect
from spanvault.database.postgres.protect import Owner, advance, check, hold
from spanvault.database.postgres.server import Connection, identity
from spanvault.embedded.postgres import PostgresServer
from spanvault.errors import BrokenChain, Busy
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Commit, ManifestDatabase, ObjectReference, SourceIdentity, Window
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database

FULL_NEXT = r"so the chain ends at [0-9A-F]+/[0-9A-F]{8} and the next backup is a full one\."


@dataclass
class Layer:
    """A layer's end as a manifest would remember it, and the database it was read from."""

    database: TestDatabase
    entry: ManifestDatabase
    end: Lsn
    source: SourceIdentity

    def connect(self) -> Connection:
        """A session as the product's."""
        return connect(self.database.endpoint, purpose="test")

    def check(self) -> set[int]:
        """Test whether a layer may follow."""
        with self.connect() as connection:
            return check(connection, self.entry, self.end, self.source)

    def broken(self) -> str:
        """The sentence with which the chain ends; it is one, names the end and says what comes next."""
        with pytest.raises(BrokenChain, match=FULL_NEXT) as caught:
            self.check()
        sentence = str(caught.value)
        assert sentence.endswith(f"so the chain ends at {self.end} and the next backup is a full one.")
        assert not re.search(r"[.;] [A-Z]", sentence)
        return sentence

    def moved(self) -> Layer:
        """The slot moved to the layer's end, as after its commit."""
        with self.connect() as connection:
            assert advance(connection, self.slot, self.end)
        return self

    @property
    def slot(self) -> str:
        """The slot's name."""
        return self.entry.protection.slot

    @property
    def publication(self) -> str:
        """The publication's name."""
        return self.entry.protection.publication

    def confirmed(self) -> Lsn:
        """Where the slot stands."""
        query = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s"
        return Lsn.parse(self.database.execute(query, [self.slot])[0][0])


def take_layer(database: TestDatabase) -> Layer:
    """Protect the database's tables, change something, and end a layer there; its slot is not moved yet."""
    owner = Owner(collection_id="0123456789ab", collection="file:///c", expires_at=None)
    with connect(database.endpoint, purpose="test") as connection:
        properties = read_database(lambda text: connection.execute(text.encode()).fetchall())
        tables = read_tables(lambda text: connection.execute(text.encode()).fetchall())
        protection = hold(connection, owner, database.name, properties.oid, tables, 20)
        connection.execute("update public.t set n = n + 1 where id = 1")
        end = Lsn.parse(connection.execute("select pg_current_wal_flush_lsn()::text").fetchall()[0][0])
        source = identity(connection, "test")
        last = last_commit(connection, protection.slot, protection.publication, end)
    nothing = ObjectReference(path="schema.dump", sha256="0" * 64, bytes=0)
    entry = ManifestDatabase(
        database=properties.model_copy(update={"tables": tables}),
        protection=protection,
        captured=end,
        catalogs="",
        types_version="",
        window=Window(transactions=1, changes=1, last_commit=last),
        schema_dump=nothing,
        tables=(),
    )
    return Layer(database, entry, end, source)


def last_commit(connection: Connection, slot: str, publication: str, end: Lsn) -> Commit:
    """The last transaction before `end` as pgoutput's Begin messages tell it, read by the format's description alone."""
    rows = connection.execute(
        "select data from pg_logical_slot_peek_binary_changes(%s, null, null, 'proto_version', '1', 'publication_names', %s)",
        (slot, publication),
    ).fetchall()
    begins = [struct.unpack(">xQqI", row[0]) for row in rows if row[0][:1] == b"B"]
    lsn, microseconds, xid = [begin for begin in begins if begin[0] < end][-1]
    return Commit(lsn=Lsn(lsn), xid=xid, time=datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds))


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[PostgresServer]:
    """A server whose slots may come to harm."""
    with PostgresServer(servers_folder / "faults", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture
def own_server(servers_folder: Path, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server of one test, which may stop or kill it."""
    with PostgresServer(servers_folder / f"fault-{request.node.name}", settings=SOURCE_SETTINGS) as server:
        yield server


def filled(database: TestDatabase) -> TestDatabase:
    database.execute(
        "create table t (id int primary key, n int); create table u (id int primary key);"
        "insert into t select i, i from generate_series(1, 100) i"
    )
    return database


@pytest.fixture
def layer(server: PostgresServer) -> Iterator[Layer]:
    """A layer of a small database, its slot moved on."""
    with fresh_database(server, "fault") as database:
        yield take_layer(filled(database)).moved()


@contextmanager
def configured(database: TestDatabase, setting: str, value: str) -> Iterator[None]:
    """The server with this setting for the length of the block."""
    database.execute(f"alter system set {setting} = '{value}'")
    database.execute("select pg_reload_conf()")
    try:
        yield
    finally:
        database.execute(f"alter system reset {setting}")
        database.execute("select pg_reload_conf()")


def oid_of(layer: Layer, table: str) -> int:
    return int(layer.database.execute("select %s::regclass::oid::int8", [table])[0][0])


# --- nothing is missing ---


def test_an_untouched_log_goes_on(layer: Layer) -> None:
    layer.database.execute("insert into t values (1000, 0)")
    assert layer.check() == set()


def test_an_idle_database_goes_on(layer: Layer) -> None:
    assert layer.check() == set()
    assert layer.confirmed() == layer.end


def test_a_slot_that_was_never_moved_after_the_commit_is_moved_by_the_next_run(server: PostgresServer) -> None:
    with fresh_database(server, "fault") as database:
        layer = take_layer(filled(database))
        assert layer.confirmed() < layer.end
        database.execute("insert into t values (1000, 0)")
        assert layer.check() == set()
        assert layer.confirmed() == layer.end


def test_a_layer_without_transactions_goes_on_from_a_slot_that_lags(server: PostgresServer) -> None:
    with fresh_database(server, "fault") as database:
        layer = take_layer(filled(database)).moved()
        with layer.connect() as connection:
            connection.execute("select pg_logical_emit_message(true, 'else', 'not published')")
            end = Lsn.parse(connection.execute("select pg_current_wal_flush_lsn()::text").fetchall()[0][0])
        protection = layer.entry.protection.model_copy(update={"start": layer.end})
        empty = layer.entry.model_copy(update={"window": Window(), "protection": protection})
        assert Layer(database, empty, end, layer.source).check() == set()


def test_killed_before_the_checkpoint_the_slot_lags_and_nothing_is_lost(own_server: PostgresServer) -> None:
    with fresh_database(own_server, "fault") as database:
        layer = take_layer(filled(database))
        database.execute("checkpoint")
        layer.moved()
        own_server.kill()
        own_server.start()
        assert layer.confirmed() < layer.end, "the advance was durable, so the test shows nothing"
        database.execute("insert into t values (1000, 0)")
        assert layer.check() == set()
        assert layer.confirmed() == layer.end


def test_a_transaction_that_is_open_across_the_end_is_no_fault(layer: Layer) -> None:
    with layer.database.connect(autocommit=False) as writer:
        writer.execute("insert into t values (1000, 0)")
        assert layer.check() == set()
        writer.commit()
    assert layer.check() == set()


# --- the slot ---


def drop(layer: Layer) -> None:
    layer.database.execute("select pg_drop_replication_slot(%s)", [layer.slot])


def recreate(layer: Layer) -> None:
    drop(layer)
    layer.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [layer.slot])


def move(layer: Layer) -> None:
    layer.database.execute("insert into t values (1000, 0)")
    layer.database.execute("select pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [layer.slot])


def make_physical(layer: Layer) -> None:
    drop(layer)
    layer.database.execute("select pg_create_physical_replication_slot(%s)", [layer.slot])


SLOT_FAULTS = {
    "dropped": (drop, "was dropped, or the source restored without it"),
    "made anew": (recreate, "is ahead, at [0-9A-F/]+: somebody made it anew or moved it"),
    "moved": (move, "is ahead, at [0-9A-F/]+: somebody made it anew or moved it"),
    "physical": (make_physical, "is not Spanvault's"),
}


@pytest.mark.parametrize(("fault", "phrase"), SLOT_FAULTS.values(), ids=SLOT_FAULTS)
def test_a_slot_that_somebody_touched_ends_the_chain(layer: Layer, fault: Callable[[Layer], None], phrase: str) -> None:
    fault(layer)
    assert re.search(phrase, layer.broken())


def test_a_slot_of_another_database_ends_the_chain(layer: Layer) -> None:
    drop(layer)
    with fresh_database(layer.database.server, "other") as other:
        other.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [layer.slot])
        assert f"'pgoutput' in '{other.name}'" in layer.broken()


def test_a_slot_that_fell_behind_max_slot_wal_keep_size_ends_the_chain(layer: Layer) -> None:
    with configured(layer.database, "max_slot_wal_keep_size", "1MB"):
        for _ in range(4):
            layer.database.execute("insert into u select coalesce(max(id), 0) + 1 from u")
            layer.database.execute("select pg_switch_wal()")
        layer.database.execute("checkpoint")
    assert "(wal_removed: it held more log than max_slot_wal_keep_size)" in layer.broken()
    # The full that follows makes it anew.
    again = take_layer(layer.database).moved()
    assert again.slot == layer.slot
    assert again.check() == set()


def test_a_slot_that_idled_too_long_ends_the_chain(layer: Layer) -> None:
    with configured(layer.database, "idle_replication_slot_timeout", "1s"):
        time.sleep(1.5)
        layer.database.execute("checkpoint")
    assert "(idle_timeout: it was not used for idle_replication_slot_timeout)" in layer.broken()


def test_a_slot_in_use_is_busy(layer: Layer) -> None:
    with connect(layer.database.endpoint, purpose="test", replication=True) as walsender:
        start = f"START_REPLICATION SLOT {layer.slot} LOGICAL 0/0 (proto_version '1', publication_names '{layer.publication}')"
        walsender.pgconn.send_query(start.encode())
        walsender.pgconn.get_result()
        with pytest.raises(Busy, match="is in use by another session"):
            layer.check()
        walsender.pgconn.finish()


# --- the publication ---


def drop_publication(layer: Layer) -> None:
    layer.database.execute(f"drop publication {layer.publication}")


def recreate_publication(layer: Layer) -> None:
    drop_publication(layer)
    layer.database.execute(f"create publication {layer.publication} for table only t, only u")


def alter_operations(layer: Layer) -> None:
    layer.database.execute(f"alter publication {layer.publication} set (publish = 'insert')")


def alter_root(layer: Layer) -> None:
    layer.database.execute(f"alter publication {layer.publication} set (publish_via_partition_root = true)")


PUBLICATION_FAULTS = {
    "dropped": (drop_publication, "was dropped, so"),
    "made anew": (recreate_publication, "was dropped and made anew, so"),
    "operations": (alter_operations, "was altered: it does not publish every operation by leaf table any more, so"),
    "by root": (alter_root, "was altered: it does not publish every operation by leaf table any more, so"),
}


@pytest.mark.parametrize(("fault", "phrase"), PUBLICATION_FAULTS.values(), ids=PUBLICATION_FAULTS)
def test_a_publication_that_somebody_touched_ends_the_chain(layer: Layer, fault: Callable[[Layer], None], phrase: str) -> None:
    fault(layer)
    assert phrase in layer.broken()


def test_a_publication_altered_and_altered_back_puts_every_table_in_doubt(layer: Layer) -> None:
    alter_operations(layer)
    layer.database.execute("update t set n = 0")
    layer.database.execute(f"alter publication {layer.publication} set (publish = 'insert, update, delete, truncate')")
    assert layer.check() == {oid_of(layer, "t"), oid_of(layer, "u")}


def test_a_table_that_left_the_publication_and_came_back_is_in_doubt(layer: Layer) -> None:
    layer.database.execute(f"alter publication {layer.publication} drop table only t")
    layer.database.execute("update t set n = 0")
    layer.database.execute(f"alter publication {layer.publication} add table only t")
    assert layer.check() == {oid_of(layer, "t")}


@pytest.mark.parametrize("part", ["(id)", "where (id > 5)"], ids=["columns", "rows"])
def test_a_table_published_in_part_is_in_doubt_and_joins_whole_again(layer: Layer, part: str) -> None:
    layer.database.execute(f"alter publication {layer.publication} set table only t {part}, only u")
    assert oid_of(layer, "t") in layer.check()
    again = take_layer(layer.database)
    assert oid_of(layer, "t") in {row.table_oid for row in again.entry.protection.rows}


def test_a_publication_made_anew_gets_a_slot_that_is_not_older(layer: Layer) -> None:
    """A slot older than its publication fails to decode on old servers, and on new ones drops changes silently."""
    drop_publication(layer)
    layer.database.execute("update t set n = 0")
    again = take_layer(layer.database)
    assert again.confirmed() > layer.end
    assert again.check() == set()


# --- the source ---


def test_a_source_rolled_back_behind_the_end_ends_the_chain(own_server: PostgresServer) -> None:
    with fresh_database(own_server, "fault") as database:
        layer = rolled_back(own_server, filled(database))
        assert re.search(r"The source was rolled back: its log ends at [0-9A-F/]+", layer.broken())


def test_a_source_rolled_back_that_went_on_ends_the_chain(own_server: PostgresServer) -> None:
    with fresh_database(own_server, "fault") as database:
        layer = rolled_back(own_server, filled(database))
        database.execute("insert into t select i, i from generate_series(4000, 9000) i")
        assert "The source was rolled back and went on: its log has " in layer.broken()


OTHERS = {
    "position": lambda last: {"lsn": Lsn(last.lsn - 8)},
    "transaction": lambda last: {"xid": last.xid + 1},
    "time": lambda last: {"time": last.time + timedelta(microseconds=1)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_slot_that_lags_is_believed_only_if_the_last_transaction_is_the_very_same(
    server: PostgresServer, other: Callable[[Commit], dict[str, object]]
) -> None:
    """A rolled-back source may write the same position and id again, so the time counts as well."""
    with fresh_database(server, "fault") as database:
        layer = take_layer(filled(database))
        true_entry, last = layer.entry, layer.entry.window.last_commit
        assert last is not None
        window = Window(last_commit=last.model_copy(update=other(last)))
        layer.entry = true_entry.model_copy(update={"window": window})
        assert "was rolled back and went on" in layer.broken()
        layer.entry = true_entry.model_copy(update={"window": Window()})
        assert "not no transaction" in layer.broken()
        layer.entry = true_entry
        assert layer.check() == set()


def rolled_back(server: PostgresServer, database: TestDatabase) -> Layer:
    """The newer of two layers, on a server whose storage was set back to a copy taken between them."""
    take_layer(database).moved()
    server.stop()
    copy = server.directory / "copy"
    subprocess.run(["cp", "-a", server.data, copy], check=True)
    server.start()
    database.execute("insert into t select i, i from generate_series(2000, 3000) i")
    layer = take_layer(database).moved()
    server.stop()
    shutil.rmtree(server.data)
    copy.rename(server.data)
    server.start()
    return layer


def test_another_cluster_of_the_same_name_ends_the_chain(layer: Layer) -> None:
    layer.source = layer.source.model_copy(update={"system_identifier": "1"})
    assert "The source is another cluster" in layer.broken()


def test_a_database_that_was_dropped_and_made_anew_ends_the_chain(layer: Layer) -> None:
    with connect(layer.database.endpoint, "postgres") as control:
        control.execute(f"select pg_drop_replication_slot('{layer.slot}')".encode())
        control.execute(f'drop database "{layer.database.name}"'.encode())
        control.execute(f'create database "{layer.database.name}" template template0'.encode())
    assert f"The database '{layer.database.name}' was dropped and another one has its name" in layer.broken()


# --- promotion of a standby ---


@pytest.fixture
def standby(own_server: PostgresServer) -> Iterator[PostgresServer]:
    """A standby of `own_server`, not yet started."""
    server = PostgresServer.standby_of(
        own_server,
        own_server.directory.with_name(own_server.directory.name + "-standby"),
        settings={"hot_standby_feedback": "on"},
    )
    try:
        yield server
    finally:
        server.remove()


def followed(primary: PostgresServer, standby: PostgresServer) -> None:
    """Return when the standby has replayed all that the primary has written."""
    with psycopg.connect(primary.url(), autocommit=True) as session:
        row = session.execute("select pg_current_wal_insert_lsn()::text").fetchone()
    with psycopg.connect(standby.url(), autocommit=True) as session:
        deadline = time.monotonic() + 60
        caught_up = ("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [row[0] if row else None])
        while session.execute(*caught_up).fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def promoted(layer: Layer, standby: PostgresServer) -> Layer:
    """The layer, with its database on the promoted standby."""
    layer.database.server.stop(immediate=True)
    standby.promote()
    layer.database = TestDatabase(standby, layer.database.name)
    return layer


def test_a_promoted_standby_without_the_slot_ends_the_chain(own_server: PostgresServer, standby: PostgresServer) -> None:
    with fresh_database(own_server, "fault") as database:
        layer = take_layer(filled(database)).moved()
        standby.start()
        followed(own_server, standby)
        promoted(layer, standby)
        assert re.search(r"was promoted \(timeline 1 to 2 at [0-9A-F/]+\) and has no slot of this chain", layer.broken())
        layer.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [layer.slot])
        assert "its slot was made there, not kept in step" in layer.broken()


def test_a_promoted_standby_that_lacks_what_was_backed_up_ends_the_chain(
    own_server: PostgresServer, standby: PostgresServer
) -> None:
    with fresh_database(own_server, "fault") as database:
        filled(database)
        standby.start()
        followed(own_server, standby)
        standby.stop()
        layer = take_layer(database).moved()
        own_server.stop(immediate=True)
        standby.start()
        promoted(layer, standby)
        assert "without all that is in this backup" in layer.broken()


def test_a_promoted_standby_that_kept_the_slot_in_step_goes_on(own_server: PostgresServer, standby: PostgresServer) -> None:
    with fresh_database(own_server, "fault") as database:
        slot = take_layer(filled(database)).slot
        with connect(database.endpoint, purpose="test", replication=True) as walsender:
            walsender.execute(f"ALTER_REPLICATION_SLOT {slot} (FAILOVER true)".encode())
        standby.start()
        followed(own_server, standby)
        with psycopg.connect(standby.url(), autocommit=True) as session:
            upstream = f"host=127.0.0.1 port={own_server.port} user=postgres dbname=postgres application_name={standby.name}"
            session.execute(f"alter system set primary_conninfo = '{upstream}'".encode())
            session.execute("alter system set sync_replication_slots = on")
            session.execute("select pg_reload_conf()")
        layer = promoted(kept_in_step(database, standby), standby)
        layer.database.execute("insert into t values (1000, 0)")
        assert layer.check() == set()


def kept_in_step(database: TestDatabase, standby: PostgresServer) -> Layer:
    """Take layers until the standby's copy of the slot may serve after a promotion; the last of them."""
    deadline = time.monotonic() + 60
    with psycopg.connect(standby.url(), autocommit=True) as session:
        while True:
            database.execute("select pg_log_standby_snapshot()")
            layer = take_layer(database).moved()
            until = time.monotonic() + 1
            while time.monotonic() < until:
                query = "select confirmed_flush_lsn = %s::pg_lsn and not temporary from pg_replication_slots where slot_name = %s"
                if session.execute(query, [str(layer.end), layer.slot]).fetchone() == (True,):
                    return layer
                time.sleep(0.05)
            assert time.monotonic() < deadline
