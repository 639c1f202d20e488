"""Several layers' changes carried over one by one, and whole rows in a later shape."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.types import file_schema
from spanvault.columnar.write import DataFileWriter
from spanvault.errors import Damaged
from spanvault.merge.carry import carried_segments, reshaped_rows, reshaped_text_columns, same_columns
from spanvault.merge.changes import merged_schema, merged_text_columns
from spanvault.merge.history import TableHistory, TableLayer
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table
from tests.unit.merge.history_kit import NOW, SUBDIR, SYSTEM_FIELDS, Change, History, column, state_of, table
from tests.unit.merge.source_double import Source

DOCS = table(column(1, "id", "int8", 20), column(2, "body"), column(3, "note"), column(4, "n", "int4", 23), key=(1,))
# `body` has another name, `note` is gone, and a column was added.
LATER = table(
    column(1, "id", "int8", 20),
    column(2, "text"),
    column(4, "n", "int4", 23),
    column(5, "late", "int4", 23, missing_value="{5}"),
    key=(1,),
)


def insert(seq: int, key: int, **more: Any) -> Change:
    return Change("I", seq, (key, "b", "n", 0), **more)


def update(seq: int, key: int, *unchanged: str, source: int | None = None) -> Change:
    return Change("U", seq, (key, "b", "n", 0), unchanged, None if source is None else (str(source),))


def carried(layers: Sequence[TableLayer]) -> list[list[dict[str, Any]]]:
    """The rows of each segment, as they lie in it: its files have no order."""
    return [[row for batch in segment for row in batch.to_pylist()] for segment in carried_segments(layers, None)]


def carried_layer(history: History, layers: Sequence[TableLayer]) -> TableLayer:
    """The layers' changes in the last of them, each segment a file."""
    last, files = layers[-1], []
    for sequence, segment in enumerate(carried_segments(layers, None), start=1):
        path = data_path(last.number)
        with DataFileWriter(history.storage, object_key(SUBDIR, path), merged_schema(layers)) as writer:
            for batch in segment:
                writer.write_batch(batch)
        files.append(
            DataFile(
                path=path,
                sha256=writer.sha256,
                bytes=writer.bytes,
                rows=writer.rows,
                database="shop",
                table_oid=last.table.oid,
                role="change",
                sequence=sequence,
                text_columns=tuple(sorted(merged_text_columns(layers))),
            )
        )
    return replace(last, files=tuple(files))


