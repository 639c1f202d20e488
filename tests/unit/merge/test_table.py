"""The state of a table at a full backup's end, against a dictionary that plays the same history."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spanvault.collection.layout import object_key
from spanvault.errors import Damaged
from spanvault.merge.index import ChangeIndex
from spanvault.merge.scratch_database import temporary_database
from spanvault.merge.segments import windows
from spanvault.merge.table import CHANGES, Unit, table_at, units_of
from spanvault.model.schema import Table
from tests.unit.merge.history_kit import SUBDIR, Change, History, Row, column, expected, table

# A composite key of a typed and a text column, names that differ only in case, and one that change files use themselves.
TABLE = table(
    column(1, "id", "int8", 20),
    column(2, "Note"),
    column(3, "note", "int4", 23),
    column(4, "_op"),
    column(5, "part"),
    key=(1, 5),
)


class Layer(History):
    """A chain of one full backup."""

    def __init__(self, root: Path, of: Table = TABLE) -> None:
        super().__init__(root, of)

    def log(self, changes: Sequence[tuple[str, int, Row]], *, text: Sequence[str] = ()) -> None:
        """A change file: (operation, seq, row); of a deleted row only the key counts."""
        self.changes([Change(*change) for change in changes], text=text, old=True)


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
    layer.log([("U", 7, row(1, note=12)), ("D", 8, row(3)), ("I", 9, row(5))])
    assert layer.state() == expected([row(1, note=12), row(2), row(4), row(5)])


def test_the_last_change_of_a_key_wins_across_files_of_different_encodings(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1), row(2)], text=["id", "note"])
    layer.log([("U", 5, row(1, note=5)), ("D", 6, row(1)), ("I", 7, row(2, note=7))])
    layer.log([("I", 9, row(1, note=9)), ("D", 8, row(2))], text=["id"])
    assert layer.state() == expected([row(1, note=9)])


def test_every_column_of_a_composite_key_counts(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1, "a"), row(1, "b"), row(11, ""), row(1, "1")])
    layer.log([("D", 1, row(1, "b"))])
    assert layer.state() == expected([row(1, "a"), row(11, ""), row(1, "1")])


def test_exact_rows_keep_their_duplicates(tmp_path: Path) -> None:
    layer = Layer(tmp_path, table(column(1, "id", "int8", 20), column(2, "v", "text", 25), key=()))
    layer.base([(1, "x"), (1, "x"), (None, None)], role="exact")
    assert layer.state() == expected([(1, "x"), (1, "x"), (None, None)])


def test_a_table_of_which_nothing_is_left(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    assert layer.state() == Counter()
    layer.base([row(1)])
    layer.log([("D", 1, row(1)), ("D", 2, row(9))])
    assert layer.state() == Counter()


def test_units_are_the_same_in_any_order_of_the_file_list(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.base([row(1)])
    layer.log([("D", 1, row(1))])
    layer.base([row(2)])
    units = units_of(layer.history())
    layer.files.reverse()
    assert units == units_of(layer.history())
    assert [unit.id == CHANGES for unit in units] == [False, False, True]
    assert len({unit.id for unit in units}) == 3


def test_units_say_which_file_they_are_and_how_much_they_hold(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    for number in range(1, 7):
        layer.base([row(number)])
    # By span, whatever their random names are.
    wholes = [Unit(Path(file.path).stem, file, file.bytes, 1) for file in layer.files]
    assert list(units_of(layer.history())) == wholes
    layer.log([("D", 1, row(1)), ("D", 2, row(2)), ("D", 3, row(3))])
    layer.log([("I", 4, row(1))])
    changes = layer.files[6:]
    assert list(units_of(layer.history())) == [*wholes, Unit(CHANGES, None, sum(file.bytes for file in changes), 4)]


def test_a_counted_table_with_changes_is_one_unit_of_all_files(tmp_path: Path) -> None:
    history = History(tmp_path, table(column(1, "v"), capture="count"))
    history.base([("a",), ("b",)], role="exact")
    (file,) = history.files
    assert units_of(history.history()) == (Unit(Path(file.path).stem, file, file.bytes, 2),)
    history.layer()
    history.changes([Change("I", 1, ("c",)), Change("D", 2, ("a",)), Change("I", 3, ("a",))])
    assert units_of(history.history()) == (Unit(CHANGES, None, file.bytes + history.files[0].bytes, 5),)


def test_the_first_change_of_a_counted_table_counts_in_a_full_too(tmp_path: Path) -> None:
    history = History(tmp_path, table(column(1, "v"), capture="count"))
    history.base([("a",), ("a",), ("b",)], role="exact")
    history.changes([Change("D", 1, ("a",))])
    assert history.state() == expected([("a",), ("b",)])


def test_rows_of_a_table_that_lost_all_its_columns_are_still_so_many(tmp_path: Path) -> None:
    history = History(tmp_path, table(column(1, "v"), capture="count"))
    history.base([("a",), ("b",)], role="exact")
    history.layer(table(capture="count"))
    assert history.state() == {(): 2}


def test_changes_without_a_key_are_refused(tmp_path: Path) -> None:
    layer = Layer(tmp_path)
    layer.log([("D", 1, row(1))])
    layer.table = layer.table.model_copy(update={"key": ()})
    with pytest.raises(Damaged, match=r"public\.t has change files but no key"):
        layer.state()


@pytest.mark.parametrize("role", ["base", "change"])
def test_a_damaged_file_gives_no_row_at_all(tmp_path: Path, role: str) -> None:
    layer = Layer(tmp_path)
    layer.base([row(number) for number in range(100)])
    layer.log([("U", 1, row(5))])
    file = next(file for file in layer.files if file.role == role)
    stored = tmp_path / object_key(SUBDIR, file.path)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    batches = table_at(layer.history(), None)
    with pytest.raises(Damaged, match=file.path):
        next(batches)


def test_scratch_is_left_empty(tmp_path: Path) -> None:
    layer = Layer(tmp_path / "storage")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    layer.base([row(1), row(2)])
    layer.log([("D", 1, row(1))])
    assert sum(batch.num_rows for batch in table_at(layer.history(), scratch)) == 1
    assert list(scratch.iterdir()) == []


def test_rows_behind_a_batch_without_any_are_read() -> None:
    batches = [pa.RecordBatch.from_pydict({"n": pa.array(numbers, pa.int64())}) for numbers in ([1], [], [2], [], [3])]
    assert pa.Table.from_batches(windows(batches, window_bytes=8)).column("n").to_pylist() == [1, 2, 3]


def test_windows_hold_rows_in_order_within_the_limit() -> None:
    batches = [pa.RecordBatch.from_pydict({"n": pa.array(range(start, start + 10), pa.int64())}) for start in range(0, 100, 10)]
    gathered = list(windows(batches, window_bytes=200))  # a batch has 80 bytes
    assert [one.num_rows for one in gathered] == [30, 30, 30, 10]
    assert pa.Table.from_batches(gathered).column("n").to_pylist() == list(range(100))


@pytest.mark.slow
def test_millions_of_changed_keys_fit_the_memory_limit(tmp_path: Path) -> None:
    count, step = 3_000_000, 200_000
    with temporary_database(tmp_path) as (database, _):
        index = ChangeIndex(database, TABLE)
        for start in range(0, count, step):
            numbers = pa.array(range(start, start + step), pa.int64())
            keys = [numbers, pa.array(["a rather long second part of the key"] * step)]
            index.add(keys, numbers, 0, pa.array([True] * step))
        part = pa.array(["a rather long second part of the key"] * 2)
        assert index.overtaken([pa.array([count - 1, count]), part]).tolist() == [True, False]
        assert index.last(pa.array([0, count]), present_only=True).tolist() == [True, False]


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
                layer.log(part, text=as_text_columns)
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
