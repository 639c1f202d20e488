from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from spanvault.collection.commit import commit
from spanvault.collection.files import read_files
from spanvault.collection.layout import object_key
from spanvault.collection.markers import mark_invalid
from spanvault.errors import Damaged, NotFound, Permanent
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import Manifest
from spanvault.model.target import DatabaseTarget
from spanvault.observe.show_backup import show_backup
from spanvault.observe.show_backups import show_backups
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, at, write_collection, write_compacted, write_layer, write_uncommitted

END = "2026-11-22 14:30:30.120000+00"
FACTS = ("full", None, END)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """An empty collection folder."""
    return LocalStorage(tmp_path / "backups", "file:///backups")


def test_show_backups_lists_complete_backups_oldest_first(storage: LocalStorage) -> None:
    write_collection(storage)
    write_collection(storage, planned_at=PLANNED_AT + timedelta(days=400), run_key="b")
    write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(days=401), run_key="c")
    result = show_backups(storage)
    assert result.columns == ("path",)
    assert result.rows == (("2026/11/22-143000.12",), ("2027/12/27-143000.12",))


def test_show_backups_without_a_collection_is_not_found(storage: LocalStorage) -> None:
    with pytest.raises(NotFound):
        show_backups(storage)


def test_show_backup_has_the_documented_columns_and_a_row_for_each_object(storage: LocalStorage) -> None:
    write_collection(storage)
    result = show_backup(storage)
    assert result.columns == (
        "database_name",
        "parent_schema_name",
        "object_name",
        "object_type",
        "backup_type",
        "start_time",
        "end_time",
        "size_bytes",
        "rows",
        "is_full_cluster",
        "regions",
        "restorable_from",
        "restorable_to",
    )
    assert result.rows == (
        (None, None, "shop", "database", *FACTS, None, None, True, None, None, None),
        ("shop", None, "audit", "schema", *FACTS, None, None, True, None, None, None),
        ("shop", None, "public", "schema", *FACTS, None, None, True, None, None, None),
        ("shop", "audit", "events", "table", *FACTS, 16384, 2, True, None, None, None),
        ("shop", "public", "orders", "table", *FACTS, 16384, 3, True, None, None, None),
        ("shop", "public", "open_orders", "table", *FACTS, 0, 0, True, None, None, None),
        ("shop", "public", "orders_id_seq", "table", *FACTS, 0, 0, True, None, None, None),
    )


def test_a_backup_of_a_database_is_not_of_the_full_cluster(storage: LocalStorage) -> None:
    commit(storage, write_uncommitted(storage, target=DatabaseTarget(names=("shop",))).manifest)
    assert {row["is_full_cluster"] for row in show_backup(storage).dicts()} == {False}


def test_check_files_adds_the_bytes_in_the_backup(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    result = show_backup(storage, manifest.subdir, check_files=True)
    assert result.columns[-4:] == ("regions", "file_bytes", "restorable_from", "restorable_to")
    sizes = {
        table: sum(
            (storage._root / object_key(manifest.subdir, file.path)).stat().st_size
            for file in read_files(storage, manifest.subdir, manifest.files)
            if file.table_oid == oid
        )
        for table, oid in (("orders", 16400), ("events", 16410))
    }
    assert {row["object_name"]: row["file_bytes"] for row in result.dicts()} == {
        "shop": None,
        "audit": None,
        "public": None,
        **sizes,
        "open_orders": 0,
        "orders_id_seq": 0,
    }


def test_check_files_names_what_is_missing(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    path = next(read_files(storage, manifest.subdir, manifest.files)).path
    storage.delete(object_key(manifest.subdir, path))
    with pytest.raises(Damaged, match=f"The following files are missing from the backup:\n\t{manifest.subdir}/{path}"):
        show_backup(storage, check_files=True)
    assert show_backup(storage).rows


def test_as_json_is_the_manifest(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    result = show_backup(storage, as_json=True)
    assert result.columns == ("manifest",)
    assert len(result.rows) == 1
    shown = json.loads(str(result.rows[0][0]))
    assert shown["subdir"] == manifest.subdir
    assert shown["files"]["sha256"] == manifest.files.sha256
    assert shown == json.loads(storage.get(f"{manifest.subdir}/chain/000000.json"))


def _cut(number: int) -> Cut:
    return Cut(lsn=Lsn(0x200 + 0x100 * number), time=at(30 + 60 * number))


def _chain(storage: LocalStorage, location: LocalStorage | None = None) -> list[Manifest]:
    """A full at 14:30:30, a layer without history to 14:31:30 and one with it to 14:32:30, whose data may be elsewhere."""
    full = write_collection(storage)
    one = write_layer(storage, full, end=_cut(1), commits={"shop": [(0x280, at(60))]})
    place = ("file:///elsewhere", location) if location is not None else None
    two = write_layer(storage, one, end=_cut(2), commits={"shop": [(0x380, at(120))]}, history=True, location=place)
    return [full, one, two]


def test_each_layer_is_shown_with_its_window(storage: LocalStorage) -> None:
    chain = _chain(storage)
    write_compacted(storage, chain[0].subdir, 1, 2)
    rows = [row for row in show_backup(storage).dicts() if row["object_name"] == "orders"]
    columns = ("backup_type", "start_time", "end_time", "restorable_from", "restorable_to")
    first, second, third = (f"2026-11-22 14:{minute}:30.120000+00" for minute in (30, 31, 32))
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("full", None, first, None, None),
        ("incremental", first, second, None, None),
        ("incremental", second, third, second, third),
    ]
    assert list(show_backups(storage).rows) == [(chain[0].subdir,)]
    assert [json.loads(str(row[0]))["number"] for row in show_backup(storage, as_json=True).rows] == [0, 1, 2]


def test_layers_from_a_marked_one_on_are_not_shown(storage: LocalStorage) -> None:
    chain = _chain(storage)
    mark_invalid(storage, chain[0].subdir, 1, "bits were lost", at(999))
    assert {row["backup_type"] for row in show_backup(storage).dicts()} == {"full"}


def test_a_layer_whose_data_is_elsewhere_is_shown_and_checked_there(storage: LocalStorage, tmp_path: Path) -> None:
    location = LocalStorage(tmp_path / "elsewhere", "file:///elsewhere")
    _chain(storage, location)
    assert len({row["end_time"] for row in show_backup(storage).dicts()}) == 3
    (file,) = location.list()
    checked = show_backup(storage, check_files=True, open_location=lambda _: location)
    last = [row for row in checked.dicts() if row["object_name"] == "orders"][-1]
    assert last["file_bytes"] == file.size
    with pytest.raises(Permanent, match="incremental location file:///elsewhere"):
        show_backup(storage, check_files=True)
    location.delete(file.key)
    with pytest.raises(Damaged, match="The following files are missing from the backup"):
        show_backup(storage, check_files=True, open_location=lambda _: location)
