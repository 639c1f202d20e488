"""The list of a database's transactions in a layer with revision history: Parquet, ascending by log position.

It says where in the log a time lies. Stamps need not ascend, as clocks are set back; `time` is the stamp that counts: of
transactions that came from elsewhere (replication origins) the greatest local one so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from spanvault.collection.layout import commits_path, object_key
from spanvault.columnar.read import read_batches, verified_file
from spanvault.columnar.write import DataFileWriter
from spanvault.errors import Damaged
from spanvault.model.cut import Lsn, utc
from spanvault.model.manifest import Commit, ObjectReference
from spanvault.storage.base import Storage

SCHEMA = pa.schema([
    pa.field("lsn", pa.int64(), nullable=False),
    pa.field("xid", pa.int64(), nullable=False),
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
])
_ROWS = 1 << 16


class CommitsWriter:
    """Writes the transactions of one database in bounded memory; a context manager.

    After the block `reference` names the list; it is None if there was no transaction (nothing is written then), and if
    the block ended with an exception.
    """

    def __init__(self, storage: Storage, subdir: str, number: int, database_oid: int) -> None:
        self.reference: ObjectReference | None = None
        self._storage = storage
        self._subdir = subdir
        self._path = commits_path(number, database_oid)
        self._target: DataFileWriter | None = None
        self._rows: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def add(self, lsn: int, xid: int, time_us: int) -> None:
        """One more transaction: start of its commit record, id, microseconds since 1970 UTC. Raises ValueError unless
        `lsn` is beyond the one before."""
        if lsn <= self._last:
            raise ValueError(f"the commit at {Lsn(lsn)} comes after that at {Lsn(self._last)}")
        self._last = lsn
        for column, value in zip(self._rows, (lsn, xid, time_us), strict=True):
            column.append(value)
        if len(self._rows[0]) >= _ROWS:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None and self._rows[0]:
            self._flush()
        target = self._target
        if target is None:
            return
        target.__exit__(kind, error, traceback)
        if error is None:
            self.reference = ObjectReference(path=self._path, sha256=target.sha256, bytes=target.bytes)

    def _flush(self) -> None:
        if self._target is None:
            self._target = DataFileWriter(self._storage, object_key(self._subdir, self._path), SCHEMA).__enter__()
        arrays = [pa.array(column, field.type) for column, field in zip(self._rows, SCHEMA, strict=True)]
        self._target.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        for column in self._rows:
            column.clear()


def read_commits(storage: Storage, subdir: str, reference: ObjectReference) -> Iterator[Commit]:
    """The transactions, ascending by position, in bounded memory; nothing is given out before the digest is checked.

    Raises Damaged when the list is gone, or its bytes or rows are not what was written.
    """
    with _batches(storage, subdir, reference) as batches:
        for batch in batches:
            for row in batch.to_pylist():
                yield Commit(lsn=Lsn(row["lsn"]), xid=row["xid"], time=utc(row["time"]))


def first_commit_after(storage: Storage, subdir: str, reference: ObjectReference, moment: datetime) -> Lsn | None:
    """The position of the first transaction in log order whose time is later than `moment`; None if there is none.

    Raises Damaged as `read_commits` does.
    """
    limit = pa.scalar(utc(moment), SCHEMA.field("time").type)
    with _batches(storage, subdir, reference) as batches:
        for batch in batches:
            place = pc.index(pc.greater(batch.column("time"), limit), True).as_py()
            if place >= 0:
                return Lsn(batch.column("lsn")[place].as_py())
    return None


def newest_time_before(storage: Storage, subdir: str, reference: ObjectReference, position: Lsn) -> datetime | None:
    """The greatest time of the transactions before `position`; None if there is none. Raises Damaged."""
    newest: datetime | None = None
    with _batches(storage, subdir, reference) as batches:
        for batch in batches:
            before = batch.filter(pc.less(batch.column("lsn"), int(position)))
            if before.num_rows:
                time = pc.max(before.column("time")).as_py().astimezone(UTC)
                newest = time if newest is None else max(newest, time)
            if before.num_rows < batch.num_rows:
                break
    return newest


@contextmanager
def _batches(storage: Storage, subdir: str, reference: ObjectReference) -> Iterator[Iterator[pa.RecordBatch]]:
    key = object_key(subdir, reference.path)
    with verified_file(storage, key, sha256=reference.sha256, size=reference.bytes) as local:
        yield _checked(local, key)


def _checked(local: Path, key: str) -> Iterator[pa.RecordBatch]:
    last = -1
    try:
        for batch in read_batches(local):
            if batch.schema != SCHEMA:
                raise Damaged(f"The list of transactions {key} has the columns {batch.schema.names}, not those of such a list.")
            positions = batch.column("lsn").to_numpy()
            if positions[0] <= last or (positions[1:] <= positions[:-1]).any():
                raise Damaged(f"The list of transactions {key} is not in ascending order.")
            last = int(positions[-1])
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"The list of transactions {key} cannot be decoded as Parquet: {error}") from error
