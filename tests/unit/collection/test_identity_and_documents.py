from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from spanvault.collection.documents import parse_document
from spanvault.collection.identity import ensure_collection, read_collection
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
