from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from spanvault.collection.documents import parse_document
from spanvault.collection.identity import ensure_collection, read_collection, restore_identity
from spanvault.collection.layout import COLLECTION_KEY, manifest_key
from spanvault.crypto.stream import encrypt
from spanvault.errors import Damaged, NotFound, Refused
from spanvault.model.manifest import CollectionDocument
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, SYSTEM_IDENTIFIER, write_collection


def test_the_first_backup_makes_the_collection_and_the_next_finds_it(storage: LocalStorage) -> None:
    made = ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT)
    assert made.source_system_identifier == SYSTEM_IDENTIFIER
    assert ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT) == made
    assert read_collection(storage) == made


def test_racing_first_backups_agree_on_one_identity(storage: LocalStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT).id, range(16))
        )
    assert set(made) == {read_collection(storage).id}


def test_another_clusters_collection_is_refused(storage: LocalStorage) -> None:
    ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT)
    with pytest.raises(Refused, match=r"one collection is for one cluster") as refused:
        ensure_collection(storage, system_identifier="42", now=PLANNED_AT)
    assert SYSTEM_IDENTIFIER in str(refused.value)
    assert "42" in str(refused.value)


def test_no_collection_is_not_found(storage: LocalStorage) -> None:
    with pytest.raises(NotFound, match=r"no backup collection at file:///backups"):
        read_collection(storage)


def test_the_folder_of_one_backup_is_not_taken_for_a_collection(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    inside = LocalStorage(storage._root / manifest.subdir, f"file:///backups/{manifest.subdir}")
    with pytest.raises(NotFound, match="folder of one backup, not a collection"):
        read_collection(inside)


def test_a_lost_identity_comes_back_from_the_backups_that_can_be_read(storage: LocalStorage) -> None:
    made = ensure_collection(storage, system_identifier=SYSTEM_IDENTIFIER, now=PLANNED_AT)
    old = write_collection(storage)
    new = write_collection(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="new")
    storage.delete(COLLECTION_KEY)
    storage.put(manifest_key(new.subdir), b"{}")
    found = restore_identity(storage)
    assert found == read_collection(storage)
    assert (found.id, found.source_system_identifier) == (made.id, SYSTEM_IDENTIFIER)
    storage.delete(COLLECTION_KEY)
    storage.put(manifest_key(old.subdir), b"{}")
    with pytest.raises(Damaged, match=f"The manifest {manifest_key(new.subdir)} has no format version"):
        restore_identity(storage)
    assert storage.head(COLLECTION_KEY) is None


def test_a_lost_identity_is_not_guessed_where_backups_of_two_collections_lie(storage: LocalStorage, tmp_path: Path) -> None:
    write_collection(storage)
    other = LocalStorage(tmp_path / "other", "file:///other")
    stranger = write_collection(other, planned_at=PLANNED_AT + timedelta(days=1), run_key="stranger").subdir
    shutil.copytree(other._root / stranger, storage._root / stranger)
    storage.delete(COLLECTION_KEY)
    with pytest.raises(Damaged, match=r"backups there are of 2 collections or clusters: take those .* away") as damaged:
        restore_identity(storage)
    assert f"{COLLECTION_KEY} is missing in file:///backups" in str(damaged.value)
    assert storage.head(COLLECTION_KEY) is None
    shutil.rmtree(storage._root / stranger)
    assert restore_identity(storage) is not None


def _collection_json(**changes: object) -> bytes:
    fields = {
        "format_version": 2,
        "id": "abc",
        "created_at": "2026-11-22T14:30:00Z",
        "created_by": "spanvault 1",
        "source_system_identifier": "7",
    }
    return json.dumps(fields | changes).encode()


def test_a_newer_format_is_refused_before_its_unknown_fields_matter() -> None:
    data = _collection_json(format_version=3, a_field_of_the_future=1, id=None)
    with pytest.raises(Refused, match=r"newer Spanvault \(format 3; this version knows formats up to 2\); upgrade"):
        parse_document(CollectionDocument, data, "COLLECTION.json")


def test_the_format_of_the_first_version_is_refused_with_what_to_do() -> None:
    data = _collection_json(format_version=1)
    with pytest.raises(Refused, match=r"written by Spanvault 0\.1\.0 \(format 1\), which .* begin a new collection"):
        parse_document(CollectionDocument, data, "COLLECTION.json")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "has no format version"),
        (_collection_json(format_version="2"), "has no format version"),
        (_collection_json(format_version=True), "has no format version"),
        (_collection_json(format_version=0), "has no format version"),
        (_collection_json(unknown=1), "unknown"),
        (_collection_json(id=7), "the field id holds a value that it cannot have"),
        (encrypt(_collection_json(), bytes(32), "PLAN.json"), "is encrypted, and beside it is no encryption info"),
    ],
)
def test_bytes_that_are_no_document_are_damage(data: bytes, sentence: str) -> None:
    with pytest.raises(Damaged, match=sentence):
        parse_document(CollectionDocument, data, "COLLECTION.json")
