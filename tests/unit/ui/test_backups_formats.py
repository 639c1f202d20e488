"""How the Backups page writes amounts, times and links to runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spanvault_airflow.ui import formats

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (1_250_000_000, "1.2 GB")],
)
def test_size(amount: int, text: str) -> None:
    assert formats.size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s ago"), (119, "119 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (172_800, "2 d ago"), (-60, "in the future")],
)
def test_age(seconds: int, text: str) -> None:
    assert formats.age(NOON - timedelta(seconds=seconds), NOON) == text


@pytest.mark.parametrize(("seconds", "text"), [(9, "9 s"), (65, "1 min 05 s"), (3_660, "1 h 01 min"), (-5, "0 s")])
def test_lasted(seconds: int, text: str) -> None:
    assert formats.lasted(NOON, NOON + timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("run_key", "path"),
    [
        ("full_backup/manual__2026-11-22T12:00:00+00:00", "/dags/full_backup/runs/manual__2026-11-22T12%3A00%3A00%2B00%3A00"),
        ("full_backup/a/../b?c", "/dags/full_backup/runs/a%2F..%2Fb%3Fc"),
        ("0b6f7a54-7f6e-4f1a-9c58-2d3e1b1f2a10", None),
        ("https://elsewhere/x", None),
        ("full_backup/", None),
    ],
    ids=["scheduled", "odd-id", "command-line", "address", "empty-id"],
)
def test_run_path(run_key: str, path: str | None) -> None:
    assert formats.run_path(run_key) == path


def test_line_runs_from_the_oldest_to_the_newest_above_zero() -> None:
    assert formats.line([0, 5, 10]) == "4.0,92.0 360.0,48.0 716.0,4.0"
    assert formats.line([0]) == "4.0,92.0"
