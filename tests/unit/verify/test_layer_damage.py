"""Chains of several layers: what is wrong in any of them, or between them, is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.chain import OpenLocation
from spanvault.collection.commit import commit
from spanvault.collection.commits import CommitsWriter
from spanvault.collection.files import read_files, write_files
from spanvault.collection.layout import index_key, manifest_key, object_key
from spanvault.collection.markers import mark_invalid
from spanvault.errors import Damaged
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import Manifest
from spanvault.storage.base import Storage
from spanvault.storage.local import LocalStorage
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from spanvault.verify.files import check_files
from tests.kit.collections import at, make_layer, write_collection, write_compacted, write_layer

ELSEWHERE = "file:///elsewhere"


def _cut(number: int) -> Cut:
    return Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(30 + 60 * number))


def _fields(number: int) -> dict[str, Any]:
    return {"end": _cut(number), "commits": {"shop": [(0x180 + 0x100 * number, at(60 * number))]}, "history": True}


@pytest.fixture
def chain(storage: LocalStorage) -> list[Manifest]:
    """A full, three layers with revision history, and a compacted one of the first two of them."""
    layers = [write_collection(storage)]
    for number in (1, 2, 3):
        layers.append(write_layer(storage, layers[-1], **_fields(number)))
    return [*layers, write_compacted(storage, layers[0].subdir, 1, 2, revision_history=True)]


def test_a_sound_chain_passes_every_level(storage: LocalStorage, chain: list[Manifest]) -> None:
    files = check_files(storage)
    # The full has 7 objects; a layer its data file, two lists and a dump; the compacted one shares lists and dumps.
    assert (files.outcome, files.objects) == ("pass", 7 + 3 * 4 + 4)
    data = check_data(storage)
    assert (data.outcome, data.objects, data.rows, data.notes) == ("pass", 23, 8 + 3 + 1, ())
    assert check_collection(storage).outcome == "pass"
    one = check_files(storage, chain[0].subdir, 3)
    assert (one.outcome, one.objects) == ("pass", 4)
    assert check_data(storage, chain[0].subdir, 3).objects == 4


@pytest.mark.parametrize("part", ["data", "files", "commits", "dump"])
@pytest.mark.parametrize("place", [1, 3, 4], ids=["middle", "last", "compacted"])
def test_a_missing_object_of_any_layer_is_named(storage: LocalStorage, chain: list[Manifest], part: str, place: int) -> None:
    manifest = chain[place]
    commits = manifest.databases[0].commits
    path = {
        "data": next(read_files(storage, manifest.subdir, manifest.files)).path,
        "files": manifest.files.path,
        "commits": commits.path if commits is not None else "",
        "dump": manifest.databases[0].schema_dump.path,
    }[part]
    storage.delete(object_key(manifest.subdir, path))
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert path in " ".join(result.failures)


def test_a_layers_own_check_does_not_look_at_others(storage: LocalStorage, chain: list[Manifest]) -> None:
    storage.delete(object_key(chain[1].subdir, chain[1].files.path))
    assert check_files(storage, "LATEST", 3).outcome == "pass"
    assert check_files(storage, "LATEST", 1).outcome == "fail"
    assert check_files(storage).outcome == "fail"


def _rewrite(storage: LocalStorage, manifest: Manifest, **changes: object) -> None:
    """A changed manifest that the index believes in."""
    storage.put(manifest_key(manifest.subdir, manifest.number, manifest.first), manifest.model_copy(update=changes).to_json())
    storage.delete(index_key(manifest.subdir, manifest.number, manifest.first))


@pytest.mark.parametrize("number", [2, 4], ids=["layer", "compacted"])
def test_a_wrong_parent_digest_fails_every_level(storage: LocalStorage, chain: list[Manifest], number: int) -> None:
    _rewrite(storage, chain[number], parent_sha256="0" * 64)
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert "was built upon a manifest with the SHA-256 0000" in result.failures[0]


def test_a_changed_parent_fails_the_check_of_the_layer(storage: LocalStorage, chain: list[Manifest]) -> None:
    _rewrite(storage, chain[2], run_key="somebody else")
    result = check_files(storage, "LATEST", 3)
    assert result.outcome == "fail"
    assert r"chain/000003.json was built upon" in result.failures[0]


def test_a_lost_layer_fails_every_level(storage: LocalStorage, chain: list[Manifest]) -> None:
    storage.delete(manifest_key(chain[0].subdir, 1))
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert "chain/000001.json is missing" in result.failures[0]


@pytest.mark.parametrize(("table", "basis"), [(16400, 1), (16400, 9), (16400, -1), (999, 0)])
def test_a_basis_that_does_not_hold_the_table_is_damage(storage: LocalStorage, table: int, basis: int) -> None:
    full = write_collection(storage)
    one = write_layer(storage, full, **_fields(1))
    two = make_layer(storage, one, **_fields(2))
    (database,) = two.databases
    changed = database.tables[0].model_copy(update={"oid": table, "basis": basis})
    commit(storage, two.model_copy(update={"databases": (database.model_copy(update={"tables": (changed,)}),)}))
    result = check_files(storage)
    assert result.outcome == "fail"
    assert f"says that layer {basis} holds the table {table} of 'shop' whole" in result.failures[0]


def test_a_table_read_behind_its_layers_end_is_the_next_ones_basis(storage: LocalStorage) -> None:
    full = write_collection(storage)
    one = make_layer(storage, full, **_fields(1))
    late = one.databases[0].tables[0].model_copy(update={"basis": None, "since": Lsn(0x310)})
    (database,) = one.databases
    first = commit(storage, one.model_copy(update={"databases": (database.model_copy(update={"tables": (late,)}),)}))
    two = make_layer(storage, first, **_fields(2))
    (database,) = two.databases
    based = database.tables[0].model_copy(update={"basis": 1})
    commit(storage, two.model_copy(update={"databases": (database.model_copy(update={"tables": (based,)}),)}))
    assert check_files(storage).outcome == "pass"


def test_history_without_its_list_is_damage(storage: LocalStorage) -> None:
    layer = make_layer(storage, write_collection(storage), **_fields(1))
    (database,) = layer.databases
    commit(storage, layer.model_copy(update={"databases": (database.model_copy(update={"commits": None}),)}))
    result = check_files(storage)
    assert result.outcome == "fail"
    assert "names no list of the 1 transactions of 'shop'" in result.failures[0]


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [([0x280, 0x290], "lists 2 transactions, and the manifest says 1"), ([0x300], "which is not between"), ([0x1FF], "between")],
)
def test_a_list_of_other_transactions_is_found_by_reading(storage: LocalStorage, positions: list[int], sentence: str) -> None:
    layer = make_layer(storage, write_collection(storage), **_fields(1))
    with CommitsWriter(storage, layer.subdir, 1, 16384) as writer:
        for position in positions:
            writer.add(position, 1, 1)
    (database,) = layer.databases
    changed = database.model_copy(update={"commits": writer.reference})
    commit(storage, layer.model_copy(update={"databases": (changed,)}))
    assert check_files(storage).outcome == "pass"
    result = check_data(storage)
    assert result.outcome == "fail"
    assert sentence in result.failures[0]


def test_a_marked_layer_is_a_note_and_not_looked_at(storage: LocalStorage, chain: list[Manifest]) -> None:
    storage.delete(object_key(chain[2].subdir, chain[2].files.path))
    assert check_files(storage).outcome == "fail"
    mark_invalid(storage, chain[0].subdir, 2, "a list is missing", at(0))
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "pass"
        assert any("Layer 2 of" in note and "a list is missing" in note for note in result.notes)


def test_a_marked_full_fails_by_itself_and_is_a_note_of_the_collection(storage: LocalStorage) -> None:
    full = write_collection(storage)
    mark_invalid(storage, full.subdir, 0, "bits were lost", at(0))
    assert check_files(storage, full.subdir).outcome == "fail"
    whole = check_collection(storage)
    assert whole.outcome == "pass"
    assert any("bits were lost" in note for note in whole.notes)


def test_a_contradicting_index_entry_of_any_layer_is_damage(storage: LocalStorage, chain: list[Manifest]) -> None:
    for first, number in ((2, 2), (1, 2)):
        key = index_key(chain[0].subdir, number, first)
        kept = storage.get(key)
        storage.put(key, kept.replace(b'"target": "CLUSTER"', b'"target": "DATABASE x"'))
        result = check_collection(storage)
        assert result.outcome == "fail"
        assert key in result.failures[0]
        storage.put(key, kept)


def test_files_at_a_location_are_checked_there(storage: LocalStorage, tmp_path: Path) -> None:
    location = LocalStorage(tmp_path / "elsewhere", ELSEWHERE)
    one = write_layer(storage, write_collection(storage), **_fields(1), location=(ELSEWHERE, location))

    def open_location(uri: str) -> Storage:
        assert uri == ELSEWHERE
        return location

    opener: OpenLocation = open_location
    for check in (check_files, check_data):
        assert check(storage, open_location=opener).outcome == "pass"
        assert check(storage, one.subdir, 1, open_location=opener).outcome == "pass"
        assert check(storage).outcome == "could not verify"  # neither good nor bad
    assert check_collection(storage, open_location=opener).outcome == "pass"
    (file,) = location.list()
    location.put(file.key, location.get(file.key)[:-1] + b"x")
    assert check_files(storage, open_location=opener).outcome == "pass"
    assert check_data(storage, open_location=opener).outcome == "fail"
    location.delete(file.key)
    for result in (check_files(storage, open_location=opener), check_collection(storage, open_location=opener)):
        with pytest.raises(Damaged, match=file.key.removeprefix(f"{one.subdir}/")):
            result.require_pass()


def _reshaped(storage: LocalStorage, manifest: Manifest, *columns: str) -> Manifest:
    """The manifest with other columns of public.orders."""
    (entry,) = manifest.databases
    orders, *others = entry.database.tables
    added = tuple(
        orders.columns[1].model_copy(update={"attnum": number, "name": name}) for number, name in enumerate(columns, start=2)
    )
    table = orders.model_copy(update={"columns": (orders.columns[0], *added)})
    database = entry.database.model_copy(update={"tables": (table, *others)})
    return manifest.model_copy(update={"databases": (entry.model_copy(update={"database": database}),)})


def test_files_may_have_the_shape_of_an_earlier_layer(storage: LocalStorage) -> None:
    full = write_collection(storage)
    # The column `note` becomes `remark`, and `more` is added: the changes before that have the old columns.
    one = commit(storage, _reshaped(storage, make_layer(storage, full, **_fields(1)), "remark", "more"))
    assert check_data(storage).outcome == "pass"
    assert check_data(storage, full.subdir, 1).outcome == "pass"
    # Two layers later nothing may have them.
    commit(storage, _reshaped(storage, make_layer(storage, one, **_fields(2)), "remark", "more"))
    result = check_data(storage)
    assert result.outcome == "fail"
    assert "has the columns ['id', 'note']" in result.failures[0]
    assert check_data(storage, full.subdir, 2).outcome == "fail"


def test_a_compacted_layer_may_take_files_over_from_layers_of_another_shape(storage: LocalStorage) -> None:
    full = write_collection(storage)
    commit(storage, _reshaped(storage, make_layer(storage, full, **_fields(1)), "remark"))
    files = list(read_files(storage, full.subdir, full.files))
    last = Manifest.from_json(storage.get(manifest_key(full.subdir, 1)), "layer 1")
    totals = last.totals.model_copy(update={"files": len(files), "file_bytes": sum(file.bytes for file in files)})
    write_compacted(storage, full.subdir, 0, 1, files=write_files(storage, full.subdir, 1, files), totals=totals)
    result = check_data(storage)
    assert (result.outcome, result.failures) == ("pass", ())
