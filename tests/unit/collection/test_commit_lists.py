"""Lists of transactions: what is written is read back, in bounded memory, or is damage."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanvault.collection.commits import CommitsWriter, first_commit_after, newest_time_before, read_commits
from spanvault.collection.layout import object_key, path_kind
from spanvault.errors import Damaged
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Commit, ObjectReference
from spanvault.storage.local import LocalStorage

SUBDIR = "2026/11/22-143000.12"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _written(storage: LocalStorage, rows: list[tuple[int, int, int]]) -> ObjectReference:
    with CommitsWriter(storage, SUBDIR, 3, 16384) as writer:
        for row in rows:
            writer.add(*row)
    assert writer.reference is not None
    return writer.reference


def test_what_was_added_is_read_back(storage: LocalStorage) -> None:
    reference = _written(storage, [(0x100, 7, 1_000_001), (0x1_0000_0000_00, 8, 5)])
    assert path_kind(reference.path) == "commits"
    assert reference.path.startswith("000003/commits-16384-")
    assert list(read_commits(storage, SUBDIR, reference)) == [
        Commit(lsn=Lsn(0x100), xid=7, time=EPOCH + timedelta(microseconds=1_000_001)),
        Commit(lsn=Lsn(0x1_0000_0000_00), xid=8, time=EPOCH + timedelta(microseconds=5)),
    ]


def test_without_transactions_nothing_is_written(storage: LocalStorage) -> None:
    with CommitsWriter(storage, SUBDIR, 3, 16384) as writer:
        pass
    assert writer.reference is None
    assert list(storage.list()) == []


def test_a_failed_writer_leaves_no_object(storage: LocalStorage) -> None:
    with pytest.raises(RuntimeError), CommitsWriter(storage, SUBDIR, 3, 16384) as writer:
        for number in range(100_000):
            writer.add(number, number, number)
        raise RuntimeError
    assert writer.reference is None
    assert list(storage.list()) == []


def test_the_writer_refuses_positions_that_do_not_ascend(storage: LocalStorage) -> None:
    for second in (0x100, 0xFF):
        with pytest.raises(ValueError, match="comes after"), CommitsWriter(storage, SUBDIR, 3, 16384) as writer:
            writer.add(0x100, 1, 1)
            writer.add(second, 2, 2)
    assert list(storage.list()) == []


def test_a_long_list_is_searched_across_batches(storage: LocalStorage) -> None:
    count = 150_000
    # Stamps rise, but for one clock step: the transaction 100,000 is stamped as if it were 149,000.
    stamps = [149_000 if number == 100_000 else number for number in range(count)]
    reference = _written(storage, [(10 * number, number, stamp) for number, stamp in enumerate(stamps)])
    assert sum(1 for _ in read_commits(storage, SUBDIR, reference)) == count

    def after(stamp: int) -> int | None:
        return first_commit_after(storage, SUBDIR, reference, EPOCH + timedelta(microseconds=stamp))

    assert after(-1) == 0
    assert after(70_000) == 700_010
    assert after(99_999) == 1_000_000
    assert after(120_000) == 1_000_000  # the first in log order, not the first by time
    assert after(149_000) == 1_490_010
    assert after(count) is None

    def before(position: int) -> datetime | None:
        return newest_time_before(storage, SUBDIR, reference, Lsn(position))

    assert before(0) is None
    assert before(1) == EPOCH
    assert before(900_000) == EPOCH + timedelta(microseconds=89_999)
    assert before(1_200_000) == EPOCH + timedelta(microseconds=149_000)


def _stored(storage: LocalStorage, table: pa.Table) -> ObjectReference:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    path = "000003/commits-16384-00000000.parquet"
    storage.put(object_key(SUBDIR, path), data)
    return ObjectReference(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def test_damage_is_told(storage: LocalStorage) -> None:
    reference = _written(storage, [(1, 1, 1), (2, 2, 2)])
    key = object_key(SUBDIR, reference.path)
    data = storage.get(key)
    storage.put(key, data[:-1] + b"x")
    with pytest.raises(Damaged, match="SHA-256"):
        next(read_commits(storage, SUBDIR, reference))
    storage.delete(key)
    with pytest.raises(Damaged, match="is missing"):
        next(read_commits(storage, SUBDIR, reference))


def test_a_list_out_of_order_or_of_other_columns_is_damage(storage: LocalStorage) -> None:
    with CommitsWriter(storage, SUBDIR, 3, 1) as writer:
        writer.add(1, 1, 1)
    assert writer.reference is not None
    schema = pq.read_schema(storage._root / object_key(SUBDIR, writer.reference.path))
    rows = [{"lsn": lsn, "xid": 1, "time": EPOCH} for lsn in (5, 5)]
    with pytest.raises(Damaged, match="not in ascending order"):
        list(read_commits(storage, SUBDIR, _stored(storage, pa.Table.from_pylist(rows, schema=schema))))
    with pytest.raises(Damaged, match="has the columns"):
        list(read_commits(storage, SUBDIR, _stored(storage, pa.table({"lsn": [1]}))))


def test_a_list_that_was_never_parquet_is_damage_that_names_it(storage: LocalStorage) -> None:
    data = b"PAR1, and then nothing that a reader of Parquet knows. PAR1"
    path = "000003/commits-16384-00000000.parquet"
    storage.put(object_key(SUBDIR, path), data)
    reference = ObjectReference(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    for read in (lambda: next(read_commits(storage, SUBDIR, reference)), lambda: _after_all(storage, reference)):
        with pytest.raises(Damaged, match=f"The list of transactions {SUBDIR}/{path} cannot be decoded as Parquet"):
            read()


def _after_all(storage: LocalStorage, reference: ObjectReference) -> Lsn | None:
    return first_commit_after(storage, SUBDIR, reference, EPOCH)
