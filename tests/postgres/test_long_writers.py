"""Writers that never end: an incremental goes on by the log alone, and what must be read at its cut comes with a later one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from spanvault.backup import prepare
from spanvault.database.postgres.server import open_transactions
from spanvault.errors import Busy
from spanvault.model.clock import now
from spanvault.model.manifest import Manifest, ManifestTable
from spanvault.model.request import BackupOptions
from spanvault.model.target import DatabaseTarget
from spanvault.restore.origin import AtCut
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, fresh_database

pytestmark = pytest.mark.slow

SHORT = 0.5  # seconds that a seal waits for the writer here
BIG = "(select string_agg(md5(random()::text), '') from generate_series(1, 400) where i > 0)"  # TOASTed


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    """A full of a table with a key, `t`, and one without, `k`."""
    database.execute(
        "create table t (id int primary key, v text, n int); alter table t alter v set storage external;"
        f"insert into t select i, {BIG}, 0 from generate_series(1, 200) i;"
        "create table k (a int); insert into k select i from generate_series(1, 50) i; create sequence s"
    )
    backup = Backup(database, tmp_path / "collection")
    backup.take()
    backup.wait = SHORT
    yield backup


@pytest.fixture
def writer(backup: Backup) -> Iterator[psycopg.Connection[Any]]:
    """A transaction of the application that wrote and stays open."""
    with backup.database.connect(autocommit=False) as session:
        session.execute("insert into t values (9000, 'open', 1)")
        session.execute("update t set n = 77 where id = 200")
        yield session


def write(backup: Backup, step: int) -> None:
    """Change, add, move and delete rows; large values stay as they are."""
    backup.database.execute(
        f"update t set n = {step} where id % 7 = {step}; insert into t values ({1000 + step}, 'new', {step});"
        f"update t set id = id + 5000 where id = {step + 20}; delete from t where id = {step + 50}"
    )


def entry(manifest: Manifest, name: str) -> ManifestTable:
    found = manifest.databases[0]
    oid = next(table.oid for table in found.database.tables if table.name == name)
    return next(one for one in found.tables if one.oid == oid)


def omitted(manifest: Manifest) -> str:
    return "; ".join(manifest.databases[0].omitted)


def test_layers_follow_each_other_while_a_writer_stays_open(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    held = []
    for step in (1, 2, 3):
        write(backup, step)
        layer = backup.increment(on_broken_chain="fail")
        held.append((layer, backup.source_rows("t")))
    assert [layer.number for layer, _ in held] == [1, 2, 3]
    assert any(
        "transactions stayed open" in note and f"process {writer.info.backend_pid}" in note for note in backup.progress.notes
    )
    writer.commit()
    backup.wait = 20
    write(backup, 4)
    last = backup.increment(on_broken_chain="fail")
    held.append((last, backup.source_rows("t")))
    for layer, rows in held:
        assert backup.rows(layer, "t") == rows, f"layer {layer.number}"
    assert "(9000,open,1)" in backup.rows(last, "t")
    assert last.captured.lsn == last.end.lsn == last.databases[0].captured


def test_layers_that_end_at_times_come_while_a_writer_stays_open(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    write(backup, 1)
    moment, then = now(), backup.source_rows("t")
    write(backup, 2)
    backup.options = backup.options.model_copy(update={"revision_history": True})
    layer = backup.increment(as_of=moment)
    assert layer.end.time == moment
    assert backup.rows(layer, "t") == then
    inside, seen = now(), backup.source_rows("t")
    write(backup, 3)
    following = backup.increment(as_of=now())
    assert backup.rows(following, "t") == backup.source_rows("t")
    assert backup.rows(following, "t", at=inside) == seen


def test_a_table_without_identity_keeps_its_older_rows_and_is_named(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    before, full = backup.source_rows("k"), backup.resolved().manifest
    backup.database.execute("update k set a = a + 1000; update t set n = 5 where id = 1")
    layer = backup.increment()
    assert backup.rows(layer, "k") == before
    assert entry(layer, "k").as_of == entry(full, "k").as_of < layer.end.lsn
    assert "public.k" in omitted(layer)
    told = AtCut(backup.resolved()).elsewhere({backup.database.name: [entry(layer, "k").oid]}, rows=True)
    assert len(told) == 1
    assert told[0].startswith(f"public.k as of {full.end.lsn}")
    writer.rollback()
    backup.wait = 20
    following = backup.increment()
    assert backup.rows(following, "k") == backup.source_rows("k") != before
    assert "public.k" not in omitted(following)
    assert entry(following, "k").as_of == following.end.lsn


def test_large_objects_are_put_off_and_named(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.database.execute("select lo_from_bytea(4000, 'x')")
    layer = backup.increment()
    assert "large objects" in omitted(layer)
    missing = AtCut(backup.resolved()).missing
    assert {one.name for one in missing.values()} == {"pg_largeobject", "pg_largeobject_metadata"}
    assert all("put off" in one.why for one in missing.values())
    writer.rollback()
    backup.wait = 20
    assert "large objects" not in omitted(backup.increment())
    assert not AtCut(backup.resolved()).missing


def test_a_rewritten_table_is_not_restorable_at_that_end_and_is_whole_in_the_next(
    backup: Backup, writer: psycopg.Connection[Any]
) -> None:
    backup.database.execute("create table u (id int primary key, n int)")
    writer.rollback()
    backup.wait = 20
    backup.database.execute("insert into u select i, 0 from generate_series(1, 40) i")
    earlier, then = backup.increment(), backup.source_rows("u")
    backup.wait = SHORT
    writer.execute("insert into t values (9001, 'open', 1)")
    backup.database.execute("vacuum full u")
    layer = backup.increment()
    (missing,) = AtCut(backup.resolved()).missing.values()
    assert missing.name == "u"
    assert "public.u" in omitted(layer)
    assert backup.rows(layer, "t") == backup.source_rows("t")
    writer.rollback()
    backup.wait = 20
    following = backup.increment()
    assert backup.rows(following, "u") == then == backup.rows(earlier, "u")


def test_a_truncated_table_goes_on_by_the_log(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.database.execute("create table u (id int primary key); insert into u values (1)")
    writer.rollback()
    backup.wait = 20
    backup.increment()
    backup.wait = SHORT
    writer.execute("insert into t values (9001, 'open', 1)")
    backup.database.execute("truncate u; insert into u values (2)")
    layer = backup.increment()
    assert backup.rows(layer, "u") == ["(2)"]
    assert not AtCut(backup.resolved()).missing


def test_a_table_that_left_the_log_meanwhile_is_not_restorable_at_that_end(
    backup: Backup, writer: psycopg.Connection[Any]
) -> None:
    backup.database.execute("create table u (id int primary key); insert into u values (1)")
    writer.rollback()
    backup.wait = 20
    layer = backup.increment()
    publication = layer.databases[0].protection.publication
    backup.wait = SHORT
    writer.execute("insert into t values (9001, 'open', 1)")
    backup.database.execute(f"alter publication {publication} drop table u; insert into u values (2)")
    second = backup.increment()
    assert entry(second, "u").basis is None
    assert "public.u" in omitted(second)
    (missing,) = AtCut(backup.resolved()).missing.values()
    assert missing.name == "u"
    third = backup.increment()  # it is in the log again, but nobody has read it
    assert entry(third, "u").basis is None
    writer.rollback()
    backup.wait = 20
    fourth = backup.increment()
    assert backup.rows(fourth, "u") == ["(1)", "(2)"]
    assert backup.rows(layer, "u") == ["(1)"]


def test_a_changed_schema_cannot_be_put_off(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.database.execute("create table u (id int primary key); insert into u values (1)")
    with pytest.raises(Busy, match=rf"process {writer.info.backend_pid} .*the schema of .* changed"):
        backup.increment()
    writer.rollback()
    backup.wait = 20
    assert backup.rows(backup.increment(), "u") == ["(1)"]


def test_a_schema_that_changes_during_the_seal_cannot_be_put_off(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.visits.clear()
    backup.at = {"seal.before_schema": lambda: backup.database.execute("alter table k add column c int default 5")}
    with pytest.raises(Busy, match=r"the schema of .* changed"):
        backup.increment()


def test_what_is_written_behind_the_cut_comes_with_the_next_layer(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    write(backup, 1)
    then = backup.source_rows("t")
    backup.visits.clear()
    backup.at = {"seal.after_snapshot": lambda: write(backup, 2)}
    layer = backup.increment()
    assert backup.rows(layer, "t") == then
    assert backup.rows(backup.increment(), "t") == backup.source_rows("t")


def test_a_transaction_that_a_look_behind_the_cut_does_not_see_makes_it_sealed_again(
    backup: Backup, writer: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a commit that waits for a standby: it is in the log, and its DDL is not in the catalogs yet."""
    ((xid,),) = backup.database.execute("insert into t values (5001, 'x', 1) returning xmin::text::int8")
    seen: list[frozenset[int]] = []

    def once(session: Any) -> frozenset[int]:
        seen.append(open_transactions(session))
        return seen[-1] | ({xid} if len(seen) == 1 else set())

    monkeypatch.setattr("spanvault.backup.captured.open_transactions", once)
    layer = backup.increment()
    assert len(seen) > 1
    assert any("Sealing again" in note for note in backup.progress.notes)
    assert backup.rows(layer, "t") == backup.source_rows("t")


