"""Sizes and durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.errors import BadInput
from spanvault.model.units import format_bytes, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("8192", 8192),
        ("1B", 1),
        ("50MB", 50_000_000),
        ("50 mb", 50_000_000),
        ("1kB", 1000),
        ("64MiB", 67_108_864),
        ("1.5GiB", 1_610_612_736),
        ("1.000000001GB", 1_000_000_001),
        ("2TB", 2_000_000_000_000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1.5", "0.0001kB", "5XB", "1e6", "9223372036854775808", "9999999TiB", "٣", "1_000"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        parse_bytes(text)


@given(st.integers(0, 2**63 - 1) | st.builds(lambda count, unit: count * unit, st.integers(0, 4000), st.just(1 << 20)))
def test_a_formatted_size_is_exact(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == amount


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", timedelta(seconds=90)),
        ("4h", timedelta(hours=4)),
        ("7d", timedelta(days=7)),
        ("1h30m", timedelta(minutes=90)),
        ("0.5h", timedelta(minutes=30)),
        ("0s", timedelta(0)),
    ],
)
def test_durations(text: str, length: timedelta) -> None:
    assert parse_duration(text) == length


@pytest.mark.parametrize("text", ["", "4", "h", "4 h", "-4h", "4h ", "4w", "1.h", "forever", "999999999d999999999d"])
def test_no_durations(text: str) -> None:
    with pytest.raises(BadInput, match=r"is not a duration|too long"):
        parse_duration(text)
