"""The list of a layer's data files: Parquet, one row a file, ascending by path, bound to the manifest by its digest."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from spanvault.collection.layout import files_path, object_key
from spanvault.errors import Damaged
from spanvault.model.manifest import DataFile, ObjectReference
from spanvault.storage.base import Storage, Writer

SCHEMA = pa.schema([
    pa.field("path", pa.string(), nullable=False),
    pa.field("sha256", pa.string(), nullable=False),
    pa.field("bytes", pa.int64(), nullable=False),
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("database", pa.string(), nullable=False),
    pa.field("table_oid", pa.int64(), nullable=False),
    pa.field("role", pa.string(), nullable=False),
    pa.field("span", pa.string()),
    pa.field("sequence", pa.int64(), nullable=False),
    pa.field("as_of", pa.string()),
    pa.field("locality", pa.string(), nullable=False),
    pa.field("text_columns", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
])
_ROWS = 8192
_IN_MEMORY = 16 << 20


class _HashingFile:
    """What pyarrow writes to: passes bytes on and sums them up."""

    closed = False

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        self._writer.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The object is closed by its storage."""

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def write_files(storage: Storage, subdir: str, number: int, files: Iterable[DataFile]) -> ObjectReference:
    """Write the list under a new name; the reference binds it. Raises Damaged when two files have one path."""
    ordered = sorted(files, key=lambda file: file.path)
    for one, other in itertools.pairwise(ordered):
        if one.path == other.path:
            raise Damaged(f"The backup {subdir} would list the file {one.path} twice.")
    path = files_path(number)
    with storage.open_write(object_key(subdir, path)) as writer:
        target = _HashingFile(writer)
        with pq.ParquetWriter(pa.PythonFile(target, mode="w"), SCHEMA, compression="zstd") as parquet:
            for first in range(0, len(ordered), _ROWS):
                rows = [file.model_dump(mode="json") for file in ordered[first : first + _ROWS]]
                parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return ObjectReference(path=path, sha256=target.sha256, bytes=target.size)


def read_files(storage: Storage, subdir: str, reference: ObjectReference) -> Iterator[DataFile]:
    """The listed files, ascending by path, in bounded memory; nothing is given out before the digest is checked.

    Raises NotFound when the list is gone, Damaged when its bytes or rows are not what was written.
    """
    where = object_key(subdir, reference.path)
    last = ""
    with verified_object(storage, subdir, reference) as content:
        for row in _rows(content, where):
            file = _data_file(row, where)
            if file.path <= last:
                raise Damaged(f"The file list {where} is not in ascending order: {last!r} stands before {file.path!r}.")
            object_key(subdir, file.path)
            last = file.path
            yield file


@contextmanager
def verified_object(storage: Storage, subdir: str, reference: ObjectReference) -> Iterator[IO[bytes]]:
    """A local, seekable copy of a referenced object, whose size and digest have been checked.

    Raises NotFound, and Damaged with the key in its sentence.
    """
    key = object_key(subdir, reference.path)
    digest = hashlib.sha256()
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as content:
        for chunk in storage.read_chunks(key):
            digest.update(chunk)
            content.write(chunk)
        if digest.hexdigest() != reference.sha256:
            raise Damaged(
                f"{key} is damaged: its SHA-256 is {digest.hexdigest()}, and {reference.sha256} was written"
                f" ({content.tell()} of {reference.bytes} bytes)."
            )
        content.seek(0)
        yield content


def _rows(content: IO[bytes], where: str) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(content).iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"The file list {where} cannot be decoded as Parquet: {error}") from error


def _data_file(row: dict[str, Any], where: str) -> DataFile:
    try:
        return DataFile.model_validate(row)
    except ValueError as error:
        raise Damaged(f"The file list {where} has a row that this version cannot read: {row!r}.") from error