def test_fingerprints_are_left_out_and_that_is_said(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.options = BackupOptions(workers=1, fingerprint=True)
    layer = backup.increment()
    assert entry(layer, "t").fingerprint is None
    assert "fingerprints" in omitted(layer)


def test_tables_that_are_skipped_by_policy_are_not_put_off(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    layer = backup.increment(without_identity="skip")
    assert "tables without identity (public.k)" in omitted(layer)
    assert "put off" not in omitted(layer)


def test_a_prepared_transaction_and_a_writer_elsewhere_hold_nothing_up(backup: Backup) -> None:
    with fresh_database(backup.database.server, "other") as other, other.connect(autocommit=False) as elsewhere:
        elsewhere.execute("create table x (a int)")
        write(backup, 1)
        layer = backup.increment()
        assert backup.rows(layer, "t") == backup.source_rows("t")
    with backup.database.connect(autocommit=False) as session:
        session.execute("insert into t values (9000, 'prepared', 1)")
        session.execute("prepare transaction 'left over'")
    write(backup, 2)
    second = backup.increment()
    assert backup.rows(second, "t") == backup.source_rows("t")
    backup.database.execute("commit prepared 'left over'")
    third = backup.increment()
    assert backup.rows(third, "t") == backup.source_rows("t")


def test_several_databases_have_one_cut(backup: Backup, tmp_path: Path) -> None:
    with fresh_database(backup.database.server, "other") as other:
        other.execute("create table o (id int primary key); insert into o values (1)")
        both = Backup(backup.database, tmp_path / "both", target=DatabaseTarget(names=(backup.database.name, other.name)))
        both.take()
        both.wait = SHORT
        with other.connect(autocommit=False) as session:
            session.execute("insert into o values (2)")
            write(backup, 1)
            layer = both.increment()
            assert {one.captured for one in layer.databases} == {layer.end.lsn}
            assert both.rows(layer, "t") == both.source_rows("t")
            session.commit()
        other.execute("insert into o values (3)")
        following = both.increment()
        second = next(one for one in following.databases if one.database.name == other.name)
        assert [(table.rows, table.changes) for table in second.tables] == [(3, 2)]


def test_a_table_that_the_writer_locks_is_waited_for_no_longer(
    backup: Backup, writer: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "LOCK_WAIT_SECONDS", SHORT)
    writer.execute("alter table t add column c int")
    with pytest.raises(Busy, match=rf"stayed locked for .*process {writer.info.backend_pid}"):
        backup.increment()


def test_a_lock_that_comes_with_the_seal_is_waited_for_no_longer(backup: Backup, writer: psycopg.Connection[Any]) -> None:
    backup.visits.clear()
    backup.at = {"plan.after_plan": lambda: writer.execute("alter sequence s restart; lock table k")}
    with pytest.raises(Busy, match=rf"process {writer.info.backend_pid} .*they hold a lock"):
        backup.increment()
