"""Seal records: what a seal found, handed to the commit by key. Any number may lie in a layer; the manifest decides."""

from __future__ import annotations

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import object_key, seal_path
from spanvault.model.manifest import SealRecord
from spanvault.storage.base import Storage


def put_seal(storage: Storage, record: SealRecord) -> str:
    """Write the record under a new name; returns its key."""
    key = object_key(record.subdir, seal_path(record.number))
    with storage.open_write(key) as writer:
        writer.write(record.to_json())
    return key


def read_seal(storage: Storage, key: str) -> SealRecord:
    """The record at `key`. Raises NotFound."""
    return parse_document(SealRecord, storage.get(key), f"The seal record {key}")
