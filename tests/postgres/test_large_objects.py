"""Large objects: what a backup of a real server holds of them, and what a restore makes of it."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from spanvault.collection.files import read_files
from spanvault.config.clusters import Cluster
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import collection_check, compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.engine.restore_steps import abandon_restore, load_batch, plan_restore, restore_schema
from spanvault.errors import AlreadyExists, Damaged, Refused, SpanvaultError
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.request import BackupOptions, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.schema import LARGE_OBJECT_LIST, LARGE_OBJECT_PAGES
from spanvault.model.target import DatabaseTarget, TablePattern, TableTarget
from spanvault.observe.show_backup import show_backup
from tests.kit.faults import KILL, Faults, FaultyStorage
from tests.kit.harness import Backup, Notes
from tests.kit.servers import TestDatabase, drop_database, fresh_database

ROLES = ("spanvault_lo owner", "spanvault_lo_reader", "spanvault_lo_giver")
QUOTED = ", ".join(f'"{role}"' for role in ROLES)
# One of every kind: plain, without any page, with a hole, with a short page inside, cut in the middle of a page, lengthened
# by lo_truncate to the end of a page (which leaves an empty page), the same with data behind it, and large.
OBJECTS = r"""
    SELECT lo_from_bytea(100001, 'hello');
    SELECT lo_create(100002);
    SELECT lo_from_bytea(100003, 'start'), lo_put(100003, 9000000, '\x00ff00');
    SELECT lo_from_bytea(100004, 'short'), lo_put(100004, 5000, convert_to(repeat('x', 4000), 'UTF8'));
    SELECT lo_from_bytea(100005, convert_to(repeat('abcdef', 3000), 'UTF8'));
    SELECT lo_truncate(lo_open(100005, x'60000'::int), 7001);
    SELECT lo_from_bytea(100006, 'little'), lo_truncate64(lo_open(100006, x'60000'::int), 20480);
    SELECT lo_create(100007), lo_truncate64(lo_open(100007, x'60000'::int), 4096), lo_put(100007, 10000, 'behind');
    SELECT lo_from_bytea(100008, (SELECT string_agg(sha512(i::text::bytea), '' ORDER BY i) FROM generate_series(1, 20000) i));
    SELECT lo_from_bytea(4294967290, 'a large number');
    COMMENT ON LARGE OBJECT 100001 IS 'it''s "one"';
    ALTER LARGE OBJECT 100003 OWNER TO "spanvault_lo owner";
    ALTER LARGE OBJECT 100004 OWNER TO "spanvault_lo owner";
    GRANT SELECT ON LARGE OBJECT 100004 TO spanvault_lo_reader, PUBLIC;
    GRANT SELECT, UPDATE ON LARGE OBJECT 100004 TO spanvault_lo_giver WITH GRANT OPTION;
    SET ROLE spanvault_lo_giver;
    GRANT UPDATE ON LARGE OBJECT 100004 TO spanvault_lo_reader;
    RESET ROLE;
    REVOKE ALL ON LARGE OBJECT 100005 FROM CURRENT_USER;
    SELECT lo_create(i) FROM generate_series(200001, 200600) i;
    CREATE TABLE paper (id int PRIMARY KEY, scan oid); INSERT INTO paper VALUES (1, 100001)
"""
CHANGES = r"""
    SELECT lo_put(100001, 2, 'LLLL');
    SELECT lo_unlink(100003);
    SELECT lo_truncate(lo_open(100008, x'60000'::int), 3000);
    SELECT lo_from_bytea(100010, 'new');
    GRANT SELECT ON LARGE OBJECT 100001 TO spanvault_lo_reader
"""
# Everything that can be told of a large object; content by PostgreSQL's own reader.
_SEEN = """
    SELECT m.oid::text, md5(lo_get(m.oid)), octet_length(lo_get(m.oid)), obj_description(m.oid, 'pg_largeobject') {more}
    FROM pg_largeobject_metadata m ORDER BY m.oid
