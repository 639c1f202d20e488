from __future__ import annotations

import pytest

from spanvault.collection import layout
from spanvault.errors import Damaged

SUBDIR = "2026/11/22-143000.12"


def test_keys_are_those_of_the_specification() -> None:
    assert layout.plan_key(SUBDIR) == "2026/11/22-143000.12/PLAN.json"
    # sha256("run-7") begins with b4c05df0.
    assert layout.plan_key(SUBDIR, 3, "run-7") == "2026/11/22-143000.12/000003/PLAN-b4c05df0.json"
    assert layout.manifest_key(SUBDIR) == "2026/11/22-143000.12/chain/000000.json"
    assert layout.manifest_key(SUBDIR, 12) == "2026/11/22-143000.12/chain/000012.json"
    assert layout.manifest_key(SUBDIR, 4, 2) == "2026/11/22-143000.12/chain/000002-000004.json"
    assert layout.manifest_key(SUBDIR, 4, 4) == layout.manifest_key(SUBDIR, 4)
    assert layout.marker_key(SUBDIR, 3) == "2026/11/22-143000.12/chain/000003.invalid.json"
    assert layout.receipt_key(SUBDIR, 0, "5-16384-0000000000") == ("2026/11/22-143000.12/000000/progress/5-16384-0000000000.json")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (layout.data_path(0), "data"),
        (layout.files_path(7), "files"),
        (layout.schema_dump_path(0, 16384), "dump"),
        (layout.globals_dump_path(0), "dump"),
        (layout.seal_path(0), "seal"),
        ("PLAN.json", "plan"),
        ("000001/PLAN-0123abcd.json", "plan"),
        ("000001/PLAN.json", None),
        ("chain/000000.json", "manifest"),
        ("chain/000002-000004.json", "manifest"),
        ("000001/commits-16384-0123abcd.parquet", "commits"),
        ("000000/progress/5-16384-0000000000.json", "receipt"),
        ("chain/000003.invalid.json", "marker"),
        ("ENCRYPTION-INFO", None),
        ("000000/notes.txt", None),
        ("data/x.parquet", None),
    ],
    # Unique paths differ in every process, and parallel test processes must agree on the names of tests.
    ids=[
        "data",
        "files",
        "schema",
        "globals",
        "seal",
        "plan",
        "later plan",
        "nobody's plan",
        "manifest",
        "compacted",
        "commits",
        "receipt",
        "invalid",
        "key",
        "notes",
        "loose",
    ],
)
def test_every_path_is_known_by_its_kind_and_nothing_else_is(path: str, kind: str | None) -> None:
    assert layout.path_kind(path) == kind


def test_names_that_several_tries_write_differ() -> None:
    assert layout.data_path(0) != layout.data_path(0)
    assert layout.files_path(0) != layout.files_path(0)
    assert layout.seal_path(0) != layout.seal_path(0)
    assert layout.schema_dump_path(0, 5) != layout.schema_dump_path(0, 5)


def test_index_keys_ascend_from_the_newest_layer_of_the_newest_chain() -> None:
    layers = [
        ("1999/12/31-235959.99", 0, 0),
        ("2026/11/22-143000.11", 0, 0),
        ("2026/11/22-143000.12", 0, 0),
        ("2026/11/22-143000.12", 1, 1),
        ("2026/11/22-143000.12", 10, 10),
        ("2030/01/01-000000.00", 0, 0),
    ]
    keys = [layout.index_key(subdir, number, first) for subdir, first, number in layers]
    assert sorted(keys, reverse=True) == keys
    assert [layout.indexed_layer(key) for key in keys] == layers


def test_a_compacted_layer_has_an_index_key_of_its_own_beside_its_last_one() -> None:
    layers = [(5, 5), (0, 4), (2, 4), (4, 4), (3, 3)]
    keys = [layout.index_key(SUBDIR, number, first) for first, number in layers]
    assert sorted(keys) == keys
    assert [layout.indexed_layer(key) for key in keys] == [(SUBDIR, first, number) for first, number in layers]


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("chain/000003.json", (3, 3)),
        ("chain/000002-000004.json", (2, 4)),
        ("chain/000004-000002.json", None),
        ("chain/000004-000004.json", None),
        ("chain/000003.invalid.json", None),
        ("chain/3.json", None),
        ("000000/chain/000003.json", None),
    ],
)
def test_a_manifests_name_tells_its_layers(path: str, numbers: tuple[int, int] | None) -> None:
    assert layout.manifest_numbers(path) == numbers


def test_a_markers_name_tells_its_layer() -> None:
    assert layout.marked_number("chain/000003.invalid.json") == 3
    assert layout.marked_number("chain/000003.json") is None


@pytest.mark.parametrize("key", ["metadata/index/x.json", "metadata/index/1-2_20261122-143000.12_000000.json", "README.txt"])
def test_other_keys_are_no_index_entries(key: str) -> None:
    assert layout.indexed_layer(key) is None


def test_an_index_key_whose_order_contradicts_its_name_is_none() -> None:
    key = layout.index_key(SUBDIR, 0)
    assert layout.indexed_layer(key.replace("_20261122", "_20251122")) is None


@pytest.mark.parametrize("path", ["../other/000000/data/x.parquet", "/etc/passwd", "", "000000//x", "000000/./x", "a/.."])
def test_a_path_that_leaves_the_chain_is_damage(path: str) -> None:
    with pytest.raises(Damaged, match="not below its folder"):
        layout.object_key(SUBDIR, path)
