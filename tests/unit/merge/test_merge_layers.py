"""The state of a table over several layers: each rule of the merge by name."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from spanvault.errors import Damaged
from spanvault.merge import holes as holes_module
from spanvault.merge.table import CHANGES, table_at, units_of
from tests.unit.merge.history_kit import Change, History, column, expected, table

# `big` is what PostgreSQL would store out of line, and leave out of the log.
PLAIN = table(column(1, "id", "int8", 20), column(2, "big"), column(3, "n", "int4", 23), key=(1,))
COUNTED = table(column(1, "v"), column(2, "f", "float8", 701), capture="count")


def hole(seq: int, row: tuple[Any, ...], source: object, operation: str = "U") -> Change:
    """An update that left `big` alone; `source` is the key that the row had before the segment."""
    return Change(operation, seq, row, unchanged=("big",), source=(str(source),))


def gone(seq: int, key: int) -> Change:
    return Change("D", seq, (key, None, None))


def test_a_layer_without_changes_of_the_table_changes_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 1)])
    history.layer()
    assert history.state() == expected([(1, "x", 1)])


def test_the_newest_layer_wins_although_its_seq_begins_anew(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0), (2, "y", 0), (3, "z", 0)])
    history.changes([Change("U", 90, (1, "x", 90))], old=True)
    history.layer()
    history.changes([Change("U", 50, (1, "x", 50)), gone(60, 2)])
    history.changes([Change("U", 70, (3, "z", 70))])
    history.layer()
    history.changes([Change("U", 1, (1, "x", 1)), Change("I", 2, (2, "new", 2))])
    assert history.state() == expected([(1, "x", 1), (2, "new", 2), (3, "z", 70)])


def test_a_row_keeps_its_value_when_a_new_row_takes_its_old_key(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "X", 0)])
    history.layer()
    history.changes([gone(1, 1), hole(2, (2, None, 5), source=1), Change("I", 3, (1, "Y", 6))])
    assert history.state() == expected([(1, "Y", 6), (2, "X", 5)])


def test_two_rows_that_swap_keys_swap_values(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "A", 0), (2, "B", 0)])
    history.layer()
    # 1 -> 9, 2 -> 1, 9 -> 2 in one segment: the last change of each key is left.
    history.changes([gone(5, 9), hole(4, (1, None, 2), source=2), hole(6, (2, None, 1), source=1)])
    assert history.state() == expected([(1, "B", 2), (2, "A", 1)])


def test_two_rows_that_swap_keys_over_layers_swap_values(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "A", 0), (2, "B", 0)])
    history.layer()
    history.changes([gone(1, 1), hole(2, (9, None, 0), source=1)])
    history.layer()
    history.changes([gone(1, 2), hole(2, (1, None, 0), source=2)])
    history.layer()
    history.changes([gone(1, 9), hole(2, (2, None, 0), source=9)])
    assert history.state() == expected([(1, "B", 0), (2, "A", 0)])


def test_a_value_is_followed_through_five_layers(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "base", 0), (5, "other", 0)])
    history.layer()
    history.changes([Change("U", 1, (1, "first", 1))])
    for number in range(2, 6):
        history.layer()
        history.changes([gone(1, number - 1), hole(2, (number, None, number), source=number - 1)])
        if number == 4:  # the row at 5 makes room
            history.changes([gone(3, 5)])
    assert history.state() == expected([(5, "first", 5)])


def test_a_base_row_is_a_source_although_later_changes_overtake_its_key(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "base", 0), (2, "bystander", 0)])
    history.layer()
    history.changes([gone(1, 1), hole(2, (7, None, 1), source=1)])
    history.changes([Change("I", 3, (1, "taken", 3))])
    history.layer()
    history.changes([Change("U", 1, (1, "taken again", 4))])
    assert history.state() == expected([(7, "base", 1), (1, "taken again", 4), (2, "bystander", 0)])


def test_the_source_is_the_state_before_the_segment_not_within_it(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "old", 0)])
    history.layer()
    history.changes([Change("U", 1, (1, "middle", 1))])
    history.changes([
        hole(2, (1, None, 2), source=1),
        gone(3, 1),
        Change("I", 4, (1, "young", 4)),
        gone(5, 1),
        Change("U", 6, (2, "young", 6)),
    ])
    assert history.state() == expected([(2, "young", 6)])
    assert history.state(upto=3) == expected([(1, "middle", 2)])


def test_files_of_one_sequence_are_one_segment(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "A", 0), (2, "B", 0)])
    history.layer()
    history.changes([hole(1, (1, None, 2), source=2)])
    history.changes([hole(2, (2, None, 1), source=1)], part=True)
    assert history.state() == expected([(1, "B", 2), (2, "A", 1)])


def test_a_truncate_voids_the_base_and_all_earlier_changes(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0), (2, "x", 0)])
    history.layer()
    history.changes([Change("U", 1, (1, "x", 1)), Change("I", 2, (3, "x", 2))])
    history.layer()
    history.changes([Change("I", 1, (4, "before", 1)), Change("T", 2), Change("I", 3, (1, "refilled", 3))])
    history.changes([hole(4, (1, None, 4), source=1)])
    assert history.state() == expected([(1, "refilled", 4)])
    base, changes = units_of(history.history())
    assert (base.file is None, changes.id) == (False, CHANGES)


def test_a_truncate_after_the_cut_does_not_count(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    history.changes([Change("I", 1, (2, "y", 1)), Change("T", 2, lsn=20), Change("I", 3, (3, "z", 3), lsn=20)])
    assert history.state(upto=20) == expected([(1, "x", 0), (2, "y", 1)])
    assert history.state(upto=21) == expected([(3, "z", 3)])


def test_a_cut_inside_a_layer_takes_the_revisions_before_it(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    history.changes([Change("U", seq, (1, "x", seq), lsn=seq // 2 * 10) for seq in range(2, 9)])
    assert [max(history.state(upto=cut)) for cut in (10, 11, 20, 31, 41)] == [
        ("1", "x", "0"),
        ("1", "x", "3"),
        ("1", "x", "3"),
        ("1", "x", "7"),
        ("1", "x", "8"),
    ]


def test_columns_are_matched_by_attnum(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 10), (2, "y", 20)])
    history.layer()
    history.changes([Change("U", 1, (2, "y", 21))])
    # big is renamed to n; the old n is dropped; an n2 is added, with a default and one without.
    again = table(
        column(1, "ID", "int8", 20),
        column(2, "n"),
        column(4, "n2", "int4", 23, missing_value="{7}"),
        column(5, "big"),
        key=(1,),
    )
    history.layer(again)
    history.changes([Change("I", 1, (3, "z", 8, "w"))])
    assert history.state() == expected([(1, "x", 7, None), (2, "y", 7, None), (3, "z", 8, "w")])


def test_a_value_is_found_under_the_name_that_its_column_had(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "base", 0)])
    history.layer()
    history.changes([Change("U", 1, (2, "first", 0)), gone(2, 9)])
    renamed = table(
        column(1, "key", "int8", 20),
        column(2, "n"),
        column(3, "big", "int4", 23),
        column(4, "late", missing_value="{d}"),
        key=(1,),
    )
    history.layer(renamed)
    history.changes([
        Change("U", 1, (1, None, 5, "L"), unchanged=("n",), source=("1",)),
        Change("U", 2, (2, None, 6, None), unchanged=("n", "late"), source=("2",)),
    ])
    assert history.state() == expected([(1, "base", 5, "L"), (2, "first", 6, "d")])


def test_the_value_of_a_column_that_was_dropped_since_is_not_looked_for(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.layer()
    history.changes([hole(1, (1, None, 5), source=1)])
    history.layer(table(column(1, "id", "int8", 20), column(3, "n", "int4", 23), key=(1,)))
    assert history.state() == expected([(1, 5)])


@pytest.mark.parametrize(
    ("type_name", "oid", "more", "missing", "shown"),
    [
        ("int4", 23, {}, "{7}", "7"),
        ("text", 25, {}, '{"a \\"b\\\\ c"}', 'a "b\\ c'),
        ("text", 25, {}, "{plain}", "plain"),
        ("text", 25, {}, '{""}', ""),
        ("text", 25, {}, '{"NULL"}', "NULL"),
        ("text", 25, {}, "{NULL}", None),
        ("text", 25, {}, None, None),
        ("bool", 16, {}, "{t}", "t"),
        ("numeric", 1700, {"typmod": (10 << 16) + 2 + 4}, "{1.50}", "1.50"),
        ("numeric", 1700, {"typmod": (10 << 16) + 2 + 4}, "{NaN}", "NaN"),
        ("bytea", 17, {}, '{"\\\\x0aff"}', "\\x0aff"),
        ("date", 1082, {}, "{infinity}", "infinity"),
        ("timestamptz", 1184, {}, '{"2020-01-02 03:04:05.5+00"}', "2020-01-02 03:04:05.5+00"),
        ("_int4", 1007, {}, '{"{1,2}"}', "{1,2}"),
    ],
    # pytest finds no test again whose name has a backslash.
    ids=lambda value: value.replace("\\", "/") if isinstance(value, str) else None,
)
def test_rows_older_than_a_column_have_its_missing_value(
    tmp_path: Path, type_name: str, oid: int, more: dict[str, Any], missing: str | None, shown: str | None
) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer(table(*PLAIN.columns, column(4, "added", type_name, oid, missing_value=missing, **more), key=(1,)))
    assert history.state() == expected([(1, "x", 0, shown)])


def test_a_column_that_was_generated_before_cannot_be_given_out(tmp_path: Path) -> None:
    history = History(tmp_path, table(*PLAIN.columns, column(4, "g", generated="s"), key=(1,)))
    history.base([(1, "x", 0)])
    history.layer(table(*PLAIN.columns, column(4, "g"), key=(1,)))
    with pytest.raises(Damaged, match=r"column g of public\.t was a generated one"):
        history.state()


@pytest.mark.parametrize("base_text", [(), ("id", "amount", "data")], ids=["base-typed", "base-text"])
@pytest.mark.parametrize("change_text", [(), ("id", "amount", "data")], ids=["changes-typed", "changes-text"])
def test_values_go_between_typed_and_text_columns(
    tmp_path: Path, base_text: tuple[str, ...], change_text: tuple[str, ...]
) -> None:
    typed = table(
        column(1, "id", "int4", 23),
        column(2, "data", "bytea", 17),
        column(3, "amount", "numeric", 1700, typmod=(12 << 16) + 2 + 4),
        key=(1,),
    )
    data = "\\x00ff" if base_text else b"\x00\xff"
    history = History(tmp_path, typed)
    history.base([(1, data, Decimal("1.50")), (2, data, Decimal("2.50"))], text=base_text)
    history.layer()
    holes = Change("U", 1, (1, None, None), unchanged=("data", "amount"), source=("1",))
    history.changes([holes], text=change_text)
    assert history.state() == expected([(1, "\\x00ff", "1.50"), (2, "\\x00ff", "2.50")])


def test_a_value_without_typed_form_makes_its_column_text(tmp_path: Path) -> None:
    typed = table(column(1, "id", "int4", 23), column(2, "amount", "numeric", 1700, typmod=(12 << 16) + 2 + 4), key=(1,))
    history = History(tmp_path, typed)
    history.base([(1, "NaN"), (2, "1.00")], text=["amount"])
    history.layer()
    history.changes([
        Change("U", 1, (1, None), unchanged=("amount",), source=("1",)),
        Change("U", 2, (2, Decimal("3.25"))),
    ])
    assert history.state() == expected([(1, "NaN"), (2, "3.25")])


def test_composite_keys_with_columns_that_differ_in_case_and_system_names(tmp_path: Path) -> None:
    odd = table(
        column(1, "ID", "int4", 23),
        column(2, "id"),
        column(3, "_source_key"),
        column(4, "position"),
        column(5, "Position"),
        key=(2, 1),
    )
    history = History(tmp_path, odd)
    history.base([(1, "a", "s1", "p1", "P1"), (1, "A", "s2", "p2", "P2")])
    history.layer()
    history.changes([
        Change("D", 1, (1, "a", None, None, None)),
        Change("U", 2, (2, "a", None, "new", None), unchanged=("__source_key", "Position"), source=("a", "1")),
    ])
    assert history.state() == expected([(2, "a", "s1", "new", "P1"), (1, "A", "s2", "p2", "P2")])


def test_long_values_are_filled_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes_module, "WINDOW_BYTES", 25)
    wide = table(column(1, "id", "int8", 20), column(2, "big"), column(3, "huge"), key=(1,))
    history = History(tmp_path, wide)
    history.base([(number, str(number) * 10, "h" * number) for number in range(8)])
    history.layer()
    history.changes([
        Change("U", number, (number, None, None), unchanged=("big", "huge"), source=(str(number),)) for number in range(8)
    ])
    assert history.state() == expected([(number, str(number) * 10, "h" * number) for number in range(8)])
    changes = next(unit for unit in units_of(history.history()) if unit.id == CHANGES)
    batches = [batch.num_rows for batch in table_at(history.history(), None)]
    assert (changes.rows, sum(batches)) == (8, 8)
    assert len(batches) > 3


def test_two_changes_in_one_place_mean_damage(tmp_path: Path) -> None:
    """A row of another key in the same place would count as the last of its key, and come back."""
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0), (2, "y", 0)])
    history.changes([Change("U", 5, (1, "x", 5)), Change("U", 5, (2, "y", 5))], old=True)
    history.layer()
    history.changes([gone(1, 1)])
    with pytest.raises(Damaged, match=r"Two changes of public\.t have one `_seq`"):
        history.state()


def test_a_source_that_was_removed_means_damage(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    history.changes([gone(1, 1)])
    history.layer()
    history.changes([hole(1, (2, None, 0), source=1)])
    with pytest.raises(Damaged, match=r"public\.t lacks values and names an earlier row that was removed"):
        history.state()


@pytest.mark.parametrize("truncated", [False, True])
def test_a_source_that_is_nowhere_means_damage(tmp_path: Path, *, truncated: bool) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1 if truncated else 3, "x", 0)])
    history.layer()
    history.changes([*([Change("T", 1)] if truncated else []), hole(2, (1, None, 0), source=1)])
    with pytest.raises(Damaged, match=r"Of public\.t 1 large values were left out .* but there 0 of them are"):
        history.state()


def test_a_later_layer_that_holds_the_table_whole_is_refused(tmp_path: Path) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    history.base([(2, "y", 0)])
    with pytest.raises(Damaged, match=r"Layer 1 of the backup .* holds public\.t whole"):
        units_of(history.history())


def test_counted_rows_keep_their_duplicates_and_nulls(tmp_path: Path) -> None:
    history = History(tmp_path, COUNTED)
    history.base([("a", 1.5), ("a", 1.5), (None, None), ("b", None)], role="exact")
    history.base([("a", 1.5), ("", 2.0)], role="exact")
    history.layer()
    history.changes([
        Change("D", 1, ("a", 1.5)),
        Change("D", 2, ("a", 1.5)),
        Change("I", 3, (None, None)),
        Change("D", 4, ("", 2.0)),
        Change("I", 5, (None, 2.0)),
        Change("D", 6, (None, 2.0)),
    ])
    history.layer()
    history.changes([Change("I", 1, ("c", 0.1)), Change("I", 2, ("c", 0.1)), Change("D", 3, ("b", None))])
    assert history.state() == expected([("a", 1.5), (None, None), (None, None), ("c", 0.1), ("c", 0.1)])
    assert [unit.id for unit in units_of(history.history())] == [CHANGES]
    assert history.state(upto=3)[("a", "1.5")] == 1


def test_all_copies_of_a_counted_row_may_go_at_once(tmp_path: Path) -> None:
    history = History(tmp_path, COUNTED)
    history.base([("b", 1.0), ("a", 1.5), ("a", 1.5), ("a", 1.5)], role="exact")
    history.layer()
    history.changes([Change("D", number, ("a", 1.5)) for number in range(3)])
    assert history.state() == expected([("b", 1)])


def test_counted_rows_are_told_apart_by_column(tmp_path: Path) -> None:
    history = History(tmp_path, table(column(1, "v"), column(2, "w"), capture="count"))
    history.base([("a", "b1:c"), ("a1:b", "c"), ("ab", None), ("", "-"), (None, "-")], role="exact")
    history.layer()
    history.changes([Change("D", 1, ("a", "b1:c")), Change("D", 2, (None, "-"))])
    assert history.state() == expected([("a1:b", "c"), ("ab", None), ("", "-")])


def test_counted_rows_are_equal_typed_or_text(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    timed = table(column(1, "t", "timestamptz", 1184), column(2, "f", "float8", 701), capture="count")
    history = History(tmp_path, timed)
    history.base([(moment, 0.00001), (moment, 0.5)], role="exact")
    history.base([("infinity", "1e-05"), ("2020-01-02 03:04:05+00", "7")], text=["t", "f"], role="exact")
    history.layer()
    history.changes(
        [
            Change("D", 1, ("infinity", "1e-05")),
            Change("D", 2, ("2020-01-02 03:04:05+00", "1e-05")),
            Change("I", 3, ("-infinity", "1")),
        ],
        text=["t", "f"],
    )
    history.changes([Change("D", 4, (moment, 7.0))])
    assert history.state() == expected([("2020-01-02 03:04:05+00", "0.5"), ("-infinity", "1")])


def test_counted_rows_after_a_truncate(tmp_path: Path) -> None:
    history = History(tmp_path, COUNTED)
    history.base([("a", 1.5)], role="exact")
    history.layer()
    history.changes([Change("I", 1, ("b", 1.5)), Change("T", 2), Change("I", 3, ("c", 1.5)), Change("I", 4, ("c", 1.5))])
    assert history.state() == expected([("c", 1.5)] * 2)
    assert history.state(upto=2) == expected([("a", 1.5), ("b", 1.5)])


def test_counted_rows_in_a_table_that_changed_its_shape(tmp_path: Path) -> None:
    history = History(tmp_path, COUNTED)
    history.base([("a", 1.0), ("a", 2.0)], role="exact")
    history.layer(table(column(1, "v"), column(3, "new", "int4", 23, missing_value="{4}"), capture="count"))
    history.changes([Change("D", 1, ("a", 4)), Change("I", 2, ("a", 5))])
    assert history.state() == expected([("a", 4), ("a", 5)])


def test_counted_rows_that_were_never_there_mean_damage(tmp_path: Path) -> None:
    history = History(tmp_path, COUNTED)
    history.base([("a", 1.0)], role="exact")
    history.layer()
    history.changes([Change("D", 1, ("b", 1.0))])
    with pytest.raises(Damaged, match=r"changes of public\.t remove 1 rows that its earlier layers do not hold"):
        history.state()


def test_tables_without_columns(tmp_path: Path) -> None:
    bare = table(capture="exact")
    history = History(tmp_path, bare)
    history.base([(), (), (), ()], role="exact")
    assert history.state() == Counter({(): 4})
    counted = History(tmp_path / "counted", table(capture="count"))
    counted.base([(), (), (), ()], role="exact")
    counted.layer()
    counted.changes([Change("D", 1, ()), Change("D", 2, ()), Change("I", 3, ())])
    assert counted.state() == Counter({(): 3})
    counted.layer(table(column(1, "v", "int4", 23, missing_value="{1}"), capture="count"))
    counted.changes([Change("I", 4, (2,))])
    assert counted.state() == Counter({("1",): 3, ("2",): 1})


def test_without_changes_files_stream_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    monkeypatch.setattr("spanvault.merge.table.temporary_database", None)
    assert history.state() == expected([(1, "x", 0)])


def test_scratch_is_empty_after_values_were_looked_for(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    history = History(tmp_path / "storage", PLAIN)
    history.base([(1, "x", 0)])
    history.layer()
    history.changes([hole(1, (1, None, 1), source=1)])
    assert pa.Table.from_batches(table_at(history.history(), scratch)).to_pylist() == [{"id": 1, "big": "x", "n": 1}]
    assert list(scratch.iterdir()) == []
