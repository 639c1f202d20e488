"""Change files as the merge sees them: a sequence of segments, and an order of all changes over all layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanvault.collection.layout import object_key
from spanvault.columnar.read import read_batches, verified_file
from spanvault.errors import Damaged
from spanvault.merge.history import TableLayer
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile

# Rows that are probed at once. A probe costs one pass over the changed keys, a larger window costs memory.
WINDOW_BYTES: Final = 32 << 20
# `_seq` of a layer stays below this, and so the position of a change is one number.
_SEQ_BITS: Final = 40


@dataclass(frozen=True)
class ChangeFile:
    """A change file. `segment` counts the segments of the whole history: `_source_key` is meant as of a segment's start.
    `floor` is what is added to `_seq` to get a position that orders the changes of all layers."""

    layer: TableLayer
    file: DataFile
    segment: int
    floor: int

    def positions(self, batch: pa.RecordBatch) -> pa.Array:
        """The positions of a batch's changes. Raises Damaged for a `_seq` that no writer gives."""
        seq = batch.column("_seq")
        bounds = pc.min_max(seq).as_py()
        if batch.num_rows and (seq.null_count or bounds["min"] < 0 or bounds["max"] >= 1 << _SEQ_BITS):
            raise Damaged(f"The change file {self.file.path} of {self.layer.table.qualified} has a `_seq` out of range.")
        return pc.add(seq, pa.scalar(self.floor, pa.int64()))


def change_files(layers: Sequence[TableLayer]) -> tuple[ChangeFile, ...]:
    """All change files, in order. Files of one layer that have the same `sequence` are parts of one segment."""
    numbers = itertools.count()
    found: list[ChangeFile] = []
    for place, layer in enumerate(sorted(layers, key=lambda one: one.number)):
        changes = sorted((file for file in layer.files if file.role == "change"), key=lambda file: (file.sequence, file.path))
        for _, parts in itertools.groupby(changes, key=lambda file: file.sequence):
            segment = next(numbers)
            found += [ChangeFile(layer, file, segment, place << _SEQ_BITS) for file in parts]
    return tuple(found)


def read_rows(
    layer: TableLayer, file: DataFile, columns: Sequence[str], scratch: Path | None, optional: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """The named columns of a data file, and those of `optional` that it has. Raises Damaged, naming the object, before
    any row of a file that is not what was written."""
    with _local(layer, file, scratch) as (path, names):
        lacking = [name for name in columns if name not in names]
        if lacking:
            raise Damaged(f"The file {file.path} of {layer.table.qualified} has no column {lacking[0]!r}.")
        yield from read_batches(path, [*columns, *(name for name in optional if name in names)])


def below(batch: pa.RecordBatch, upto: Lsn | None) -> pa.RecordBatch:
    """The changes of a batch before a cut (None: all)."""
    return batch if upto is None else batch.filter(pc.less(batch.column("_lsn"), pa.scalar(int(upto), pa.int64())))


@contextmanager
def _local(layer: TableLayer, file: DataFile, scratch: Path | None) -> Iterator[tuple[Path, frozenset[str]]]:
    key = object_key(layer.subdir, file.path)
    with verified_file(layer.storage, key, sha256=file.sha256, size=file.bytes, scratch=scratch) as path:
        yield path, frozenset(pq.read_schema(path).names)


def windows(batches: Iterable[pa.RecordBatch], window_bytes: int = WINDOW_BYTES) -> Iterator[pa.RecordBatch]:
    """The batches of one file gathered into ones of about `window_bytes`, in order; empty batches vanish."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        size += batch.nbytes
        if size >= window_bytes:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
