"""A file of texts that are found again by number; memory holds none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spanvault.columnar.scratch import scratch_faults

_SCHEMA = pa.schema([pa.field("value", pa.string())])


class ValueFile:
    """Texts, nulls among them, numbered from 0 in the order in which they are appended. First all appending, then all
    taking; `close` at the end. The file, in a scratch folder, is the caller's to delete. Raises as `scratch_faults`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._above = path.parent.parent
        with scratch_faults(self._above):
            self._sink = pa.OSFile(str(path), "wb")
            self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(self._sink, _SCHEMA)
        self._starts = [0]
        self._map: pa.MemoryMappedFile | None = None
        self._reader: pa.RecordBatchFileReader | None = None

    def append(self, texts: pa.Array) -> int:
        """Add texts (at least one); the number of the first."""
        assert self._writer is not None  # noqa: S101 - appending comes before taking
        with scratch_faults(self._above):
            self._writer.write_batch(pa.RecordBatch.from_arrays([texts], schema=_SCHEMA))
        self._starts.append(self._starts[-1] + len(texts))
        return self._starts[-2]

    def take(self, numbers: NDArray[np.int64]) -> pa.Array:
        """The texts of these numbers, in their order."""
        reader = self._opened()
        places = np.searchsorted(np.array(self._starts), numbers, side="right") - 1
        order = np.argsort(places, kind="stable")
        taken = []
        for place in np.unique(places):
            own = numbers[order][places[order] == place] - self._starts[place]
            taken.append(reader.get_batch(int(place)).column(0).take(pa.array(own)))
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(taken).take(pa.array(back)) if taken else pa.array([], pa.string())

    def close(self) -> None:
        """Release the file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with scratch_faults(self._above), self._sink:
                writer.close()
        if self._map is not None:
            self._reader = None
            self._map.close()

    def _opened(self) -> pa.RecordBatchFileReader:
        if self._reader is None:
            self.close()
            self._map = pa.memory_map(str(self._path))
            self._reader = pa.ipc.open_file(self._map)
        return self._reader