"""
_OWNED = """, lomowner::regrole::text, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(lomacl) a), lomacl IS NULL"""

Seen = list[tuple[Any, ...]]


def contents(database: TestDatabase) -> Seen:
    """Every large object but for its owner and privileges."""
    return database.execute(_SEEN.format(more=""))


def everything(database: TestDatabase) -> Seen:
    """Every large object."""
    return database.execute(_SEEN.format(more=_OWNED))


@dataclass
class Moment:
    """The source at some time between two transactions."""

    at: datetime
    seen: Seen


@dataclass
class Chain:
    """A chain of four layers, and the source at their ends; `inner` lies in the third, behind a change of its."""

    backup: Backup
    layers: list[Manifest] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    inner: Moment | None = None

    def add(self, manifest: Manifest) -> None:
        """A layer has just been taken."""
        self.layers.append(manifest)
        self.seen.append(everything(self.backup.database))


@pytest.fixture(scope="module")
def roles(postgres: PostgresServer) -> Iterator[None]:
    """The roles of OBJECTS, which are the cluster's."""
    control = TestDatabase(postgres, "postgres")
    control.execute(f"CREATE ROLE {'; CREATE ROLE '.join(QUOTED.split(', '))}")
    yield
    control.execute(f"DROP ROLE {QUOTED}")


