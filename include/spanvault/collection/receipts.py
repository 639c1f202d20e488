"""Receipts: which spans are on storage. The first receipt of a span wins, so that overlapping tries agree."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from spanvault.collection.documents import parse_document
from spanvault.collection.layout import receipt_key, receipt_prefix
from spanvault.errors import AlreadyExists, Damaged
from spanvault.model.manifest import Receipt
from spanvault.storage.base import Storage

_READERS = 16  # requests in flight; each is a small object, so latency is what they hide


def put_receipt(storage: Storage, subdir: str, number: int, receipt: Receipt) -> Receipt:
    """Write the receipt; the winner is returned: an existing one if it came first."""
    key = receipt_key(subdir, number, receipt.span)
    try:
        storage.put(key, receipt.to_json(), create_only=True)
    except AlreadyExists:
        return _read(storage, key)
    return receipt


def spans_received(storage: Storage, subdir: str, number: int, spans: Collection[str]) -> frozenset[str]:
    """Those of `spans` that have a receipt. It is one listing: every batch asks, and reading the receipts of all others would
    cost a request for each span and batch."""
    keys = {receipt_key(subdir, number, span): span for span in spans}
    return frozenset(keys[info.key] for info in storage.list(receipt_prefix(subdir, number)) if info.key in keys)


def read_receipts(storage: Storage, subdir: str, number: int) -> dict[str, Receipt]:
    """All receipts of a layer, by span. Raises Damaged for one that lies under another span's name."""
    keys = [info.key for info in storage.list(receipt_prefix(subdir, number))]
    if not keys:
        return {}
    with ThreadPoolExecutor(min(_READERS, len(keys))) as readers:
        receipts = list(readers.map(lambda key: _read(storage, key), keys))
    for key, receipt in zip(keys, receipts, strict=True):
        if key != receipt_key(subdir, number, receipt.span):
            raise Damaged(f"The receipt {key} is that of span {receipt.span}: it was copied or renamed.")
    return {receipt.span: receipt for receipt in receipts}


def _read(storage: Storage, key: str) -> Receipt:
    return parse_document(Receipt, storage.get(key), f"The receipt {key}")
