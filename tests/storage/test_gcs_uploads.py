"""Uploads to Google Cloud Storage that break off, against FakeGcsBucket: fake-gcs-server ends an upload that is asked how far it
is, checks no conditions on it, and goes on after it was cancelled."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from spanvault.errors import AlreadyExists, Retryable
from spanvault.storage.base import Storage
from spanvault.storage.gcs_upload import chunk_bytes
from tests.kit.fake_gcs import FakeGcs
from tests.kit.fake_gcs_bucket import UNIT, FakeGcsBucket, FakeObject, Fault
from tests.kit.faults import Killed
from tests.storage.conftest import BUCKET, OpenStorage

pytestmark = pytest.mark.slow

# With 16 MiB of memory: one chunk being filled, one on its way.
CHUNK = 8 << 20
Open = Callable[[FakeGcsBucket], Storage]


@pytest.fixture
def at(opened: OpenStorage, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The fake's bucket."""

    def at(bucket: FakeGcsBucket) -> Storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.endpoint)
        return opened("gs://bucket/a?AUTH=implicit", storage_upload_memory=16 << 20, storage_attempts=3)

    return at


def pattern(size: int) -> bytes:
    """Bytes in which every 8 differ."""
    return b"".join(number.to_bytes(8, "big") for number in range(-(-size // 8)))[:size]


def written(storage: Storage, data: bytes) -> None:
    with storage.open_write("stream") as writer:
        for start in range(0, len(data), 3 << 20):
            writer.write(memoryview(data)[start : start + (3 << 20)])


def only(bucket: FakeGcsBucket) -> FakeObject:
    (found,) = bucket.objects
    return found


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5])
def test_chunks_arrive_in_order_and_the_last_one_is_never_empty(at: Open, size: int) -> None:
    with FakeGcsBucket() as bucket:
        written(at(bucket), pattern(size))
        assert only(bucket).data == pattern(size)
        assert (only(bucket).name, list(only(bucket).metadata)) == ("a/stream", ["spanvault-writer"])
        starts = list(range(0, size, CHUNK))
        ends = [*starts[1:], size]
        totals = [*["*"] * (len(starts) - 1), str(size)]
        assert bucket.ranges == [f"bytes {a}-{b - 1}/{of}" for a, b, of in zip(starts, ends, totals, strict=True)]


FAULTS = {
    "nothing arrives": Fault(0, None),
    "a part arrives": Fault(3 * UNIT, None),
    "all arrives, the answer does not": Fault(None, None),
    "refused before": Fault(0, 503),
    "refused after a part": Fault(5 * UNIT, 500),
    "taken in part": Fault(7 * UNIT, 308),
    "too many": Fault(0, 429),
}


@pytest.mark.parametrize("chunk", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_an_upload_that_breaks_off_goes_on_after_what_has_arrived(at: Open, fault: Fault, chunk: int) -> None:
    data = pattern(2 * CHUNK + (4 << 20))
    with FakeGcsBucket() as bucket:
        bucket.faults = [*[Fault(None, 200)] * chunk, fault]
        written(at(bucket), data)
        assert only(bucket).data == data
        assert bucket.faults == []
        if fault.status != 308:
            assert any(line.startswith("bytes */") for line in bucket.ranges)


def test_an_upload_into_which_nothing_goes_any_more_is_given_up_and_cancelled(at: Open) -> None:
    # Each try but the first asks before it sends; what is asked is not answered either, or says that nothing is there.
    for fault, used in ((Fault(0, None), 3), (Fault(0, 503), 3), (Fault(0, 308), 5)):
        with FakeGcsBucket() as bucket:
            bucket.faults = [fault] * 100
            with pytest.raises(Retryable):
                written(at(bucket), pattern(CHUNK + 1))
            assert len(bucket.faults) == 100 - used
            assert bucket.objects == []
            assert bucket.uploads == {}


def test_when_all_answers_at_the_end_are_lost_the_object_tells(at: Open) -> None:
    with FakeGcsBucket() as bucket:
        # The second chunk ends the upload; neither that nor the questions after it are answered.
        bucket.faults = [Fault(None, 200), *[Fault(None, None)] * 3]
        written(at(bucket), pattern(CHUNK + 1))
        assert bucket.faults == []
        assert only(bucket).data == pattern(CHUNK + 1)


@pytest.mark.parametrize("raised", [ValueError("stop"), KeyboardInterrupt(), Killed(), Retryable("stop")], ids=type)
def test_an_exception_cancels_the_upload(at: Open, raised: BaseException) -> None:
    with FakeGcsBucket() as bucket:
        storage = at(bucket)
        with pytest.raises(type(raised)) as caught, storage.open_write("stream") as writer:
            writer.write(bytes(2 * CHUNK + 1))
            raise raised
        assert caught.value is raised
        assert bucket.objects == []
        assert bucket.uploads == {}
        assert bucket.requests[-1].startswith("DELETE /upload/")


def test_an_upload_that_is_removed_under_its_writers_hands_publishes_nothing(at: Open) -> None:
    for size in (1, CHUNK + 1):
        with FakeGcsBucket() as bucket:
            storage = at(bucket)
            removed = pytest.raises(Retryable, match="upload of 'stream' to gs://bucket/a was removed while")
            with removed, storage.open_write("stream") as writer:
                writer.write(bytes(CHUNK + 1))
                bucket.uploads.clear()
                writer.write(bytes(size))
            assert bucket.objects == []


def test_a_large_object_is_created_by_one_only(at: Open) -> None:
    large = pattern(CHUNK + 1)
    with FakeGcsBucket() as bucket:
        storage = at(bucket)
        storage.put("key", large, create_only=True)
        with pytest.raises(AlreadyExists, match="'key' exists already"):
            storage.put("key", large, create_only=True)
        assert only(bucket).data == large
        storage.put("key", large[::-1])
        assert only(bucket).data == large[::-1]


def test_a_large_object_whose_creation_was_not_answered_is_ones_own(at: Open) -> None:
    with FakeGcsBucket() as bucket:
        bucket.faults = [Fault(None, 200), Fault(None, None)]
        at(bucket).put("key", pattern(CHUNK + 1), create_only=True)
        assert only(bucket).data == pattern(CHUNK + 1)


def test_bytes_that_change_on_their_way_are_not_stored(at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcsBucket() as bucket:
        storage = at(bucket)
        monkeypatch.setattr("spanvault.storage.gcs_upload.google_crc32c.extend", lambda crc, data: 7)
        with pytest.raises(Retryable, match="'stream' arrived damaged at gs://bucket/a and was not stored"):
            written(storage, pattern(CHUNK + 1))
        assert bucket.objects == []


def test_an_upload_to_google_takes_bounded_memory(
    opened: OpenStorage, fake_gcs: FakeGcs, at_fake_gcs: None, gcs_bucket: str
) -> None:
    storage = opened(f"gs://{BUCKET}/memory?AUTH=implicit", storage_upload_memory=16 << 20)
    block = bytes(1 << 20)
    with storage.open_write("warm-up") as writer:
        writer.write(bytes(CHUNK + 1))
    tracemalloc.start()
    with storage.open_write("large") as writer:
        for _ in range(96):
            writer.write(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    info = storage.head("large")
    assert info is not None
    assert info.size == 96 << 20
    # A chunk on its way, one being filled (its buffer may be larger), one being handed over.
    assert peak < 30 << 20


@pytest.mark.parametrize(
    ("memory", "chunk"), [(8 << 20, 8 << 20), (16 << 20, 8 << 20), (32 << 20, 16 << 20), ((64 << 20) + 600_000, 33_816_576)]
)
def test_a_chunk_is_half_of_the_memory_in_units_of_256_kib(memory: int, chunk: int) -> None:
    assert chunk_bytes(memory) == chunk
    assert chunk % UNIT == 0
