"""Tables whose changes the log does not tell, where the backup is told to leave them out or to fail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from spanvault.engine.context import Context
from spanvault.engine.maintenance import collection_check, compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.engine.steps import new_plan, seal_backup, write_manifest
from spanvault.errors import Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.request import RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget, Target
from spanvault.observe.show_backup import show_backup
from spanvault.verify.result import BACKUP_LEVELS
from tests.kit.harness import Backup, Notes
from tests.kit.servers import TestDatabase, drop_database

LEFT_OUT = r"no rows as of .* of public\.t \(left out by without_identity = 'skip'"


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Backup:
    """Two tables, one without a key, and a full backup of both."""
    database.execute("create table keyed (id int primary key); insert into keyed values (1); create table t (a int)")
    database.execute("insert into t select generate_series(1, 5)")
    made = Backup(database, tmp_path / "collection")
    made.take()
    return made


@pytest.fixture
def target(database: TestDatabase) -> Iterator[TestDatabase]:
    """The name of a database that does not exist yet."""
    made = TestDatabase(database.server, f"{database.name}_r")
    yield made
    drop_database(database.server, made.name)


def restore(
    backup: Backup,
    target: TestDatabase,
    at: Lsn | None = None,
    what: Target | None = None,
    subdir: str = "LATEST",
    **options: object,
) -> Notes:
    notes = Notes()
    place = {"new_db_name": target.name} if what is None else {"into_db": target.name}
    request = RestoreRequest(
        target=what or DatabaseTarget(names=(backup.database.name,)),
        collection=backup.uri,
        subdir=subdir,
        as_of=at,
        options=RestoreOptions.model_validate({**place, **options}),
    )
    run_restore(Context(progress=notes), backup.database.cluster, request, processes=False)
    return notes


def rows_restored(backup: Backup, target: TestDatabase, at: Lsn | None = None) -> list[tuple[int]]:
    restore(backup, target, at)
    rows = target.execute("select a from t order by a")
    drop_database(backup.database.server, target.name)
    return rows


def skip(backup: Backup, value: int, *, history: bool = False) -> Manifest:
    """A change of both tables, and a layer that leaves the one out."""
    backup.database.execute(f"insert into keyed values ({value}); update t set a = a + {value}")
    return backup.increment(without_identity="skip", revision_history=history)


def test_a_layer_that_leaves_a_table_out_has_no_rows_of_it(backup: Backup, target: TestDatabase) -> None:
    """An empty table would look like one that had no rows."""
    full = backup.resolved().cut.lsn
    layer = skip(backup, 10)
    with pytest.raises(Refused, match=LEFT_OUT + r"; restorable up to "):
        restore(backup, target)
    with pytest.raises(Refused, match=LEFT_OUT):
        restore(backup, target, strict=True)
    with pytest.raises(Refused, match=LEFT_OUT):
        restore(backup, target, what=TableTarget(patterns=(TablePattern(schema_name="public", name="t"),)))
    notes = restore(backup, target, skip_unrestorable_tables=True).notes
    assert any("public.t (left out by without_identity = 'skip'" in note for note in notes)
    assert target.execute("select * from keyed order by id") == [(1,), (10,)]
    drop_database(backup.database.server, target.name)
    assert rows_restored(backup, target, full) == [(1,), (2,), (3,), (4,), (5,)]
    assert layer.databases[0].omitted == ("the rows of tables without identity (public.t)",)


def test_the_next_layer_that_does_not_leave_it_out_has_its_rows(backup: Backup, target: TestDatabase) -> None:
    skip(backup, 10)
    skip(backup, 20)
    whole = backup.increment()
    assert rows_restored(backup, target) == [(31,), (32,), (33,), (34,), (35,)]
    unchanged = backup.increment()
    assert backup.capture(unchanged, "t") == "log", "it is read again only when it changed"
    assert rows_restored(backup, target, whole.end.lsn) == rows_restored(backup, target, unchanged.end.lsn)


def test_a_full_behind_such_a_layer_closes_the_chain(backup: Backup, target: TestDatabase) -> None:
    left_out = skip(backup, 10)
    full = backup.take()
    closing = backup.resolved(left_out.subdir).manifest
    assert (closing.number, closing.end) == (2, full.end)
    assert rows_restored(backup, target) == [(11,), (12,), (13,), (14,), (15,)]
    with pytest.raises(Refused, match=LEFT_OUT):
        restore(backup, target, subdir=left_out.subdir)


def test_a_moment_inside_a_layer_that_leaves_it_out(backup: Backup, target: TestDatabase) -> None:
    backup.database.execute("insert into keyed values (7)")
    ((inner,),) = backup.database.execute("select pg_current_wal_insert_lsn()::text")
    skip(backup, 10, history=True)
    with pytest.raises(Refused, match=LEFT_OUT):
        restore(backup, target, Lsn.parse(inner))
    restore(backup, target, Lsn.parse(inner), skip_unrestorable_tables=True)
    assert target.execute("select * from keyed order by id") == [(1,), (7,)]


def test_layers_that_end_at_times_behind_one_that_leaves_it_out(backup: Backup, target: TestDatabase) -> None:
    skip(backup, 10)
    times: list[datetime] = []
    for value in (20, 30):
        backup.database.execute(f"insert into keyed values ({value})")
        times.append(backup.database.execute("select clock_timestamp()")[0][0].astimezone(UTC))
    context, cluster = backup.context, backup.database.cluster
    request = backup.request.model_copy(update={"append": "LATEST"})
    plan = new_plan(context, cluster, request, run_key="late", times=times)
    last = write_manifest(context, backup.uri, plan, seal_backup(context, cluster, backup.uri, plan))
    assert [layer.number for layer in (backup.resolved("LATEST", times[0]).manifest, last)] == [2, 3]
    with pytest.raises(Refused, match=rf"public\.t \(restorable from {last.captured.lsn}"):
        restore(backup, target, backup.resolved("LATEST", times[0]).cut.lsn)
    assert rows_restored(backup, target, last.end.lsn) == [(11,), (12,), (13,), (14,), (15,)]


@pytest.mark.parametrize(("first", "number"), [(0, 1), (1, 2), (0, 2)])
def test_compacted_layers_say_what_their_last_one_says(backup: Backup, target: TestDatabase, first: int, number: int) -> None:
    skipped = skip(backup, 10)
    whole = backup.increment()
    compact_backups(backup.context, backup.uri, "LATEST", first=first, number=number)
    with pytest.raises(Refused, match=LEFT_OUT):
        restore(backup, target, skipped.end.lsn)
    assert rows_restored(backup, target, whole.end.lsn) == [(11,), (12,), (13,), (14,), (15,)]


def test_such_a_chain_passes_every_check_and_is_shown(backup: Backup) -> None:
    skip(backup, 10)
    for level in BACKUP_LEVELS:
        found_out = collection_check(backup.context, backup.uri, level)
    assert "public.t" in str(found_out.rows[-1][-1]), "its rows cannot be read, and that is said"
    found = {(row["object_name"], row["backup_type"]): row["rows"] for row in show_backup(backup.storage).dicts()}
    assert (found["t", "full"], found["t", "incremental"], found["keyed", "incremental"]) == (5, None, 2)


def held(backup: Backup) -> list[tuple[object, ...]]:
    """What the source holds for us: the publication with its comment and tables, and the slots."""
    return backup.database.execute(
        "select pubname::text, obj_description(p.oid, 'pg_publication'), (select array_agg(prrelid::text order by 1)"
        " from pg_publication_rel r where prpubid = p.oid) from pg_publication p"
        " union all select slot_name, confirmed_flush_lsn::text, null from pg_replication_slots"
        " where database = current_database() order by 1"
    )


def test_to_fail_on_such_a_table_leaves_nothing_behind(backup: Backup) -> None:
    backup.database.execute("create table late (id int primary key)")
    before = held(backup), sorted(backup.folder.rglob("*"))
    with pytest.raises(Refused, match=r"does not tell the changes of public\.t: .*without_identity = 'full' or 'skip'"):
        backup.increment(without_identity="fail")
    assert (held(backup), sorted(backup.folder.rglob("*"))) == before
    backup.database.execute("alter table t add primary key (a)")
    layer = backup.increment(without_identity="fail")
    assert backup.rows(layer, "t") == backup.source_rows("t")
