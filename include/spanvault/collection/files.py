"""The list of a layer's data files: Parquet, one row a file, ascending by path, bound to the manifest by its digest."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spanvault.collection.layout import files_path, object_key
from spanvault.columnar.read import read_batches, verified_file
from spanvault.columnar.write import DataFileWriter
from spanvault.errors import Damaged
from spanvault.model.manifest import DataFile, Manifest, ObjectReference
from spanvault.storage.base import Storage

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


def write_files(storage: Storage, subdir: str, number: int, files: Iterable[DataFile]) -> ObjectReference:
    """Write the list under a new name; the reference binds it. Raises Damaged when two files have one path."""
    ordered = sorted(files, key=lambda file: file.path)
    for one, other in itertools.pairwise(ordered):
        if one.path == other.path:
            raise Damaged(f"The backup {subdir} would list the file {one.path} twice.")
    path = files_path(number)
    with DataFileWriter(storage, object_key(subdir, path), SCHEMA) as target:
        for first in range(0, len(ordered), _ROWS):
            rows = [file.model_dump(mode="json") for file in ordered[first : first + _ROWS]]
            target.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return ObjectReference(path=path, sha256=target.sha256, bytes=target.bytes)


def read_files(storage: Storage, subdir: str, reference: ObjectReference) -> Iterator[DataFile]:
    """The listed files, ascending by path, in bounded memory; nothing is given out before the digest is checked.

    Raises Damaged when the list is gone, or its bytes or rows are not what was written.
    """
    where = object_key(subdir, reference.path)
    last = ""
    with verified_file(storage, where, sha256=reference.sha256, size=reference.bytes) as list_file:
        for row in _rows(list_file, where):
            file = _data_file(row, where)
            if file.path <= last:
                raise Damaged(f"The file list {where} is not in ascending order: {last!r} stands before {file.path!r}.")
            object_key(subdir, file.path)
            last = file.path
            yield file


def own_objects(manifest: Manifest) -> list[ObjectReference]:
    """The objects that the manifest itself names, ascending by path: file list, dumps and lists of transactions. They are
    in the collection, wherever the data files are."""
    own = [manifest.files, *(database.schema_dump for database in manifest.databases)]
    own += [database.commits for database in manifest.databases if database.commits is not None]
    if manifest.globals_dump is not None:
        own.append(manifest.globals_dump)
    return sorted(own, key=lambda reference: reference.path)


def part_objects(manifest: Manifest) -> list[ObjectReference]:
    """The descriptions of what the layer has at localities' URIs, ascending by path; they are where the data files are."""
    return sorted((part.document for part in manifest.parts), key=lambda reference: reference.path)


def objects_of(storage: Storage, manifest: Manifest) -> Iterator[ObjectReference]:
    """All objects that a manifest reaches, ascending by path, in bounded memory. Raises as `read_files` does."""
    listed = (
        ObjectReference(path=file.path, sha256=file.sha256, bytes=file.bytes)
        for file in read_files(storage, manifest.subdir, manifest.files)
    )
    return heapq.merge(own_objects(manifest), part_objects(manifest), listed, key=lambda reference: reference.path)


def _rows(list_file: Path, where: str) -> Iterator[dict[str, Any]]:
    try:
        for batch in read_batches(list_file):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"The file list {where} cannot be decoded as Parquet: {error}") from error


def _data_file(row: dict[str, Any], where: str) -> DataFile:
    try:
        return DataFile.model_validate(row)
    except ValueError as error:
        raise Damaged(f"The file list {where} has a row that this version cannot read: {row!r}.") from error
