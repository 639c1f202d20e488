"""Faults of the source's change log between the layers of real chains: never a gap, always a sentence, and the next full."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from spanvault.backup.protection import RUN_PROTECTION
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.protections import release_expired
from spanvault.errors import BrokenChain
from spanvault.model.clock import now
from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, fresh_database

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(servers_folder: Path) -> Iterator[PostgresServer]:
    """A server whose slots may come to harm."""
    with PostgresServer(servers_folder / "chain-faults", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture
def own_server(servers_folder: Path, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server of one test, which may stop or kill it."""
    with PostgresServer(servers_folder / f"chain-{request.node.name}", settings=SOURCE_SETTINGS) as server:
        yield server


@pytest.fixture
def backup(server: PostgresServer, tmp_path: Path) -> Iterator[Backup]:
    """A database with a table, not backed up yet."""
    with fresh_database(server, "chain") as database:
        yield filled(database, tmp_path / "c")


def filled(database: TestDatabase, folder: Path) -> Backup:
    database.execute("create table t (id int primary key, n int); insert into t select i, 0 from generate_series(1, 200) i")
    return Backup(database, folder)


def write(backup: Backup, step: int) -> None:
    """Change, add and delete rows."""
    backup.database.execute(f"update t set n = {step} where id % 7 = {step % 7}")
    backup.database.execute(f"insert into t select i, {step} from generate_series({1000 * step}, {1000 * step + 20}) i")
    backup.database.execute(f"delete from t where id % 50 = {step}")


def chain_of_two(backup: Backup) -> tuple[Manifest, list[str]]:
    """A full and an incremental; the newest manifest and the source's rows at its end."""
    backup.take()
    write(backup, 1)
    newest = backup.increment()
    assert (newest.kind, newest.number) == ("incremental", 1)
    return newest, backup.source_rows("t")


def objects(backup: Backup) -> set[str]:
    return {str(path.relative_to(backup.folder)) for path in backup.folder.rglob("*") if path.is_file()}


def held(backup: Backup) -> tuple[str, str]:
    """(slot, publication)."""
    slot = backup.database.execute("select slot_name from pg_replication_slots where database = current_database()")[0][0]
    return slot, slot.rpartition("_")[0]


def assert_closed_and_followed_by_a_full(backup: Backup, newest: Manifest, then: list[str], phrase: str) -> None:
    """The chain does not go on: by option nothing is done, else a full begins a new chain; both restore rightly."""
    before = objects(backup)
    with pytest.raises(BrokenChain, match=phrase) as caught:
        backup.increment(on_broken_chain="fail")
    assert str(caught.value).endswith(f"so the chain ends at {newest.end.lsn} and the next backup is a full one.")
    assert objects(backup) == before
    full = backup.increment()
    assert (full.kind, full.number) == ("full", 0)
    assert full.subdir > newest.subdir
    assert any(phrase.replace("\\", "") in note and "A full backup is taken instead." in note for note in backup.progress.notes)
    assert backup.rows(newest, "t") == then
    assert backup.rows(full, "t") == backup.source_rows("t")
    write(backup, 3)
    following = backup.increment()
    assert (following.subdir, following.number) == (full.subdir, 1)
    assert backup.rows(following, "t") == backup.source_rows("t")
    assert backup.rows(newest, "t") == then


def drop_slot(backup: Backup) -> None:
    backup.database.execute("select pg_drop_replication_slot(%s)", [held(backup)[0]])


