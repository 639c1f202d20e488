"""Reading data files: the whole file is checked before any of its rows is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spanvault.columnar.scratch import scratch_file
from spanvault.errors import Damaged, NotFound
from spanvault.storage.base import Storage
from spanvault.storage.keys import place_of
from spanvault.storage.where import lacks_place_of, object_uri

_BATCH_ROWS: Final = 1 << 16


@contextmanager
def verified_file(storage: Storage, key: str, *, sha256: str, size: int, scratch: Path | None = None) -> Iterator[Path]:
    """A local copy of an object whose bytes are those that were recorded; deleted when the block ends.

    `scratch` is the folder for it (default: the system's temporary folder). Raises Damaged when the object is missing
    or its size or SHA-256 differs, and the storage's Retryable errors.
    """
    with scratch_file(scratch, ".parquet") as (local, path):
        digest, received = hashlib.sha256(), 0
        try:
            for chunk in storage.read_chunks(key, 4 << 20):
                digest.update(chunk)
                received += len(chunk)
                local.write(chunk)
        except NotFound:
            if lacks_place_of(storage, key):
                what = f"is missing, and no URI is given for its locality {place_of(key)}: give that of the place of its files."
            else:
                what = "is missing, but the backup needs it; run a validation to see what else is."
            raise _damaged(storage, key, what) from None
        if received != size:
            raise _damaged(storage, key, f"has {received} bytes, but {size} were written; the stored file is damaged.")
        if digest.hexdigest() != sha256:
            raise _damaged(storage, key, "does not have the SHA-256 that was recorded; the stored file is damaged.")
        local.flush()
        yield path


def _damaged(storage: Storage, key: str, what: str) -> Damaged:
    return Damaged(f"{object_uri(storage, key)} {what}")


def read_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a local Parquet file, with the named columns in that order (default: all).

    A batch never spans row groups, which bounds its bytes. `columns=[]` gives batches with rows and without columns.
    """
    with pq.ParquetFile(file, memory_map=True) as parquet:
        wanted = parquet.schema_arrow.names if columns is None else list(columns)
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                # pyarrow keeps the file's order.
                yield batch.select(wanted)


def key_text(batch: pa.RecordBatch | pa.Table, columns: Sequence[str]) -> list[pa.Array]:
    """PostgreSQL's text of key columns (stored names): the same in every file, typed or not."""
    return [column if pa.types.is_string(column.type) else pc.cast(column, pa.string()) for column in map(batch.column, columns)]
