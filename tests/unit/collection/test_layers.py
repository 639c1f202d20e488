"""Chains of several layers: who may add one, what holds them together, and which of them a restore reads."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from fnmatch import fnmatch
from typing import Any

import pytest
from pydantic import SecretStr

from spanvault.collection.chain import Resolved, compacted_layers, head, layer_at, no_locations, original_layers, resolve
from spanvault.collection.commit import commit
from spanvault.collection.index import entry_of, list_chains, list_entries, read_entry, rebuild
from spanvault.collection.layout import README_KEY, index_key, manifest_key, marker_key, plan_key
from spanvault.collection.lookup import find_subdir, forgotten_layer
from spanvault.collection.markers import mark_invalid, read_marker
from spanvault.collection.plans import create_plan, read_plan
from spanvault.crypto.keyring import Credentials, Keyring
from spanvault.crypto.storage import decrypted
from spanvault.crypto.stream import MAGIC
from spanvault.errors import BadInput, BrokenChain, Damaged, NotFound, Refused
from spanvault.model.cut import Cut, Lsn, backup_id
from spanvault.model.manifest import Manifest
from spanvault.model.target import DatabaseTarget
from spanvault.storage.local import LocalStorage
from tests.kit.collections import (
    PLANNED_AT,
    at,
    incremental_plan,
    make_layer,
    write_collection,
    write_compacted,
    write_layer,
    write_uncommitted,
)
from tests.kit.faults import Faults, FaultyStorage


def _cut(lsn: int, seconds: float) -> Cut:
    return Cut(lsn=Lsn(lsn), time=at(seconds))


def _resolve(storage: LocalStorage, as_of: datetime | Lsn | None = None, subdir: str = "LATEST") -> Resolved:
    return resolve(storage, subdir, as_of, open_location=no_locations)


def _chain(storage: LocalStorage, layers: int, *, history: bool = False) -> list[Manifest]:
    """A full, and layers that end a minute and 0x100 bytes after each other, each with one commit in its middle."""
    chain = [write_collection(storage)]
    for number in range(1, layers + 1):
        middle = (0x200 + 0x100 * number - 0x80, at(60 * number))
        end = _cut(0x200 + 0x100 * number, 30 + 60 * number)
        chain.append(write_layer(storage, chain[-1], end=end, commits={"shop": [middle]}, history=history))
    return chain


# Commits ---------------------------------------------------------------------------------------------------------------


def test_layers_follow_each_other_and_committing_again_changes_nothing(storage: LocalStorage) -> None:
    full, one, two = _chain(storage, 2)
    assert [layer.manifest for layer in original_layers(storage, "LATEST", open_location=no_locations)] == [full, one, two]
    assert one.parent_sha256 == hashlib.sha256(storage.get(manifest_key(full.subdir))).hexdigest()
    before = {info.key: info for info in storage.list()}
    assert commit(storage, two.model_copy(update={"committed_at": at(9999)})) == two
    assert {info.key: info for info in storage.list()} == before


def test_of_runs_that_want_the_same_layer_one_wins_and_the_others_are_told(storage: LocalStorage) -> None:
    full = write_collection(storage)
    runs = [make_layer(storage, full, end=_cut(0x300 + number, 60), run_key=f"run-{number}") for number in range(6)]
    start = threading.Barrier(len(runs))

    def attempt(manifest: Manifest) -> str:
        start.wait()
        try:
            return commit(storage, manifest).run_key
        except Refused as error:
            return str(error)

    with ThreadPoolExecutor(len(runs)) as pool:
        answers = list(pool.map(attempt, runs))
    winner = head(storage, full.subdir)[0].run_key
    assert answers.count(winner) == 1
    for answer in answers:
        assert answer == winner or f"the run {winner} committed it" in answer


def test_each_run_has_a_plan_of_its_own_for_the_layer(storage: LocalStorage) -> None:
    full = write_collection(storage)
    plans = [incremental_plan(storage, full.subdir, 1, run) for run in ("a", "b")]
    assert [create_plan(storage, plan) for plan in plans] == [True, True]
    assert not create_plan(storage, plans[0])
    assert [read_plan(storage, full.subdir, 1, run) for run in ("a", "b", "c")] == [*plans, None]


def test_a_run_without_its_plan_cannot_commit_although_another_has_one(storage: LocalStorage) -> None:
    full = write_collection(storage)
    layer = make_layer(storage, full, end=_cut(0x300, 60), run_key="swept")
    make_layer(storage, full, end=_cut(0x300, 60), run_key="other")
    storage.delete(plan_key(full.subdir, 1, "swept"))
    with pytest.raises(Refused, match="may have been swept away"):
        commit(storage, layer)
    assert head(storage, full.subdir)[0] == full


def test_a_run_that_was_swept_and_planned_again_cannot_commit_what_it_had(storage: LocalStorage) -> None:
    """It slept; its files are gone, and a try of the same run that began anew has a plan of the same name."""
    full = write_collection(storage)
    layer = make_layer(storage, full, end=_cut(0x300, 60), run_key="slept")
    key = plan_key(full.subdir, 1, "slept")
    plan = read_plan(storage, full.subdir, 1, "slept")
    assert plan is not None
    storage.delete(key)
    storage.put(key, plan.model_copy(update={"planned_at": plan.planned_at + timedelta(days=2)}).to_json(), create_only=True)
    with pytest.raises(Refused, match="may have been swept away"):
        commit(storage, layer)


def test_a_run_that_adds_several_layers_has_a_plan_for_each(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(0x300, 60), run_key="catch-up")
    two = make_layer(storage, one, end=_cut(0x400, 90), run_key="catch-up", with_plan=False)
    with pytest.raises(Refused, match=r"its plan .* is gone"):
        commit(storage, two)
    create_plan(storage, incremental_plan(storage, full.subdir, 2, "catch-up"))
    assert commit(storage, two) == two


def test_a_full_closes_the_chain_before_it(storage: LocalStorage) -> None:
    old = write_collection(storage)
    run = write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(hours=1), run_key="new-full")
    closing = write_layer(storage, old, end=_cut(0x300, 60), run_key="new-full")
    commit(storage, run.manifest)
    assert _resolve(storage).manifest == run.manifest
    assert _resolve(storage, at(60)).manifest == closing


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parent_sha256": "0" * 64}, "was built upon a manifest with the SHA-256 0000"),
        ({"parent_sha256": None}, "was built upon a manifest with the SHA-256 None"),
        ({"start": Cut(lsn=Lsn(0x210), time=at(31))}, "begins at 0/00000210, and .* ends at 0/00000200"),
        ({"number": 2, "first": 2}, r"chain/000001\.json is not there any more"),
    ],
    ids=["digest", "no digest", "gap", "no parent"],
)
def test_a_layer_that_does_not_continue_its_chain_is_not_committed(
    storage: LocalStorage, changes: dict[str, Any], sentence: str
) -> None:
    full = write_collection(storage)
    layer = make_layer(storage, full, end=_cut(0x300, 60), **changes)
    create_plan(storage, incremental_plan(storage, full.subdir, layer.number, layer.run_key))
    with pytest.raises(BrokenChain, match=sentence):
        commit(storage, layer)
    assert head(storage, full.subdir)[0] == full


def test_a_layer_is_found_without_its_index_entry_which_is_rebuilt(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    compacted = write_compacted(storage, chain[0].subdir, 1, 2)
    kept = {info.key: storage.get(info.key) for info in storage.list("metadata/")}
    assert len(kept) == 4
    for key in kept:
        storage.delete(key)
    assert _resolve(storage).manifest.number == 2
    assert list(list_chains(storage)) == [chain[0].subdir]
    assert rebuild(storage).written == 4
    assert {info.key: storage.get(info.key) for info in storage.list("metadata/")} == kept
    assert [(entry.first, entry.number) for entry in list_entries(storage)] == [(1, 2), (2, 2), (1, 1), (0, 0)]
    entry = read_entry(storage, chain[0].subdir, 2, 1)
    assert entry is not None
    assert entry.manifest_sha256 == hashlib.sha256(storage.get(manifest_key(chain[0].subdir, 2, 1))).hexdigest()
    assert compacted.first == 1


def test_an_index_entry_says_what_pages_show(storage: LocalStorage) -> None:
    (_, one) = _chain(storage, 1, history=True)
    entry = read_entry(storage, one.subdir, 1)
    assert entry is not None
    assert (entry.kind, entry.first, entry.number, entry.revision_history) == ("incremental", 1, 1, True)
    assert (entry.run_key, entry.target, entry.captured) == ("run-of-layer-1", "CLUSTER", one.captured)
    assert [(table.name, table.rows, table.bytes) for table in entry.tables] == [
        ("shop.audit.events", 2, 16384),
        ("shop.public.orders", 3, 16384),
    ]


def test_an_index_entry_names_its_target_and_the_largest_tables(storage: LocalStorage) -> None:
    manifest = write_uncommitted(storage, target=DatabaseTarget(names=("shop", "Odd name"))).manifest
    assert entry_of(manifest, "0", encrypted=False).target == 'DATABASE shop, "Odd name"'
    (database,) = manifest.databases
    shapes = [
        database.database.tables[0].model_copy(update={"oid": oid, "name": f"t{oid}", "bytes": oid}) for oid in range(1, 1501)
    ]
    tables = tuple(database.tables[0].model_copy(update={"oid": shape.oid}) for shape in shapes)
    wide = database.model_copy(
        update={"database": database.database.model_copy(update={"tables": tuple(shapes)}), "tables": tables}
    )
    entry = entry_of(manifest.model_copy(update={"databases": (wide,)}), "0", encrypted=False)
    assert {table.bytes for table in entry.tables} == set(range(501, 1501))
    assert [table.name for table in entry.tables] == sorted(table.name for table in entry.tables)


def test_of_an_encrypted_chain_nothing_in_the_clear_tells_what_was_backed_up(storage: LocalStorage) -> None:
    key = Credentials(passphrase=SecretStr("of these tests"))
    seen = decrypted(storage, Keyring(storage, lambda: key))
    run = write_uncommitted(seen, target=DatabaseTarget(names=("shop",)))
    manifest = commit(seen, run.manifest)
    entry = read_entry(storage, manifest.subdir, 0)
    assert entry is not None
    assert (entry.encrypted, entry.target, entry.tables) == (True, None, ())
    sizes = entry.totals
    assert (sizes.tables, sizes.rows, sizes.source_bytes) == (None, None, None)
    data = [info for info in seen.list(manifest.subdir) if "/data/" in info.key]
    assert (sizes.files, sizes.file_bytes) == (len(data), sum(info.size for info in data))
    clear = [info.key for info in storage.list() if not storage.get(info.key).startswith(MAGIC)]
    assert {key.split("/")[0] for key in clear} == {"COLLECTION.json", "README.txt", "metadata", manifest.subdir[:4]}
    for name in (b"shop", b"orders", b"events", b"audit"):
        assert [key for key in clear if name in storage.get(key)] == []
    assert 'RESTORE DATABASE \\"<database>\\" FROM LATEST' in storage.get(README_KEY).decode()
    kept = storage.get(index_key(manifest.subdir, 0))
    storage.delete(index_key(manifest.subdir, 0))
    assert rebuild(seen).written == 1
    assert storage.get(index_key(manifest.subdir, 0)) == kept


# What holds a chain together --------------------------------------------------------------------------------------------


def _rewrite(storage: LocalStorage, manifest: Manifest, **changes: object) -> None:
    """A changed manifest that the index believes in."""
    data = manifest.model_copy(update=changes).to_json()
    storage.put(manifest_key(manifest.subdir, manifest.number, manifest.first), data)
    storage.delete(index_key(manifest.subdir, manifest.number, manifest.first))


def test_a_changed_layer_breaks_the_chain_at_the_next_one(storage: LocalStorage) -> None:
    chain = _chain(storage, 3)
    _rewrite(storage, chain[1], run_key="somebody else")
    with pytest.raises(BrokenChain, match=r"chain/000002\.json was built upon a manifest with the SHA-256"):
        _resolve(storage)
    with pytest.raises(BrokenChain):
        original_layers(storage, "LATEST", open_location=no_locations)
    with pytest.raises(BrokenChain):
        layer_at(storage, "LATEST", 2, open_location=no_locations)
    assert layer_at(storage, "LATEST", 3, open_location=no_locations).manifest == chain[3]


def test_one_layer_is_read_with_its_parent_alone(storage: LocalStorage) -> None:
    chain = _chain(storage, 3)
    for number, manifest in enumerate(chain):
        layer = layer_at(storage, "LATEST", number, open_location=no_locations)
        digest = hashlib.sha256(storage.get(manifest_key(manifest.subdir, number))).hexdigest()
        assert (layer.manifest, layer.sha256, layer.data) == (manifest, digest, storage)
    with pytest.raises(NotFound, match="has no layer 4"):
        layer_at(storage, "LATEST", 4, open_location=no_locations)
    _rewrite(storage, chain[0], run_key="somebody else")
    with pytest.raises(BrokenChain, match=r"chain/000001\.json was built upon"):
        layer_at(storage, "LATEST", 1, open_location=no_locations)
    assert layer_at(storage, "LATEST", 2, open_location=no_locations).manifest == chain[2]


def test_a_changed_layer_that_the_index_remembers_is_damage(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    key = manifest_key(chain[1].subdir, 1)
    storage.put(key, storage.get(key).replace(b"run-of-layer-1", b"run-of-layer-9"))
    with pytest.raises(Damaged, match="is not the one that was committed"):
        _resolve(storage)


def test_layers_that_do_not_touch_break_the_chain(storage: LocalStorage) -> None:
    chain = _chain(storage, 1)
    _rewrite(storage, chain[1], start=_cut(0x210, 31))
    with pytest.raises(BrokenChain, match=r"begins at 0/00000210, and the one before it ends at 0/00000200"):
        _resolve(storage)


def test_a_lost_layer_breaks_the_chain(storage: LocalStorage) -> None:
    chain = _chain(storage, 3)
    storage.delete(manifest_key(chain[0].subdir, 2))
    for look in (_resolve, lambda place: head(place, "LATEST")):
        with pytest.raises(BrokenChain, match=r"chain/000002\.json is missing"):
            look(storage)


def test_a_lost_last_layer_that_a_compacted_one_stands_for_breaks_the_chain(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    write_compacted(storage, chain[0].subdir, 1, 2)
    storage.delete(manifest_key(chain[0].subdir, 2))
    with pytest.raises(BrokenChain, match=r"chain/000002\.json is missing"):
        _resolve(storage)


def test_a_layer_of_another_place_is_damage(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    storage.put(manifest_key(chain[0].subdir, 3), storage.get(manifest_key(chain[0].subdir, 2)))
    with pytest.raises(Damaged, match="copied or renamed"):
        head(storage, "LATEST")


@pytest.mark.parametrize("name", ["000001-000002.jsonx", "000002-000001.json", "000001.valid.json", "000001"])
def test_an_unknown_name_stops_the_chain(storage: LocalStorage, name: str) -> None:
    chain = _chain(storage, 2)
    storage.put(f"{chain[0].subdir}/chain/{name}", b"{}")
    with pytest.raises(Refused, match="does not know; upgrade"):
        _resolve(storage)


def test_a_backups_id_names_one_of_the_original_layers(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    for number, manifest in enumerate(chain):
        named = original_layers(storage, backup_id(manifest.subdir, number), open_location=no_locations)
        assert [layer.manifest for layer in named] == [manifest]
        assert _resolve(storage, subdir=backup_id(manifest.subdir, number)).manifest == manifest
    for look in (original_layers, resolve):
        with pytest.raises(NotFound, match="has the valid layers 0 to 2"):
            look(storage, backup_id(chain[0].subdir, 3), open_location=no_locations)


# Markers -----------------------------------------------------------------------------------------------------------------


def test_a_marker_cuts_the_chain_off(storage: LocalStorage) -> None:
    chain = _chain(storage, 3)
    write_compacted(storage, chain[0].subdir, 1, 3)
    marker = mark_invalid(storage, chain[0].subdir, 2, "two files are missing", at(500))
    assert mark_invalid(storage, chain[0].subdir, 2, "another reason", at(501)) == marker
    assert read_marker(storage, chain[0].subdir, 2).reason == "two files are missing"
    assert _resolve(storage).manifest == chain[1]
    assert head(storage, "LATEST")[0] == chain[1]
    assert len(original_layers(storage, "LATEST", open_location=no_locations)) == 2
    assert compacted_layers(storage, "LATEST", open_location=no_locations) == ()
    with pytest.raises(BadInput):
        _resolve(storage, chain[3].end.time)


def test_nothing_is_built_upon_a_marked_layer(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    layer = make_layer(storage, chain[2], end=_cut(0x500, 300))
    mark_invalid(storage, chain[0].subdir, 1, "two files are missing", at(500))
    with pytest.raises(BrokenChain, match=r"layer 1 was marked invalid \(two files are missing\); take a new full"):
        commit(storage, layer)


def test_a_marked_full_is_no_backup(storage: LocalStorage) -> None:
    oldest = write_collection(storage, planned_at=PLANNED_AT - timedelta(days=1), run_key="oldest")
    old = write_collection(storage)
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    mark_invalid(storage, new.subdir, 0, "bits were lost", at(0))
    assert find_subdir(storage, "LATEST") == old.subdir
    assert _resolve(storage).manifest == old
    with pytest.raises(BrokenChain, match=r"was marked invalid: bits were lost"):
        _resolve(storage, subdir=new.subdir)
    assert _resolve(storage, oldest.end.time).manifest == oldest
    with pytest.raises(BadInput, match="Invalid RESTORE timestamp"):
        _resolve(storage, new.end.time)


def test_only_a_committed_layer_can_be_marked(storage: LocalStorage) -> None:
    full = write_collection(storage)
    with pytest.raises(NotFound, match="has no layer 1"):
        mark_invalid(storage, full.subdir, 1, "x", at(0))
    assert storage.head(marker_key(full.subdir, 1)) is None


# Compacted layers --------------------------------------------------------------------------------------------------------


def _totals(manifest: Manifest, file_bytes: int) -> dict[str, Any]:
    return {"totals": manifest.totals.model_copy(update={"file_bytes": file_bytes})}


def _cover(storage: LocalStorage, as_of: datetime | Lsn | None = None) -> list[tuple[int, int]]:
    return [(layer.manifest.first, layer.manifest.number) for layer in _resolve(storage, as_of).layers]


def _chain_of_bytes(storage: LocalStorage, sizes: list[int], *, history: bool = False) -> list[Manifest]:
    run = write_uncommitted(storage)
    chain = [commit(storage, run.manifest.model_copy(update=_totals(run.manifest, sizes[0])))]
    for number, size in enumerate(sizes[1:], start=1):
        end = _cut(0x200 + 0x100 * number, 30 + 60 * number)
        stamps = [(int(end.lsn) - 0x80, at(60 * number)), (int(end.lsn) - 0x40, at(60 * number + 10))]
        layer = make_layer(storage, chain[-1], end=end, commits={"shop": stamps}, history=history)
        chain.append(commit(storage, layer.model_copy(update=_totals(layer, size))))
    return chain


def test_the_cheapest_cover_is_read(storage: LocalStorage) -> None:
    chain = _chain_of_bytes(storage, [1000, 100, 100, 100, 100])
    subdir, totals = chain[0].subdir, chain[0]
    assert _cover(storage) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    write_compacted(storage, subdir, 1, 2, **_totals(totals, 150))
    assert _cover(storage) == [(0, 0), (1, 2), (3, 3), (4, 4)]
    write_compacted(storage, subdir, 2, 4, **_totals(totals, 240))
    assert _cover(storage) == [(0, 0), (1, 1), (2, 4)]  # 1340 against 1350
    write_compacted(storage, subdir, 0, 3, **_totals(totals, 1239))
    assert _cover(storage) == [(0, 3), (4, 4)]
    write_compacted(storage, subdir, 1, 4, **_totals(totals, 338))
    assert _cover(storage) == [(0, 0), (1, 4)]  # 1338 against 1339
    assert _cover(storage, chain[2].end.time) == [(0, 0), (1, 2)]
    assert _cover(storage, chain[3].end.time) == [(0, 3)]
    assert _cover(storage, chain[1].end.time) == [(0, 0), (1, 1)]


def test_of_equal_bytes_the_fewer_layers_are_read(storage: LocalStorage) -> None:
    chain = _chain_of_bytes(storage, [1000, 100, 100])
    write_compacted(storage, chain[0].subdir, 1, 2, **_totals(chain[0], 200))
    assert _cover(storage) == [(0, 0), (1, 2)]


def test_of_ways_with_equal_bytes_and_layers_any_is_read(storage: LocalStorage) -> None:
    chain = _chain_of_bytes(storage, [1000, 100, 100, 100])
    write_compacted(storage, chain[0].subdir, 1, 2, **_totals(chain[0], 150))
    write_compacted(storage, chain[0].subdir, 2, 3, **_totals(chain[0], 150))
    assert _cover(storage) in ([(0, 0), (1, 2), (3, 3)], [(0, 0), (1, 1), (2, 3)])


def test_an_inner_cut_is_read_in_its_original_layer(storage: LocalStorage) -> None:
    chain = _chain_of_bytes(storage, [1000, 100, 100, 100], history=True)
    write_compacted(storage, chain[0].subdir, 1, 2, **_totals(chain[0], 1))
    write_compacted(storage, chain[0].subdir, 1, 3, revision_history=True, **_totals(chain[0], 1))
    write_compacted(storage, chain[0].subdir, 0, 2, **_totals(chain[0], 1))
    assert _cover(storage, at(185)) == [(0, 2), (3, 3)]
    found = _resolve(storage, at(185))
    assert (found.inner, found.before, found.cut.lsn) == (True, chain[2], 0x4C0)
    assert _cover(storage, at(125)) == [(0, 0), (1, 1), (2, 2)]
    assert _cover(storage) == [(0, 2), (3, 3)]


@pytest.mark.parametrize(
    ("first", "changes", "sentence"),
    [
        (1, {"parent_sha256": "0" * 64}, "was built upon a manifest with the SHA-256 0000"),
        (1, {"start": Cut(lsn=Lsn(0x210), time=at(31))}, "begins at 0/00000210"),
        (0, {"end": Cut(lsn=Lsn(0x410), time=at(151))}, "ends at 0/00000410"),
    ],
    ids=["digest", "gap", "end"],
)
def test_a_compacted_layer_must_stand_for_its_originals(
    storage: LocalStorage, first: int, changes: dict[str, Any], sentence: str
) -> None:
    chain = _chain(storage, 2)
    with pytest.raises(BrokenChain, match=sentence):
        write_compacted(storage, chain[0].subdir, first, 2, **changes)
    sound = write_compacted(storage, chain[0].subdir, first, 2)
    _rewrite(storage, sound, **changes)
    with pytest.raises(BrokenChain, match=sentence):
        _resolve(storage)


def test_of_two_compactions_one_wins(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    won = write_compacted(storage, chain[0].subdir, 1, 2, run_key="one")
    with pytest.raises(Refused, match="the run one committed it"):
        write_compacted(storage, chain[0].subdir, 1, 2, run_key="two")
    assert [layer.manifest for layer in compacted_layers(storage, "LATEST", open_location=no_locations)] == [won]
    assert head(storage, "LATEST")[0] == chain[2]


@pytest.mark.parametrize("victim", ["files-*", "data/*"])
def test_a_compaction_whose_files_were_swept_is_not_committed(storage: LocalStorage, victim: str) -> None:
    chain = _chain(storage, 2)
    before = {info.key for info in storage.list()}

    def lose() -> None:
        new = [info.key for info in storage.list() if info.key not in before]
        storage.delete(next(key for key in new if fnmatch(key, f"*/{victim}")))

    faults = Faults()
    # Everything is written, and the commit looks what its chain holds.
    faults.add_fault("storage.list.before", key="*/chain/", action=lose)
    with pytest.raises(Refused, match="may have been swept away"):
        write_compacted(FaultyStorage(storage, faults), chain[0].subdir, 1, 2)
    assert compacted_layers(storage, "LATEST", open_location=no_locations) == ()


# Incremental locations -----------------------------------------------------------------------------------------------------


def test_a_layers_data_is_read_from_its_location(storage: LocalStorage, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = LocalStorage(tmp_path_factory.mktemp("location"), "file:///elsewhere")
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(0x300, 60), location=("file:///elsewhere", elsewhere))
    opened: list[str] = []

    def open_location(uri: str) -> LocalStorage:
        opened.append(uri)
        return elsewhere

    found = resolve(storage, open_location=open_location)
    assert [layer.data for layer in found.layers] == [storage, elsewhere]
    assert found.manifest == one
    assert opened == ["file:///elsewhere"]
    with pytest.raises(BadInput, match="incremental location file:///elsewhere"):
        _resolve(storage)
    assert _resolve(storage, full.end.time).manifest == full  # does not need it


def test_the_newest_layer_that_only_the_index_remembers(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    subdir = chain[0].subdir
    assert forgotten_layer(storage, subdir, 2) is None
    assert forgotten_layer(storage, subdir, 1) is None, "it is there, whatever was chosen"
    storage.delete(manifest_key(subdir, 2))
    assert forgotten_layer(storage, subdir, 1) == (subdir, 2)
    assert forgotten_layer(storage, subdir, 2) is None, "it is not behind itself"
    storage.put("metadata/index/00-note.json", b"of somebody else")
    assert forgotten_layer(storage, subdir, 1) == (subdir, 2)
    newer = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="newer")
    assert forgotten_layer(storage, newer.subdir, 0) is None
    storage.delete(manifest_key(newer.subdir))
    assert forgotten_layer(storage, subdir, 1) == (newer.subdir, 0)


def test_a_compacted_layer_that_only_the_index_remembers(storage: LocalStorage) -> None:
    chain = _chain(storage, 2)
    subdir = chain[0].subdir
    write_compacted(storage, subdir, 1, 2)
    assert forgotten_layer(storage, subdir, 1) is None
    storage.delete(manifest_key(subdir, 2, 1))
    assert forgotten_layer(storage, subdir, 1) == (subdir, 2)
