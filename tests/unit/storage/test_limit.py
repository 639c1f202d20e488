"""The rate limit, on a clock that only sleeping moves."""

from __future__ import annotations

from pathlib import Path

from spanvault.storage.base import Storage
from spanvault.storage.limit import LimitedStorage, RateLimit, limited
from spanvault.storage.local import LocalStorage


class Time:
    """A clock in seconds; sleeping moves it at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def limit(rate: int) -> tuple[RateLimit, Time]:
    time = Time()
    return RateLimit(rate, clock=time.clock, sleep=time.sleep), time


def test_one_second_is_free_and_the_rest_is_paid() -> None:
    bucket, time = limit(1000)
    bucket.take(1000)
    assert time.now == 0
    bucket.take(500)
    assert time.now == 0.5
    bucket.take(2500)
    assert time.now == 3.0


def test_idle_time_is_saved_for_at_most_a_second() -> None:
    bucket, time = limit(1000)
    time.now = 3600
    bucket.take(3000)
    assert time.now == 3602


def test_no_limit_is_no_wrapper(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path, "file:///x")
    assert limited(storage, 0) is storage
    assert isinstance(limited(storage, 1 << 30), LimitedStorage)
    assert isinstance(limited(storage, 1 << 30), Storage)


def test_reading_and_writing_pay(tmp_path: Path) -> None:
    bucket, time = limit(1 << 20)
    storage = LimitedStorage(LocalStorage(tmp_path / "root", "file:///x"), bucket)
    with storage.open_write("stream") as writer:
        assert writer.write(bytes(5 << 20)) == 5 << 20
    assert time.now == 4
    storage.put("small", bytes(1 << 20))
    assert time.now == 5
    assert sum(map(len, storage.read_chunks("stream"))) == 5 << 20
    assert time.now == 10
    assert storage.get("small") == bytes(1 << 20)
    assert time.now == 11
    assert [info.key for info in storage.list()] == ["small", "stream"]
