"""The rate limit, on a clock that only sleeping moves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.storage.base import Storage
from spanvault.storage.limit import CallLimit, LimitedStorage, RateLimit, limited, limited_in_process
from spanvault.storage.local import LocalStorage
from spanvault.storage.registry import open_storage


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


def test_all_storages_of_a_process_share_its_rate(tmp_path: Path) -> None:
    plain = LocalStorage(tmp_path, "file:///x")
    one, other = limited_in_process(plain, 1 << 30), limited_in_process(plain, 1 << 30)
    assert isinstance(one, LimitedStorage)
    assert isinstance(other, LimitedStorage)
    assert one._limit is other._limit
    assert limited_in_process(plain, 0) is plain


def test_the_settings_rate_holds_for_whatever_is_opened(tmp_path: Path) -> None:
    uri, connections = f"file://{tmp_path}", EnvironmentConnections({})
    opened = open_storage(uri, settings=Settings(storage_rate_limit=1 << 30), connections=connections)  # type: ignore[arg-type]
    assert isinstance(opened, LimitedStorage)
    assert isinstance(open_storage(uri, settings=Settings(), connections=connections), LocalStorage)


def test_no_more_calls_than_turns_at_a_time() -> None:
    limit, lock, inside, seen = CallLimit(3), threading.Lock(), [0], []
    full = threading.Barrier(3)

    def call(_: int) -> None:
        limit.enter()
        with lock:
            inside[0] += 1
            seen.append(inside[0])
        full.wait(timeout=60)  # Three are inside together, or this breaks.
        with lock:
            inside[0] -= 1
        limit.leave()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(call, range(12)))
    assert max(seen) == 3


def test_a_thread_never_waits_for_its_own_turn() -> None:
    limit = CallLimit(1)
    limit.enter()
    limit.enter()  # As after a call that was interrupted before it gave its turn back.
    limit.leave()
    limit.leave()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(limit.enter).result(timeout=60)
    assert CallLimit.of(0) is None
    assert CallLimit.of(7) is CallLimit.of(7) is not CallLimit.of(8)