def recreate_slot(backup: Backup) -> None:
    slot, _ = held(backup)
    drop_slot(backup)
    backup.database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def move_slot(backup: Backup) -> None:
    backup.database.execute("update t set n = 7 where id = 3")
    backup.database.execute("select pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [held(backup)[0]])


def lose_slot(backup: Backup) -> None:
    backup.database.execute("alter system set max_slot_wal_keep_size = '1MB'")
    backup.database.execute("select pg_reload_conf()")
    for step in range(4):
        backup.database.execute(f"update t set n = {step} where id = 1")
        backup.database.execute("select pg_switch_wal()")
    backup.database.execute("checkpoint")
    backup.database.execute("alter system reset max_slot_wal_keep_size")
    backup.database.execute("select pg_reload_conf()")


def drop_publication(backup: Backup) -> None:
    backup.database.execute(f"drop publication {held(backup)[1]}")


def recreate_publication(backup: Backup) -> None:
    drop_publication(backup)
    backup.database.execute(f"create publication {held(backup)[1]} for table only t")


def alter_publication(backup: Backup) -> None:
    backup.database.execute(f"alter publication {held(backup)[1]} set (publish = 'insert')")


FAULTS = {
    "slot dropped": (drop_slot, "was dropped, or the source restored without it"),
    "slot made anew": (recreate_slot, "somebody made it anew or moved it"),
    "slot moved": (move_slot, "somebody made it anew or moved it"),
    "slot lost": (lose_slot, "wal_removed: it held more log than max_slot_wal_keep_size"),
    "publication dropped": (drop_publication, "was dropped"),
    "publication made anew": (recreate_publication, "was dropped and made anew"),
    "publication altered": (alter_publication, "does not publish every operation by leaf table any more"),
}


@pytest.mark.parametrize(("fault", "phrase"), FAULTS.values(), ids=FAULTS)
def test_a_fault_closes_the_chain_and_the_next_backup_is_a_full(
    backup: Backup, fault: Callable[[Backup], None], phrase: str
) -> None:
    newest, then = chain_of_two(backup)
    fault(backup)
    write(backup, 2)
    assert_closed_and_followed_by_a_full(backup, newest, then, phrase)


def test_a_table_that_was_out_of_the_publication_is_whole_in_the_next_layer(backup: Backup) -> None:
    newest, then = chain_of_two(backup)
    _, publication = held(backup)
    backup.database.execute(f"alter publication {publication} drop table only t")
    write(backup, 2)
    backup.database.execute(f"alter publication {publication} add table only t")
    following = backup.increment(on_broken_chain="fail")
    assert (following.subdir, following.number) == (newest.subdir, 2)
    assert backup.rows(following, "t") == backup.source_rows("t")
    assert backup.rows(newest, "t") == then


def test_a_publication_altered_and_altered_back_makes_every_table_whole_in_the_next_layer(backup: Backup) -> None:
    newest, then = chain_of_two(backup)
    alter_publication(backup)
    write(backup, 2)
    backup.database.execute(f"alter publication {held(backup)[1]} set (publish = 'insert, update, delete, truncate')")
    following = backup.increment(on_broken_chain="fail")
    assert (following.subdir, following.number) == (newest.subdir, 2)
    assert backup.rows(following, "t") == backup.source_rows("t")
    assert backup.rows(newest, "t") == then


def test_a_slot_that_lags_after_a_crash_of_the_server_repeats_nothing(own_server: PostgresServer, tmp_path: Path) -> None:
    """An advance is durable at the next checkpoint only, unless the slot's needs changed as well; so that it never is here,
    the slot's file from before the layer is put back after the crash."""
    with fresh_database(own_server, "chain") as database:
        backup = filled(database, tmp_path / "c")
        newest, then = chain_of_two(backup)
        database.execute("checkpoint")
        state, kept = own_server.data / "pg_replslot" / held(backup)[0], own_server.directory / "slot"
        subprocess.run(["cp", "-a", state, kept], check=True)
        write(backup, 2)
        second, then_second = backup.increment(), backup.source_rows("t")
        own_server.kill()
        shutil.rmtree(state)
        kept.rename(state)
        own_server.start()
        confirmed = f"select confirmed_flush_lsn < '{second.end.lsn}' from pg_replication_slots where slot_name = '{state.name}'"
        assert database.execute(confirmed) == [(True,)]
        write(backup, 3)
        third = backup.increment(on_broken_chain="fail")
        assert (third.subdir, third.number) == (newest.subdir, 3)
        assert backup.rows(third, "t") == backup.source_rows("t")
        assert backup.rows(second, "t") == then_second
        assert backup.rows(newest, "t") == then


def test_a_crash_between_commit_and_advance_is_made_good_by_the_next_run(backup: Backup) -> None:
    newest, _ = chain_of_two(backup)

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    write(backup, 2)
    backup.visits.clear()
    backup.at = {"commit.after_manifest": die}
    with pytest.raises(Killed):
        backup.increment()
    then = backup.source_rows("t")
    write(backup, 3)
    following = backup.increment(on_broken_chain="fail")
    assert (following.subdir, following.number) == (newest.subdir, 3)
    assert backup.rows(following, "t") == backup.source_rows("t")
    assert backup.rows(newest, "t", at=following.start.lsn) == then


def test_a_transaction_that_is_open_across_layers_is_whole_in_the_one_it_commits_in(backup: Backup) -> None:
    newest, then = chain_of_two(backup)
    # The log of an open transaction is what the next window begins before.
    with backup.database.connect(autocommit=False) as writer:
        writer.execute("insert into t select i, 9 from generate_series(5000, 5100) i")
        backup.wait = 0.5
        between = backup.increment(on_broken_chain="fail")
        writer.commit()
    backup.wait = 20
    following = backup.increment(on_broken_chain="fail")
    assert between.subdir == following.subdir == newest.subdir
    assert backup.rows(following, "t") == backup.source_rows("t") != then
    assert backup.rows(between, "t") == backup.rows(newest, "t") == then


@pytest.mark.parametrize("went_on", [False, True], ids=["stopped", "went on"])
def test_a_source_rolled_back_closes_the_chain(own_server: PostgresServer, tmp_path: Path, went_on: bool) -> None:
    with fresh_database(own_server, "chain") as database:
        backup = filled(database, tmp_path / "c")
        backup.take()
        own_server.stop()
        copy = own_server.directory / "copy"
        subprocess.run(["cp", "-a", own_server.data, copy], check=True)
        own_server.start()
        for step in (1, 2):
            write(backup, step)
        newest, then = backup.increment(), backup.source_rows("t")
        own_server.stop()
        shutil.rmtree(own_server.data)
        copy.rename(own_server.data)
        own_server.start()
        if went_on:
            database.execute("insert into t select i, 5 from generate_series(20000, 60000) i")
        phrase = "was rolled back and went on: its log has " if went_on else "was rolled back: its log ends at "
        assert_closed_and_followed_by_a_full(backup, newest, then, phrase)


def test_a_promoted_standby_closes_the_chain(own_server: PostgresServer, tmp_path: Path) -> None:
    with fresh_database(own_server, "chain") as database:
        backup = filled(database, tmp_path / "c")
        newest, then = chain_of_two(backup)
        folder = own_server.directory.with_name(own_server.directory.name + "-standby")
        standby = PostgresServer.standby_of(own_server, folder)
        try:
            standby.start()
            own_server.stop()  # a clean stop sends all that was written to the standby
            standby.promote()
            backup.database = TestDatabase(standby, database.name)
            write(backup, 2)
            assert_closed_and_followed_by_a_full(backup, newest, then, "and has no slot of this chain")
        finally:
            standby.remove()


def test_a_chain_whose_log_grew_beyond_the_limit_is_closed_loudly(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newest, then = chain_of_two(backup)
    slot, _ = held(backup)
    backup.database.execute("create table big as select repeat('x', 1000) from generate_series(1, 3000)")
    monkeypatch.setenv("SPANVAULT_WAL_LIMIT", "1MiB")
    with caplog.at_level(logging.ERROR):
        full = backup.increment()
    assert (full.kind, full.number) == ("full", 0)
    assert f"Released the protection {slot}, which kept " in caplog.text
    assert "Its chain is closed, and the next backup is a full one." in caplog.text
    assert backup.rows(full, "t") == backup.source_rows("t")
    assert backup.rows(newest, "t") == then


def test_the_sweep_leaves_a_running_backup_alone(backup: Backup) -> None:
    """However long ago its chain's end was put off: a run gives signs of life."""
    chain_of_two(backup)
    write(backup, 2)
    swept: list[list[str]] = []

    def sweep() -> None:
        later = Context(settings=backup.context.settings, clock=lambda: now() + RUN_PROTECTION - timedelta(minutes=1))
        swept.append(release_expired(later, backup.database.cluster))

    backup.visits.clear()
    backup.at = {"seal.after_window": sweep, "commit.after_manifest": sweep, "plan.after_plan": sweep}
    following = backup.increment(on_broken_chain="fail")
    assert swept
    assert [slot for slots in swept for slot in slots] == []
    assert backup.rows(following, "t") == backup.source_rows("t")


@pytest.mark.parametrize("loss", ["drop constraint t_pkey", "replica identity nothing"], ids=["key dropped", "nothing"])
def test_a_table_that_lost_its_identity_is_whole_in_the_next_layer_and_the_application_works_again(
    backup: Backup, loss: str
) -> None:
    newest, then = chain_of_two(backup)
    backup.database.execute(f"alter table t {loss}")
    backup.database.execute("insert into t values (7000, 7)")
    following = backup.increment(on_broken_chain="fail")
    assert (following.subdir, following.number) == (newest.subdir, 2)
    assert backup.rows(following, "t") == backup.source_rows("t")
    backup.database.execute("update t set n = n + 1")
    assert backup.rows(newest, "t") == then
    last = backup.increment(on_broken_chain="fail")
    assert backup.rows(last, "t") == backup.source_rows("t")
