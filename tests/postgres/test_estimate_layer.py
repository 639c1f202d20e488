"""What `--dry-run` says of an incremental: the log since the chain, the tables that are read whole, or why a full follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanvault.engine.estimate import estimate
from spanvault.errors import AlreadyCovered, BrokenChain, NotFound, Refused
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    """A chain of a full; its tables are `t`, with a key, and `k`, without."""
    database.execute(
        "create table t (id int primary key, v text); insert into t select i, repeat('x', 100) from generate_series(1, 1000) i;"
        "create table k (a int); insert into k values (1)"
    )
    yield Backup(database, tmp_path / "collection", options=BackupOptions(workers=1))


def told(backup: Backup, *, append: str = "LATEST", **changes: Any) -> dict[str, Any]:
    """The estimate's row; its notes are in `backup.progress`. Nothing may change for it, here or there."""
    options = backup.options.model_copy(update=changes)
    request = backup.request.model_copy(update={"append": append, "options": options})
    before = held(backup)
    backup.progress.notes.clear()
    (row,) = estimate(backup.context, backup.database.cluster, request).dicts()
    assert held(backup) == before
    return row


def held(backup: Backup) -> tuple[object, ...]:
    """What the source holds for us, and what the collection has."""
    slots = backup.database.execute("select slot_name, confirmed_flush_lsn from pg_replication_slots order by 1")
    rows = backup.database.execute(
        "select oid, xmin::text, obj_description(oid, 'pg_publication') from pg_publication order by 1"
    )
    return slots, rows, sorted(backup.folder.rglob("*"))


def reasons(backup: Backup) -> dict[str, str]:
    """Each table that a note says is read whole, and why."""
    notes = [note.removeprefix("Read whole, because ").rstrip(".") for note in backup.progress.notes if "Read whole" in note]
    return {table: why for note in notes for why, _, tables in [note.rpartition(": ")] for table in tables.split(", ")}


def test_the_log_since_the_chain_and_the_tables_that_it_does_not_tell(backup: Backup) -> None:
    database, full = backup.database, backup.take()
    quiet = told(backup)
    assert (quiet["path"], quiet["layer"], quiet["databases"], quiet["tables"]) == (full.subdir, 1, 1, 2)
    assert quiet["whole_tables"] == 1
    assert reasons(backup).keys() == {"public.k"}
    assert quiet["log_bytes"] < 1_000_000
    database.execute("update t set v = repeat('y', 2000)")
    database.execute("create table late (id int primary key); insert into late select generate_series(1, 5000)")
    written = told(backup)
    assert written["log_bytes"] > quiet["log_bytes"] + 2_000_000
    assert written["whole_tables"] == 2
    assert written["whole_bytes"] > database.execute("select pg_relation_size('late')")[0][0]
    assert "does not hold them yet" in reasons(backup)["public.late"]
    assert tables_read(backup) == {"k", "late"}, "what was told is what comes"


def tables_read(backup: Backup) -> set[str]:
    """The tables that an incremental, taken now, has whole."""
    (entry,) = backup.increment().databases
    names = {table.oid: table.name for table in entry.database.tables}
    return {names[table.oid] for table in entry.tables if table.basis == 1}


SHAPES = {
    "t1": ("alter table t1 alter n type bigint", "a type of theirs changed"),
    "t2": ("alter table t2 drop constraint t2_pkey, add primary key (n)", "their key or replica identity is another"),
    "t3": ("vacuum full t3", "they were rewritten or truncated"),
    "t4": ("alter table t4 drop constraint t4_pkey", "the log does not tell their changes (unless nothing changed)"),
    "t5": ("alter table t5 add c int default 7", None),
}


def test_each_reason_to_read_a_table_whole(backup: Backup) -> None:
    for table in SHAPES:
        backup.database.execute(f"create table {table} (id int primary key, n int not null); insert into {table} values (1, 1)")
    backup.take()
    for statement, _ in SHAPES.values():
        backup.database.execute(statement)
    told(backup)
    found = reasons(backup)
    assert {table: found.get(f"public.{table}") for table in SHAPES} == {table: why for table, (_, why) in SHAPES.items()}
    assert tables_read(backup) == {"k", "t1", "t2", "t3", "t4"}, "what was told is what comes"


def test_tables_that_are_skipped_or_refused(backup: Backup) -> None:
    backup.take()
    assert told(backup, without_identity="skip")["whole_tables"] == 0
    with pytest.raises(Refused, match=r"does not tell the changes of public\.k"):
        told(backup, without_identity="fail")


def test_a_chain_that_cannot_go_on_is_followed_by_a_full(backup: Backup) -> None:
    backup.take()
    slot = backup.database.execute("select slot_name from pg_replication_slots where database = current_database()")[0][0]
    backup.database.execute(f"select pg_drop_replication_slot('{slot}')")
    row = told(backup)
    assert (row["tables"], "layer" in row) == (2, False)
    assert any("was dropped" in note and "A full backup would be taken instead" in note for note in backup.progress.notes)
    with pytest.raises(BrokenChain, match="was dropped"):
        told(backup, on_broken_chain="fail")


def test_what_there_is_no_chain_for_and_what_is_covered(backup: Backup) -> None:
    with pytest.raises(NotFound):
        told(backup)
    full = backup.take()
    covered = backup.request.model_copy(update={"append": "LATEST", "as_of": full.end.time})
    with pytest.raises(AlreadyCovered, match="nothing was written"):
        estimate(backup.context, backup.database.cluster, covered)
