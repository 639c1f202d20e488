"""Any history over any layers, cut anywhere, gives the state that the source had there; so it does when layers of it are
merged into one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from spanvault.collection.layout import data_path, object_key
from spanvault.columnar.write import DataFileWriter
from spanvault.merge.changes import merged_changes, merged_schema, merged_text_columns
from spanvault.merge.history import TableHistory, TableLayer
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile
from tests.unit.merge.history_kit import SUBDIR, Change, History, column, expected, state_of, table
from tests.unit.merge.source_double import Source

SEEDS = [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 100))]


def play(root: Path, seed: int) -> Source:
    chance = random.Random(seed)
    source = Source(root, chance)
    source.play(layers=chance.randrange(1, 6))
    return source


@pytest.mark.parametrize("seed", SEEDS)
def test_any_cut_gives_the_state_that_the_source_had(tmp_path: Path, seed: int) -> None:
    source = play(tmp_path, seed)
    assert source.history.state() == source.states[-1][1]
    for lsn, state in random.Random(seed).sample(source.states, min(3, len(source.states))):
        assert source.history.state(upto=lsn) == state


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_merged_into_one_give_the_same_states(tmp_path: Path, seed: int) -> None:
    source = play(tmp_path, seed)
    layers = source.history.layers()
    chance = random.Random(seed)
    first = chance.randrange(1, len(layers))
    end = chance.randrange(first, len(layers)) + 1
    merged = merge(source.history, layers[first:end])
    history = TableHistory(layers[-1].table, (*layers[:first], merged, *layers[end:]))
    assert state_of(history) == source.states[-1][1]
    lsn, state = source.states[0]
    if end < len(layers):  # the last layer still has its revisions
        assert state_of(replace(history, upto=Lsn(lsn))) == state


@pytest.mark.parametrize("seed", SEEDS)
def test_counted_rows_of_any_history(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    history = History(tmp_path, table(column(1, "v"), column(2, "n", "int4", 23), capture="count"))
    choices = [(value, number) for value in ("a", "", None) for number in (1, None)]
    held = chance.choices(choices, k=10)
    history.base(held[:4], role="exact")
    history.base(held[4:], role="exact", text=["n"])
    states, lsn = [(0, expected(held))], 0
    for _ in range(chance.randrange(1, 5)):
        history.layer()
        for _ in range(chance.randrange(3)):
            changes = []
            for seq in range(chance.randrange(1, 8)):
                lsn += 1
                operation = chance.choices("IDT", [5, 5, 1 if seq else 0])[0]
                row = chance.choice(choices if operation == "I" or not held else held)
                if operation == "T":
                    held, change = [], Change("T", lsn)
                elif operation == "I" or not held:
                    held, change = [*held, row], Change("I", lsn, row)
                else:
                    held.remove(row)
                    change = Change("D", lsn, row)
                changes.append(change)
                states.append((lsn, expected(held)))
            history.changes(changes, text=["n"] if chance.random() < 0.5 else [])
    for cut, state in chance.sample(states, 1) + states[-1:]:
        assert history.state(upto=cut + 1) == state
    layers = history.layers()
    merged = merge(history, layers[1:])
    assert state_of(TableHistory(history.table, (layers[0], merged))) == states[-1][1]


def merge(history: History, layers: tuple[TableLayer, ...]) -> TableLayer:
    """The layers' changes as one file of the last of them."""
    last = layers[-1]
    batches = list(merged_changes(layers, None))
    if last.table.key:
        check_segment(batches, last)
    path = data_path(last.number)
    with DataFileWriter(history.storage, object_key(SUBDIR, path), merged_schema(layers)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    file = DataFile(
        path=path,
        sha256=writer.sha256,
        bytes=writer.bytes,
        rows=writer.rows,
        database="shop",
        table_oid=last.table.oid,
        role="change",
        text_columns=tuple(sorted(merged_text_columns(layers))),
    )
    return replace(last, files=(file,))


def check_segment(batches: list[pa.RecordBatch], layer: TableLayer) -> None:
    """What holds of every segment without revisions."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["_seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["_op"] for row in rows].count("T") == (1 if rows and rows[0]["_op"] == "T" else 0)
    names = [column.stored_as for column in layer.table.key_columns]
    data = [column.stored_as for column in layer.table.data_columns if column.stored_as not in names]
    keys = [tuple(row[name] for name in names) for row in rows if row["_op"] != "T"]
    assert len(keys) == len(set(keys))
    for row in rows:
        assert (row["_unchanged"] is None) == (row["_source_key"] is None)
        assert all(row[name] is None for name in row["_unchanged"] or ())
        assert row["_op"] in "IU" or all(row[name] is None for name in data)
