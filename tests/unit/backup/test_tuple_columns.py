"""Tuples of the log as columns: the same values as one by one."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from spanvault.database.postgres import tuple_columns as module
from spanvault.database.postgres.pgoutput import has_unchanged, tuple_values
from spanvault.database.postgres.tuple_columns import RawTuple, tuple_columns


def message(values: list[bytes | None], prefix: bytes = b"") -> RawTuple:
    """A tuple as PostgreSQL's documentation has it, behind other bytes."""
    parts = [b"n" if value is None else b"t" + struct.pack(">I", len(value)) + value for value in values]
    return RawTuple(prefix + struct.pack(">H", len(values)) + b"".join(parts), len(prefix))


def rows(count: int) -> list[list[bytes | None]]:
    chance = random.Random(count)
    kinds: list[bytes | None] = [None, b"", b"n", b"tut", "ünïcode 日本".encode(), b"x" * 300, b"u", b"t\x00"]
    return [[chance.choice(kinds) for _ in range(5)] for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_columns_hold_what_the_tuples_hold(count: int) -> None:
    expected = rows(count)
    tuples = [message(values, b"U" * (place % 7)) for place, values in enumerate(expected)]
    columns = [column.to_pylist() for column in tuple_columns(tuples, 5)]
    assert [list(row) for row in zip(*columns, strict=True)] == [
        [None if value is None else value.decode() for value in values] for values in expected
    ]
    assert [tuple_values(*one) for one in tuples] == expected


def test_long_values_are_not_taken_byte_by_byte() -> None:
    """Their memory is a few times their size: a number for each byte would be 24 times as much."""
    values = [b"x" * (4 << 20), None, "ünï".encode() * 1000]
    tuples = [message(values, b"U"), message([b"", b"y", None])]
    tracemalloc.start()
    try:
        columns = [column.to_pylist() for column in tuple_columns(tuples, 3)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert columns == [["x" * (4 << 20), ""], [None, "y"], ["ünï" * 1000, None]]
    assert peak < 8 * (4 << 20)


def test_more_than_arrows_offsets_hold_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 200)
    expected = rows(50)
    columns = [column.to_pylist() for column in tuple_columns([message(values) for values in expected], 5)]
    assert columns[0] == [None if values[0] is None else values[0].decode() for values in expected]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (b"u", True),
        (b"tu", True),
        (b"ut", True),
        (b"nun", True),
        (b"unnn", True),
        (b"tt", False),
        (b"nn", False),
        (b"tnt", False),
    ],
)
def test_an_unchanged_value_is_found_wherever_it_is(kinds: bytes, expected: bool) -> None:
    """Also before a long value, whose length's first byte is not zero; and text that looks like the marker is none."""
    for text in (b"", b"unutut", b"u", b"n", b"\x00\x00ut\x00"):
        value = b"t" + struct.pack(">I", len(text)) + text
        body = b"".join(value if kind == ord("t") else bytes([kind]) for kind in kinds)
        assert has_unchanged(b"U" + struct.pack(">H", len(kinds)) + body, 1) is expected


def test_an_unchanged_value_before_a_value_of_a_gigabyte_is_found() -> None:
    header = b"U" + struct.pack(">H", 2) + b"u" + b"t" + struct.pack(">I", (1 << 30) - 1)
    assert has_unchanged(header + b"x", 1)