@pytest.mark.parametrize("seed", range(8))
def test_carried_layers_give_the_states_that_the_source_had(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    source = Source(tmp_path, chance)
    source.play(layers=chance.randrange(1, 6))
    layers = source.history.layers()
    first = chance.randrange(1, len(layers))
    history = TableHistory(layers[-1].table, (*layers[:first], carried_layer(source.history, layers[first:])))
    assert state_of(history) == source.states[-1][1]
    for lsn, state in chance.sample(source.states, min(3, len(source.states))):
        assert state_of(replace(history, upto=Lsn(lsn))) == state


def test_every_change_is_kept_and_segments_stay_apart(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([insert(number, number, lsn=100 + number) for number in range(5)])  # more than one batch
    history.changes([Change("U", 5, (1, "c", "n", 0), lsn=105)], part=True)
    history.changes([Change("D", 6, (2, None, None, None), lsn=106)])
    history.layer()
    history.changes([insert(0, 8, lsn=200), Change("T", 1, lsn=201)])
    segments = [sorted(segment, key=lambda row: row["_seq"]) for segment in carried(history.layers()[1:])]
    assert [[(row["_op"], row["id"], row["_lsn"]) for row in segment] for segment in segments] == [
        [("I", 0, 100), ("I", 1, 101), ("I", 2, 102), ("I", 3, 103), ("I", 4, 104), ("U", 1, 105)],
        [("D", 2, 106)],
        [("I", 8, 200), ("T", None, 201)],
    ]
    rows = [row for segment in segments for row in segment]
    numbers = [row["_seq"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert [row["_xid"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert {row["_time"] for row in rows} == {NOW}
    assert rows[5]["body"] == "c"


def test_seq_rises_over_layers_whose_files_are_not_in_its_order(tmp_path: Path) -> None:
    """Rows of a segment may lie in any order: the next layer begins behind the greatest number, not behind the last."""
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([insert(9, 1), insert(2, 2), insert(3, 3), insert(4, 4)])
    history.layer()
    history.changes([insert(0, 5), insert(1, 6)])
    (first, second) = ([row["_seq"] for row in segment] for segment in carried(history.layers()[1:]))
    assert max(first) < second[0] < second[1]
    assert [number - first[1] for number in first] == [7, 0, 1, 2]


def test_rows_are_in_the_last_shape_and_open_values_under_its_names(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([
        update(1, 1, "body", "note", source=11),
        update(2, 2, "note", source=12),  # only what was dropped later is open
        update(3, 3, "body", source=13),
        update(4, 4),
    ])
    history.layer(LATER)
    history.changes([Change("U", 1, (5, None, 7, 8), ("text",), ("15",))])
    layers = history.layers()[1:]
    (first, second) = carried(layers)
    names = ("id", "text", "n", "late", "_unchanged", "_source_key")
    assert [tuple(row[name] for name in names) for row in first] == [
        (1, None, 0, 5, ["text"], ["11"]),
        (2, "b", 0, 5, None, None),
        (3, None, 0, 5, ["text"], ["13"]),
        (4, "b", 0, 5, None, None),
    ]
    assert [tuple(row[name] for name in names) for row in second] == [(5, None, 7, 8, ["text"], ["15"])]
    schemas = {batch.schema for segment in carried_segments(layers, None) for batch in segment}
    assert schemas == {pa.schema([*SYSTEM_FIELDS, *file_schema(LATER)])}


def test_a_key_before_an_update_is_kept(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    row = {"_op": "D", "_lsn": 1, "_seq": 1, "_xid": 1, "_time": NOW, "_old_key": ["7"], "id": 7}
    history.write([row], pa.schema([*SYSTEM_FIELDS, *file_schema(DOCS)]), "change", (), 0)
    ((found,),) = carried(history.layers()[1:])
    assert (found["_old_key"], found["id"]) == (["7"], 7)


def test_files_without_columns_for_missing_values_get_them(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.changes([insert(1, 1)], old=True)
    ((row,),) = carried(history.layers())
    assert (row["id"], row["_old_key"], row["_unchanged"], row["_source_key"]) == (1, None, None, None)


def test_an_empty_file_has_no_batches(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([])
    history.changes([insert(1, 1)])
    assert [[row["id"] for row in segment] for segment in carried(history.layers()[1:])] == [[], [1]]


def test_a_column_that_one_file_has_as_text_is_text_in_all(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.layer()
    history.changes([insert(1, 1)], text=["n"])
    history.changes([insert(2, 2)])
    assert [[row["n"] for row in segment] for segment in carried(history.layers()[1:])] == [["0"], ["0"]]


def test_a_typed_value_beside_text_is_spelled_as_postgresql_does(tmp_path: Path) -> None:
    before = table(column(1, "id", "int8", 20), column(2, "data", "bytea", 17), key=(1,))
    seen = column(3, "seen", "timestamptz", 1184, missing_value='{"2020-01-02 03:04:05.5+00"}')
    history = History(tmp_path, before)
    history.layer()
    history.changes([Change("I", 1, (1, b"\x00\xff"))])
    history.layer(table(*before.columns, seen, key=(1,)))
    history.changes([Change("I", 1, (2, "\\x61", "infinity"))], text=["data", "seen"])
    found = [(row["id"], row["data"], row["seen"]) for segment in carried(history.layers()[1:]) for row in segment]
    assert found == [(1, "\\x00ff", "2020-01-02 03:04:05.5+00"), (2, "\\x61", "infinity")]


def test_shapes_have_the_same_columns_if_attnums_and_names_agree() -> None:
    assert same_columns(DOCS, DOCS.model_copy(update={"name": "other"}))
    renamed = table(column(1, "id", "int8", 20), column(2, "text"), column(3, "note"), column(4, "n", "int4", 23), key=(1,))
    again = table(column(1, "id", "int8", 20), column(2, "body"), column(5, "note"), column(4, "n", "int4", 23), key=(1,))
    assert not same_columns(DOCS, renamed)
    assert not same_columns(DOCS, again)  # dropped and added anew
    assert not same_columns(DOCS, LATER)


def whole(history: History, shape: Table) -> list[dict[str, Any]]:
    (layer,) = history.layers()
    batches = list(reshaped_rows(layer, layer.files[0], shape, None))
    schema = file_schema(shape, reshaped_text_columns(layer, layer.files[0], shape))
    assert {batch.schema for batch in batches} == {schema}
    return [row for batch in batches for row in batch.to_pylist()]


def test_whole_rows_come_in_a_later_shape(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.base([(1, "x", "gone", 10), (2, None, "gone", 20)])
    assert whole(history, LATER) == [
        {"id": 1, "text": "x", "n": 10, "late": 5},
        {"id": 2, "text": None, "n": 20, "late": 5},
    ]


def test_whole_rows_keep_as_text_what_has_no_typed_form(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.base([(1, "x", "y", 10)], text=["n"])
    never = column(5, "until", "date", 1082, missing_value="{infinity}")
    (layer,) = history.layers()
    shape = LATER.model_copy(update={"columns": (*LATER.columns[:3], never)})
    assert reshaped_text_columns(layer, layer.files[0], shape) == {"n", "until"}
    assert whole(history, shape) == [{"id": 1, "text": "x", "n": "10", "until": "infinity"}]


def test_whole_rows_of_a_table_that_lost_all_its_columns_are_still_so_many(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.base([(number, "x", "y", 0) for number in range(5)])
    assert whole(history, table()) == [{"_row": None}] * 5


def test_a_file_that_lacks_a_column_is_damage(tmp_path: Path) -> None:
    history = History(tmp_path, DOCS)
    history.base([(1, "x", "y", 0)])
    (layer,) = history.layers()
    file = layer.files[0]
    layer = replace(layer, table=table(*DOCS.columns, column(5, "late"), key=(1,)))
    with pytest.raises(Damaged, match=f"{file.path} of public.t has no column 'late'"):
        list(reshaped_rows(layer, file, layer.table, None))
