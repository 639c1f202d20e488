"""Several layers' changes as one segment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from spanvault.columnar.types import file_schema
from spanvault.errors import Damaged
from spanvault.merge.changes import merged_changes, merged_schema, merged_text_columns
from tests.unit.merge.history_kit import SYSTEM_FIELDS, Change, History, column, table

DOCS = table(column(1, "id", "int8", 20), column(2, "body"), column(3, "n", "int4", 23), key=(1,))


def hole(seq: int, key: int, source: int) -> Change:
    return Change("U", seq, (key, None, 0), unchanged=("body",), source=(str(source),))


def gone(seq: int, key: int) -> Change:
    return Change("D", seq, (key, None, None))


def rows(history: History, first: int, last: int, *names: str) -> list[tuple[Any, ...]]:
    batches = list(merged_changes(history.layers()[first : last + 1], None))
    if not batches:
        return []
    return [tuple(row[name] for name in names) for row in pa.Table.from_batches(batches).to_pylist()]


@pytest.fixture
def swap(tmp_path: Path) -> History:
    """The specification's example: two rows swap their keys over three layers."""
    history = History(tmp_path, DOCS)
    history.base([(1, "long A", 0), (2, "long B", 0)])
    for changes in ([gone(1, 1), hole(2, 9, 1)], [gone(1, 2), hole(2, 1, 2)], [gone(1, 9), hole(2, 2, 9)]):
        history.layer()
        history.changes(changes)
    return history


def test_a_source_key_becomes_the_one_before_the_range(swap: History) -> None:
    wanted = ("_seq", "_op", "id", "body", "_unchanged", "_source_key")
    assert rows(swap, 2, 3, *wanted) == [
        (1, "U", 1, None, ["body"], ["2"]),
        (2, "D", 9, None, None, None),
        (3, "U", 2, None, ["body"], ["9"]),
    ]
    assert rows(swap, 1, 3, *wanted) == [
        (1, "U", 1, None, ["body"], ["2"]),
        (2, "D", 9, None, None, None),
        (3, "U", 2, None, ["body"], ["1"]),
    ]


def test_a_value_within_the_range_is_filled_in(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([Change("U", 7, (1, "here", 0), lsn=70)])
    history.layer()
    history.changes([gone(1, 1), Change("U", 2, (2, None, 5), unchanged=("body",), source=("1",), lsn=80)])
    wanted = ("_seq", "_op", "_lsn", "_xid", "id", "body", "n", "_unchanged", "_source_key", "_old_key")
    assert rows(history, 1, 2, *wanted) == [
        (1, "D", 1, 1, 1, None, None, None, None, None),
        (2, "U", 80, 2, 2, "here", 5, None, None, None),
    ]


def test_a_truncate_comes_first_and_voids_what_was_before(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([Change("I", 1, (1, "x", 0)), Change("T", 2), Change("I", 3, (2, "y", 0))])
    history.layer()
    history.changes([Change("I", 1, (3, "z", 0)), Change("T", 2, lsn=22), Change("I", 3, (4, "w", 0))])
    assert rows(history, 1, 2, "_seq", "_op", "_lsn", "id") == [(1, "T", 22, None), (2, "I", 3, 4)]
    history.layer()
    history.changes([hole(1, 1, 1)])
    with pytest.raises(Damaged, match="large values were left out"):
        rows(history, 1, 3, "id")


def test_all_batches_have_one_schema_in_the_last_layers_shape(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([Change("U", 1, (1, "x", 10)), gone(2, 3)], text=["n"])
    shape = table(
        column(1, "key", "int8", 20),
        column(3, "body", "int4", 23),
        column(4, "f", "int4", 23, missing_value="{5}"),
        column(5, "d", "date", 1082, missing_value="{infinity}"),
        key=(1,),
    )
    history.layer(shape)
    history.changes([Change("U", 1, (2, 20, 6, None))])
    layers = history.layers()[1:]
    assert merged_text_columns(layers) == {"body", "d"}
    assert merged_schema(layers) == pa.schema([*SYSTEM_FIELDS, *file_schema(shape, frozenset({"body", "d"}))])
    assert {batch.schema for batch in merged_changes(layers, None)} == {merged_schema(layers)}
    assert rows(history, 1, 2, "_op", "key", "body", "f", "d") == [
        ("U", 1, "10", 5, "infinity"),
        ("D", 3, None, None, None),
        ("U", 2, "20", 6, None),
    ]


@pytest.mark.parametrize("capture", ["log", "count"])
def test_values_of_any_layer_come_as_postgresql_spells_them_where_one_has_text(
    tmp_path: Path, capture: Literal["log", "count"]
) -> None:
    key = (1,) if capture == "log" else ()
    kept = (column(1, "id", "int8", 20), column(2, "data", "bytea", 17), column(3, "done", "bool", 16))
    columns = (*kept, column(4, "local", "timestamp", 1114))
    seen = column(5, "seen", "timestamptz", 1184, missing_value='{"2020-01-02 03:04:05.5+00"}')
    moment = datetime(2020, 1, 2, tzinfo=UTC).replace(tzinfo=None)
    history = History(tmp_path, table(*columns, key=key, capture=capture))
    history.layer()
    history.changes([Change("I", 1, (1, b"\x00\xff", False, moment)), Change("I", 2, (2, b"", True, None))])
    history.layer(table(*columns, seen, key=key, capture=capture))
    text = ["data", "done", "local", "seen"]
    history.changes([Change("I", 1, (3, "\\x61", "f", "-infinity", "infinity"))], text=text)
    assert rows(history, 1, 2, "id", *text) == [
        (1, "\\x00ff", "f", "2020-01-02 00:00:00", "2020-01-02 03:04:05.5+00"),
        (2, "\\x", "t", None, "2020-01-02 03:04:05.5+00"),
        (3, "\\x61", "f", "-infinity", "infinity"),
    ]


def test_changes_behind_a_stretch_of_overtaken_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (batch.slice(first, 2) for batch in batches for first in range(0, batch.num_rows, 2))

    monkeypatch.setattr("spanvault.merge.changes.windows", narrow)
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([Change("I", seq, (seq % 2, f"version {seq}", 0)) for seq in range(1, 7)])
    assert rows(history, 1, 1, "id", "body") == [(1, "version 5"), (0, "version 6")]


def test_counted_changes_are_all_kept(tmp_path: Path) -> None:
    history = History(tmp_path, table(column(1, "v"), capture="count"))
    history.layer()
    history.changes([Change("I", 4, ("a",)), Change("I", 5, ("a",))])
    history.layer()
    history.changes([Change("D", 1, ("a",)), Change("T", 2), Change("I", 3, (None,)), Change("I", 4, (None,))])
    assert rows(history, 1, 1, "_seq", "_op", "v") == [(1, "I", "a"), (2, "I", "a")]
    assert rows(history, 1, 2, "_seq", "_op", "v") == [(1, "T", None), (2, "I", None), (3, "I", None)]
    assert rows(history, 0, 0) == []


def test_counted_changes_of_a_table_without_columns(tmp_path: Path) -> None:
    history = History(tmp_path, table(capture="count"))
    history.layer()
    history.changes([Change("I", 1, ()), Change("I", 2, ())])
    assert rows(history, 1, 1, "_op", "_row") == [("I", None), ("I", None)]
