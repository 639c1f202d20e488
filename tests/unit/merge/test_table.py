"""The state of a table at a layer's end, against a dictionary that plays the same history."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import file_schema
from spanvault.columnar.write import DataFileWriter
from spanvault.errors import Damaged
from spanvault.merge.rows import ChangedKeys, windows
from spanvault.merge.table import CHANGES, table_at, units_of
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Column, Table
from spanvault.storage.local import LocalStorage

SUBDIR = "2026/11/22-143000.00"
NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)
SYSTEM_FIELDS = [
    pa.field("_op", pa.string()),
    pa.field("_lsn", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_xid", pa.int64()),
    pa.field("_time", pa.timestamp("us", tz="UTC")),
]

Row = tuple[Any, ...]
Role = Literal["base", "change", "exact"]


def column(attnum: int, name: str, type_name: str, oid: int) -> Column:
    return Column(attnum=attnum, name=name, type_oid=oid, type_name=type_name, typmod=-1, base_type=type_name, type_kind="b")


def table(*columns: Column, key: tuple[int, ...]) -> Table:
    return Table(oid=16400, schema_name="public", name="t", columns=columns, key=key, capture="log")


# A composite key of a typed and a text column, names that differ only in case, and one that change files use themselves.
TABLE = table(
    column(1, "id", "int8", 20),
    column(2, "Note", "text", 25),
    column(3, "note", "int4", 23),
    column(4, "_op", "text", 25),
    column(5, "part", "text", 25),
    key=(1, 5),
)


@dataclass
class Layer:
    """Writes data files of one table below `root`, as a backup does."""

    root: Path
    table: Table = TABLE
    files: list[DataFile] = field(default_factory=list)

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.root, f"file://{self.root}")

    def base(self, rows: Sequence[Row], *, text: Sequence[str] = (), role: Role = "base") -> None:
        schema = file_schema(self.table, frozenset(text))
        self._write([_stored(self.table, row, schema) for row in rows], schema, role, text, sequence=0)

    def changes(self, changes: Sequence[tuple[str, int, Row]], *, text: Sequence[str] = ()) -> None:
        """(operation, seq, row); of a deleted row only the key counts."""
        data = file_schema(self.table, frozenset(text))
        schema = pa.schema([*SYSTEM_FIELDS, *data])
        keys = {key.stored_as for key in self.table.key_columns}
        rows = []
        for operation, seq, row in changes:
            values = _stored(self.table, row, data)
            kept = {name: value if operation != "D" or name in keys else None for name, value in values.items()}
            rows.append({"_op": operation, "_lsn": seq, "_seq": seq, "_xid": seq, "_time": NOW, **kept})
        self._write(rows, schema, "change", text, sequence=len(self.files))

    def _write(self, rows: list[dict[str, Any]], schema: pa.Schema, role: Role, text: Sequence[str], sequence: int) -> None:
        path = data_path(0)
        with DataFileWriter(self.storage, object_key(SUBDIR, path), schema) as writer:
            for first in range(0, len(rows), 3):  # several batches, so that row numbers across them matter
                writer.write_batch(pa.RecordBatch.from_pylist(rows[first : first + 3], schema=schema))
        self.files.append(
            DataFile(
                path=path,
                sha256=writer.sha256,
                bytes=writer.bytes,
                rows=writer.rows,
                database="shop",
                table_oid=self.table.oid,
                role=role,
                span=f"span-{len(self.files):03d}" if role == "base" else None,
                sequence=sequence,
                text_columns=tuple(text),
            )
        )

    def state(self) -> Counter[tuple[str | None, ...]]:
        """Every row as text with how often it came."""
        names = [one.stored_as for one in self.table.data_columns]
        found: Counter[tuple[str | None, ...]] = Counter()
        for batch in table_at(self.storage, SUBDIR, self.table, self.files, None):
            assert batch.schema.names == names
            found.update(as_text(row.values()) for row in batch.to_pylist())
        return found


def _stored(of: Table, row: Row, schema: pa.Schema) -> dict[str, Any]:
    values = {}
    for one, value in zip(of.data_columns, row, strict=True):
        is_text = pa.types.is_string(schema.field(one.stored_as).type)
        values[one.stored_as] = str(value) if is_text and value is not None else value
    return values


def as_text(row: Iterable[Any]) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value) for value in row)


def expected(rows: Iterable[Row]) -> Counter[tuple[str | None, ...]]:
    return Counter(as_text(row) for row in rows)


def row(identity: int, part: str = "a", note: int | None = 0) -> Row:
    return (identity, None, note, "U", part)


def test_without_changes_every_row_comes_as_it_is(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    rows = [row(number) for number in range(10)]
    layer.base(rows[:4])
    layer.base(rows[4:], text=["note"])
    assert layer.state() == expected(rows)


def test_a_changed_key_hides_its_base_rows_however_often_they_were_seen(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1, note=10), row(2), row(3)])
    layer.base([row(1, note=11), row(4)])  # row 1 moved while it was read, and was seen twice
    layer.changes([("U", 7, row(1, note=12)), ("D", 8, row(3)), ("I", 9, row(5))])
    assert layer.state() == expected([row(1, note=12), row(2), row(4), row(5)])


def test_the_last_change_of_a_key_wins_across_files_of_different_encodings(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1), row(2)], text=["id", "note"])
    layer.changes([("U", 5, row(1, note=5)), ("D", 6, row(1)), ("I", 7, row(2, note=7))])
    layer.changes([("I", 9, row(1, note=9)), ("D", 8, row(2))], text=["id"])
    assert layer.state() == expected([row(1, note=9)])


def test_every_column_of_a_composite_key_counts(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1, "a"), row(1, "b"), row(11, ""), row(1, "1")])
    layer.changes([("D", 1, row(1, "b"))])
    assert layer.state() == expected([row(1, "a"), row(11, ""), row(1, "1")])


def test_exact_rows_keep_their_duplicates(tmp_path: Path) -> None:
    layer = Layer(tmp_path, table(column(1, "id", "int8", 20), column(2, "v", "text", 25), key=()))
    layer.base([(1, "x"), (1, "x"), (None, None)], role="exact")
    assert layer.state() == expected([(1, "x"), (1, "x"), (None, None)])


def test_a_table_of_which_nothing_is_left(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    assert layer.state() == Counter()
    layer.base([row(1)])
    layer.changes([("D", 1, row(1)), ("D", 2, row(9))])
    assert layer.state() == Counter()


def test_units_are_the_same_in_any_order_of_the_file_list(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1)])
    layer.changes([("D", 1, row(1))])
    layer.base([row(2)])
    units = units_of(layer.files)
    assert units == units_of(list(reversed(layer.files)))
    assert [unit.id == CHANGES for unit in units] == [False, False, True]
    assert len({unit.id for unit in units}) == 3


def test_changes_without_a_key_are_refused(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.changes([("D", 1, row(1))])
    keyless = layer.table.model_copy(update={"key": ()})
    with pytest.raises(Damaged, match=r"public\.t has change files but no key"):
        list(table_at(layer.storage, SUBDIR, keyless, layer.files, None))


@pytest.mark.parametrize("role", ["base", "change"])
def test_a_damaged_file_gives_no_row_at_all(tmp_path: Path, role: str) -> None:
    layer = Layer(tmp_path)
    layer.base([row(number) for number in range(100)])
    layer.changes([("U", 1, row(5))])
    file = next(file for file in layer.files if file.role == role)
    stored = tmp_path / object_key(SUBDIR, file.path)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    batches = table_at(layer.storage, SUBDIR, TABLE, layer.files, None)
    with pytest.raises(Damaged, match=file.path):
        next(batches)


def test_scratch_is_left_empty(tmp_path: Path) -> None:
    layer = Layer(tmp_path / "storage")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    layer.base([row(1), row(2)])
    layer.changes([("D", 1, row(1))])
    assert sum(batch.num_rows for batch in table_at(layer.storage, SUBDIR, TABLE, layer.files, scratch)) == 1
    assert list(scratch.iterdir()) == []


def test_windows_hold_rows_in_order_within_the_limit() -> None:
    batches = [pa.RecordBatch.from_pydict({"n": pa.array(range(start, start + 10), pa.int64())}) for start in range(0, 100, 10)]
    gathered = list(windows(batches, window_bytes=200))  # a batch has 80 bytes
    assert [one.num_rows for one in gathered] == [30, 30, 30, 10]
    assert pa.concat_tables(gathered).column("n").to_pylist() == list(range(100))


@pytest.mark.slow
def test_millions_of_changed_keys_fit_the_memory_limit(tmp_path: Path) -> None:
    count, step = 3_000_000, 200_000
    with ChangedKeys(2, tmp_path) as index:
        for start in range(0, count, step):
            numbers = pa.array(range(start, start + step), pa.int64())
            keys = [numbers.cast(pa.string()), pa.array(["a rather long second part of the key"] * step)]
            index.add(keys, numbers, pa.array([True] * step))
        probe = pa.chunked_array([pa.array([str(count - 1), str(count)])])
        part = pa.chunked_array([pa.array(["a rather long second part of the key"] * 2)])
        assert index.overtaken([probe, part]).tolist() == [True, False]
        assert index.surviving(pa.chunked_array([pa.array([0, count])])).tolist() == [True, False]


KEYS = st.tuples(st.integers(0, 4), st.sampled_from(["a", "A", "", " a"]))
VALUES = st.tuples(st.none() | st.text(max_size=3).filter(lambda text: "\x00" not in text), st.none() | st.integers(-3, 3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    start=st.dictionaries(KEYS, VALUES, max_size=12),
    events=st.lists(st.tuples(KEYS, st.none() | VALUES), max_size=25),
    seen=st.lists(st.integers(0, 25), min_size=1, max_size=4),
    split=st.integers(0, 25),
    as_text_columns=st.lists(st.sampled_from(["id", "note"]), unique=True),
)
def test_any_history_read_at_any_moments_gives_the_state_at_its_end(
    start: dict[Any, Any], events: list[Any], seen: list[int], split: int, as_text_columns: list[str]
) -> None:
    """Slices of the base are read at different moments of the history (`seen`); a row may come in several of them, as
    rows move. Every event is in the change files. The state must be what the dictionary holds in the end."""

    def whole(key: Any, value: Any) -> Row:
        return (key[0], value[0], value[1], value[0], key[1])

    moments = [dict(start)]
    changes: list[tuple[str, int, Row]] = []
    for seq, (key, value) in enumerate(events):
        after = dict(moments[-1])
        if value is None:
            after.pop(key, None)
            changes.append(("D", seq, whole(key, (None, None))))
        else:
            changes.append(("U" if key in after else "I", seq, whole(key, value)))
            after[key] = value
        moments.append(after)
    with tempfile.TemporaryDirectory() as folder:
        layer = Layer(Path(folder))
        changed = {key for key, _ in events}
        for number, moment in enumerate(seen):
            state = moments[min(moment, len(events))]
            # Rows without a change are seen exactly once; the others may be seen by any slice.
            rows = [whole(*item) for item in state.items() if item[0] in changed or item[0][0] % len(seen) == number]
            layer.base(rows, text=as_text_columns if number % 2 else [])
        for part in (changes[:split], changes[split:]):
            if part:
                layer.changes(part, text=as_text_columns)
        assert layer.state() == expected(whole(*item) for item in moments[-1].items())


def test_a_file_written_elsewhere_may_hold_other_columns_around_ours(tmp_path: Path) -> None:
    """Columns are found by name, so a reader does not depend on their order in the file."""
    layer = Layer(tmp_path)
    layer.base([row(1, note=3)])
    stored = tmp_path / object_key(SUBDIR, layer.files[0].path)
    original = pq.read_table(stored)
    shuffled = original.select(list(reversed(original.schema.names)))
    pq.write_table(shuffled, stored)
    data = stored.read_bytes()
    layer.files[0] = layer.files[0].model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    assert layer.state() == expected([row(1, note=3)])