@pytest.fixture(scope="module")
def chain(postgres: PostgresServer, roles: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A full; a layer with every kind of change; one with a change, a look and another change; one without any."""
    with fresh_database(postgres) as source:
        source.execute(OBJECTS)
        made = Chain(Backup(source, tmp_path_factory.mktemp("large") / "c"))
        made.add(made.backup.take())
        source.execute(CHANGES)
        made.add(made.backup.increment(revision_history=True))
        time.sleep(0.01)
        source.execute("INSERT INTO paper VALUES (2, 100010); SELECT lo_put(100010, 0, 'NEW')")
        time.sleep(0.01)
        made.inner = Moment(source.execute("SELECT clock_timestamp()")[0][0], everything(source))
        time.sleep(0.01)
        source.execute("INSERT INTO paper VALUES (3, 100010); SELECT lo_unlink(100002)")
        made.add(made.backup.increment(revision_history=True))
        source.execute("INSERT INTO paper VALUES (4, 100010)")
        made.add(made.backup.increment(revision_history=True))
        yield made


@pytest.fixture
def target(chain: Chain) -> Iterator[TestDatabase]:
    """The name of a database that does not exist yet."""
    made = TestDatabase(chain.backup.database.server, f"{chain.backup.database.name}_r")
    yield made
    drop_database(made.server, made.name)


def request_of(chain: Chain, target: TestDatabase, as_of: datetime | Lsn | None = None, **options: Any) -> RestoreRequest:
    """The whole database under another name, with owners and privileges."""
    chosen = RestoreOptions(**{"new_db_name": target.name, "grants": True, "verify_fingerprint": True, "workers": 1, **options})
    what = DatabaseTarget(names=(chain.backup.database.name,))
    return RestoreRequest(target=what, collection=chain.backup.uri, as_of=as_of, options=chosen)


def restored(chain: Chain, target: TestDatabase, as_of: datetime | Lsn | None = None, **options: Any) -> list[str]:
    """Restore; the notes."""
    notes = Notes()
    run_restore(Context(progress=notes), target.cluster, request_of(chain, target, as_of, **options), processes=False)
    return notes.notes


def files_of(chain: Chain, number: int) -> dict[int, list[str]]:
    """The data files of large objects in a layer, by table."""
    manifest = chain.layers[number]
    found: dict[int, list[str]] = {LARGE_OBJECT_LIST: [], LARGE_OBJECT_PAGES: []}
    for file in read_files(chain.backup.storage, manifest.subdir, manifest.files):
        if file.table_oid in found:
            found[file.table_oid].append(file.path)
    return found


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_every_layers_end_has_the_large_objects_of_then(chain: Chain, target: TestDatabase, number: int) -> None:
    restored(chain, target, chain.layers[number].end.lsn)
    assert everything(target) == chain.seen[number]


def test_what_did_not_change_is_not_stored_again(chain: Chain) -> None:
    assert all(all(files_of(chain, number).values()) for number in (0, 1, 2))
    assert not any(files_of(chain, 3).values())
    assert not any("Not backed up" in note for note in chain.backup.progress.notes), "nothing is left out"
    assert [database.omitted for layer in chain.layers for database in layer.databases] == [()] * 4


def test_a_time_inside_a_layer_has_those_of_the_reading_before(chain: Chain, target: TestDatabase) -> None:
    assert chain.inner is not None
    notes = " ".join(restored(chain, target, chain.inner.at))
    assert everything(target) == chain.seen[1] != chain.inner.seen
    assert target.execute("SELECT id FROM paper ORDER BY id") == [(1,), (2,)]
    assert "pg_catalog.pg_largeobject" in notes, notes
    assert "Not everything is as of" in notes
    with pytest.raises(Refused, match=r"strict takes nothing from elsewhere: .*pg_catalog\.pg_largeobject"):
        restored(chain, target, chain.inner.at, strict=True)


def test_a_compacted_layer_has_those_of_its_end(chain: Chain, target: TestDatabase, tmp_path: Path) -> None:
    shutil.copytree(chain.backup.folder, tmp_path / "c")
    copied = Chain(replace(chain.backup, folder=tmp_path / "c"), chain.layers, chain.seen, chain.inner)
    compact_backups(Context(), copied.backup.uri, "LATEST", first=1, number=3)
    assert plan_restore(Context(), target.cluster, request_of(copied, target)).layers == ("0-0", "1-3")
    restored(copied, target)
    assert everything(target) == chain.seen[3]


def test_without_grants_they_belong_to_who_restores_them(chain: Chain, target: TestDatabase) -> None:
    restored(chain, target, grants=False)
    assert contents(target) == [row[:4] for row in chain.seen[3]]
    assert target.execute("SELECT DISTINCT lomowner::regrole::text, lomacl::text FROM pg_largeobject_metadata") == [
        ("postgres", None)
    ]


def test_schema_only_makes_them_without_data(chain: Chain, target: TestDatabase) -> None:
    restored(chain, target, schema_only=True, verify_backup_table_data=True, verify_fingerprint=False)
    made = everything(target)
    assert [(row[0], *row[3:]) for row in made] == [(row[0], *row[3:]) for row in chain.seen[3]]
    assert target.execute("SELECT count(*) FROM pg_largeobject WHERE data <> ''") == [(0,)]


def test_tables_alone_bring_none_and_say_so(chain: Chain) -> None:
    source = chain.backup.database
    table = TableTarget(patterns=(TablePattern(database=source.name, name="paper"),))
    with fresh_database(source.server) as into:
        notes = Notes()
        options = RestoreOptions(into_db=into.name)
        request = RestoreRequest(target=table, collection=chain.backup.uri, options=options)
        run_restore(Context(progress=notes), source.cluster, request, processes=False)
        assert (contents(into), into.execute("SELECT count(*) FROM paper")) == ([], [(4,)])
        assert f"Of {source.name} no large objects are restored: these come with whole databases only." in notes.notes


def test_a_backup_of_tables_has_none_and_says_so(chain: Chain, tmp_path: Path) -> None:
    source = chain.backup.database
    backup = Backup(source, tmp_path / "c", target=TableTarget(patterns=(TablePattern(database=source.name, name="paper"),)))
    (entry,) = backup.take().databases
    assert [table.name for table in entry.database.tables] == ["paper"]
    count = len(chain.seen[3])
    assert entry.omitted == (f"{count} large objects (only a backup of the whole database has them)",)


def test_no_object_is_written_upon(chain: Chain, target: TestDatabase) -> None:
    source = chain.backup.database
    with fresh_database(source.server) as into:
        into.execute("SELECT lo_from_bytea(100001, 'mine'), lo_create(77)")
        request = request_of(chain, into)
        with pytest.raises(AlreadyExists, match="is not empty: it has large object 100001, large object 77"):
            run_restore(Context(), source.cluster, request, processes=False)
        assert into.execute("SELECT lo_get(100001)") == [(b"mine",)]
        into.execute("SELECT lo_unlink(100001), lo_unlink(77)")
        plan = plan_restore(Context(), source.cluster, request)
        faults = Faults()  # somebody makes one when the restore has begun
        faults.add_fault("storage.read_chunks.before", key="*/data/*", action=lambda: into.execute("SELECT lo_create(200599)"))
        context = Context(wrap=lambda storage: FaultyStorage(storage, faults), reached=faults.reach)
        with pytest.raises(AlreadyExists, match="has large objects with these OIDs already: 200599"):
            restore_schema(context, source.cluster, plan.request)
        assert len(contents(into)) > 1, "earlier groups are made"
        abandon_restore(Context(), source.cluster, plan.request)
        assert [row[0] for row in contents(into)] == ["200599"], "what was made is taken back, and nothing else"


def _run_and_die(cluster: Cluster, request: RestoreRequest, point: str, nth: int) -> None:
    faults = Faults()
    faults.add_fault(point, key="*/data/*", nth=nth, action=KILL)
    run_restore(Context(wrap=lambda storage: FaultyStorage(storage, faults)), cluster, request, processes=False)


@pytest.mark.slow
def test_a_killed_restore_goes_on(chain: Chain, target: TestDatabase) -> None:
    request = request_of(chain, target, chain.layers[0].end.lsn)
    for point, nth in (("storage.read_chunks.after", 1), ("storage.read_chunks.before", 4), ("storage.read_chunks.after", 4)):
        process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(target.cluster, request, point, nth))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (point, nth)
    run_restore(Context(), target.cluster, request, processes=False)
    assert everything(target) == chain.seen[0]


def test_a_load_that_ends_in_the_middle_leaves_no_page(chain: Chain, target: TestDatabase) -> None:
    request = plan_restore(Context(), target.cluster, request_of(chain, target, chain.layers[0].end.lsn)).request
    plan = plan_restore(Context(), target.cluster, request)
    restore_schema(Context(), target.cluster, request)
    index = next(one.index for one in plan.batches if any(unit.table_oid == LARGE_OBJECT_PAGES for unit in one.units))
    # The server ends the session while pages are being written.
    target.execute("SELECT lo_unlink(100008)")
    with pytest.raises(SpanvaultError):
        load_batch(Context(), target.cluster, request, index)
    assert target.execute("SELECT count(*) FROM pg_largeobject WHERE data <> ''") == [(0,)]
    target.execute("SELECT lo_create(100008)")
    for batch in plan.batches:
        load_batch(Context(), target.cluster, request, batch.index)
        assert load_batch(Context(), target.cluster, request, batch.index).skipped == len(batch.units)
    run_restore(Context(), target.cluster, request, processes=False)
    assert contents(target) == [row[:4] for row in chain.seen[0]]


@pytest.mark.parametrize("oid", [LARGE_OBJECT_LIST, LARGE_OBJECT_PAGES], ids=["list", "pages"])
def test_a_damaged_file_is_found(chain: Chain, target: TestDatabase, tmp_path: Path, oid: int) -> None:
    shutil.copytree(chain.backup.folder, tmp_path / "c")
    copied = Chain(replace(chain.backup, folder=tmp_path / "c"), chain.layers, chain.seen)
    path = files_of(copied, 2)[oid][0]
    damaged = tmp_path / "c" / chain.layers[2].subdir / path
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(Damaged, match=damaged.name):
        collection_check(Context(), copied.backup.uri, "checksums")
    with pytest.raises(Damaged, match=damaged.name):
        restored(copied, target)
    damaged.unlink()
    with pytest.raises(Damaged, match=damaged.name):
        collection_check(Context(), copied.backup.uri, "check_files")


def test_a_wrong_page_is_found_by_the_fingerprint(chain: Chain, target: TestDatabase) -> None:
    request = plan_restore(Context(), target.cluster, request_of(chain, target)).request
    plan = plan_restore(Context(), target.cluster, request)
    restore_schema(Context(), target.cluster, request)
    for batch in plan.batches:
        load_batch(Context(), target.cluster, request, batch.index)
    target.execute("SELECT lo_put(100010, 0, 'x')")
    with pytest.raises(Damaged, match=r"pg_catalog\.pg_largeobject was restored with other rows"):
        run_restore(Context(), target.cluster, request, processes=False)


def test_show_backup_tells_their_sizes(chain: Chain) -> None:
    shown = [row for row in show_backup(chain.backup.storage).dicts() if row["parent_schema_name"] == "pg_catalog"]
    assert [row["object_name"] for row in shown] == ["pg_largeobject", "pg_largeobject_metadata"] * 4
    assert [row["rows"] for row in shown[1::2]] == [len(seen) for seen in chain.seen]
    assert all(isinstance(row["size_bytes"], int) and row["size_bytes"] > 0 for row in shown)


def test_an_encrypted_chain_has_them_too(roles: None, postgres: PostgresServer, tmp_path: Path) -> None:
    key = EncryptionOptions(passphrase=SecretStr("a very secret passphrase"))
    with fresh_database(postgres) as source:
        source.execute(f"SELECT lo_from_bytea(5, '{'unmistakable' * 300}')")
        what, uri = DatabaseTarget(names=(source.name,)), f"file://{tmp_path / 'c'}"
        taken = BackupRequest(target=what, into=uri, options=BackupOptions(protection="none"), encryption=key)
        run_backup(Context(), source.cluster, taken, processes=False)
        assert not any(b"unmistakable" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        target = TestDatabase(postgres, f"{source.name}_r")
        options = RestoreOptions(new_db_name=target.name)
        try:
            request = RestoreRequest(target=what, collection=uri, options=options, encryption=key)
            run_restore(Context(), source.cluster, request, processes=False)
            assert contents(target) == contents(source)
        finally:
            drop_database(postgres, target.name)
