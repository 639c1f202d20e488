"""Commit times: what runs backwards by how much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spanvault.backup.clock_steps import CommitTimes
from spanvault.errors import Refused

START = datetime(2026, 11, 22, 10, tzinfo=UTC)
SKEW = timedelta(minutes=5)


def later(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def test_times_may_run_backwards_a_little() -> None:
    times = CommitTimes(START, SKEW)
    assert [times.local(lsn, later(minutes)) for lsn, minutes in enumerate((1, 10, 5, 6))] == [
        later(1), later(10), later(5), later(6),
    ]  # fmt: skip


def test_a_clock_that_was_set_back_is_refused_with_both_positions() -> None:
    times = CommitTimes(START, SKEW)
    times.local(0x100, later(60))
    with pytest.raises(Refused, match=r"0/00000100 has the time .* and a later one at 0/00000200"):
        times.local(0x200, later(50))


def test_a_commit_later_than_the_servers_clock_is_refused() -> None:
    times = CommitTimes(START, SKEW, latest=later(1))
    with pytest.raises(Refused, match=r"later than the source's clock"):
        times.local(0x100, later(10))


def test_a_commit_far_before_the_start_is_refused() -> None:
    times = CommitTimes(START, SKEW, start_lsn=0x80)
    with pytest.raises(Refused, match=r"what is at 0/00000080 has the time .* and a later one at 0/00000100"):
        times.local(0x100, later(-6))
    assert times.local(0x200, later(-5)) == later(-5)


def test_where_no_time_matters_nothing_is_refused_and_nothing_lies_in_the_future() -> None:
    times = CommitTimes(START, SKEW, latest=later(1), start_lsn=0x80, tolerant=True)
    assert times.local(0x100, later(2)) == later(2)
    assert times.local(0x200, later(7)) == later(2)
    assert times.local(0x300, later(6)) == later(6)
    assert times.local(0x400, later(-60)) == later(-60)
    assert times.foreign() == later(6)


def test_no_limit_is_no_limit() -> None:
    times = CommitTimes(START, timedelta.max)
    assert times.local(1, later(1000)) == later(1000)
    assert times.local(2, later(-1000)) == later(-1000)


def test_a_replicated_transaction_has_the_running_maximum() -> None:
    times = CommitTimes(START, SKEW)
    assert times.foreign() == START
    times.local(1, later(3))
    times.local(2, later(2))
    assert times.foreign() == later(3)
