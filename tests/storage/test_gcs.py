"""What only Google Cloud Storage does: generations, lost answers, refusals. Uploads are in test_gcs_uploads.py, signing in is in
test_gcs_sign_in.py."""

from __future__ import annotations

import base64
import json
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from spanvault.embedded.ports import free_ports
from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Retryable, StateUnknown
from spanvault.storage.base import Storage
from spanvault.storage.gcs_upload import WHOLE_BYTES
from spanvault.storage.limit import CallLimit
from tests.kit.fake_gcs import FakeGcs
from tests.kit.fake_gcs_bucket import FakeGcsBucket
from tests.kit.http_stub import answering, silent, stalling
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import BUCKET, OpenStorage

At = Callable[..., Storage]


@pytest.fixture
def place() -> str:
    """A fresh path."""
    return str(uuid.uuid4())


@pytest.fixture
def at(opened: OpenStorage, place: str, monkeypatch: pytest.MonkeyPatch) -> At:
    """Opens a fresh place on any server."""

    def at(endpoint: str | int, bucket: str = BUCKET, **settings: object) -> Storage:
        address = f"http://127.0.0.1:{endpoint}" if isinstance(endpoint, int) else endpoint
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        return opened(f"gs://{bucket}/{place}?AUTH=implicit", **settings)

    return at


@pytest.fixture
def broken(servers_folder: Path) -> Iterator[tuple[TcpProxy, FakeGcs]]:
    """A server of its own behind a proxy, through which uploads go as well: the server tells where they go on."""
    (port,) = free_ports(1)
    with TcpProxy(port) as proxy:
        external = f"http://127.0.0.1:{proxy.port}"
        with FakeGcs(servers_folder / str(uuid.uuid4()), port=port, external_url=external) as server:
            server.create_bucket(BUCKET)
            yield proxy, server


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


def every_call(storage: Storage) -> Iterator[Callable[[], object]]:
    """Each method once, on an object that is not there."""
    yield lambda: storage.get("key")
    yield lambda: storage.head("key")
    yield lambda: list(storage.list())
    yield lambda: list(storage.list_folders())
    yield lambda: storage.delete("key")
    yield lambda: storage.put("key", b"1")
    yield lambda: storage.put("key", b"1", create_only=True)
    yield lambda: stream(storage, "key", 10)
    yield lambda: stream(storage, "key", WHOLE_BYTES + 1)


def test_a_missing_bucket_of_google_is_named(at: At, fake_gcs: FakeGcs) -> None:
    for number in range(len(list(every_call(at(fake_gcs.endpoint))))):
        call = list(every_call(at(fake_gcs.endpoint, bucket="no-such-bucket")))[number]
        with pytest.raises(NotFound, match="There is no bucket 'no-such-bucket' at http://127"):
            call()


def said(reason: str, message: str = "") -> bytes:
    """The body of a refusal."""
    return json.dumps({"error": {"message": message, "errors": [{"reason": reason, "message": message}]}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "sentence"),
    [
        (
            403,
            said("forbidden", "x does not have storage.objects.get access"),
            BadInput,
            "refused access .forbidden.: the machine",
        ),
        (403, said("retentionPolicyNotMet"), Locked, "'key' in gs://contract/.* is kept by the bucket's retention policy"),
        (403, said("forbidden", "Object 'a' is under active Temporary hold"), Locked, "or a hold .forbidden.; nothing was done"),
        (
            400,
            said("required", "Bucket is a requester pays bucket but"),
            BadInput,
            "name the project with GOOGLE_BILLING_PROJECT",
        ),
        (400, said("invalid", "No."), BadInput, r"refused the call for 'key' \(invalid: No\)\.$"),
        (400, b"<html>No", BadInput, r"refused the call for 'key' \(400\)\.$"),
    ],
)
def test_what_google_says_becomes_one_sentence(at: At, status: int, body: bytes, kind: type[Exception], sentence: str) -> None:
    with answering(status, body) as stub:
        with pytest.raises(kind, match=sentence) as caught:
            at(stub.port).get("key")
        assert type(caught.value) is kind
        assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (429, said("rateLimitExceeded"), r"asks for fewer requests \(rateLimitExceeded\)"),
        (403, said("userRateLimitExceeded"), r"asks for fewer requests \(userRateLimitExceeded\)"),
        (503, said("backendError"), r"failed, also after several tries \(backendError\)"),
        (502, b"<html>Bad gateway", r"failed, also after several tries \(502\)"),
        (408, b"", r"did not finish a request in time, also after several tries \(408\)"),
    ],
)
def test_what_passes_is_tried_again_and_then_retryable(at: At, status: int, body: bytes, sentence: str) -> None:
    with answering(status, body) as stub:
        storage = at(stub.port, storage_attempts=2)
        for call in (lambda: list(storage.list()), lambda: storage.get("key"), lambda: storage.delete("key")):
            before = len(stub.requests)
            with pytest.raises(Retryable, match=sentence):
                call()
            assert len(stub.requests) == before + 2


def test_a_server_that_is_not_googles(at: At) -> None:
    with answering(200, b"welcome") as stub, pytest.raises(BadInput, match="does not answer as Google Cloud Storage does"):
        list(at(stub.port).list())


def test_nobody_listens_on_googles_port(at: At) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for call in every_call(at(port, storage_attempts=1)):
        with pytest.raises((Retryable, StateUnknown), match=r"http://127.0.0.1:[0-9]+ cannot be reached"):
            call()


def test_a_google_server_that_never_answers_is_given_up(at: At) -> None:
    with silent() as port:
        storage = at(port, storage_attempts=2, storage_read_timeout=0.2, storage_connect_timeout=0.2)
        with pytest.raises(Retryable, match="did not answer in time"):
            storage.get("key")
        with pytest.raises(Retryable, match="did not answer in time"):
            stream(storage, "key", WHOLE_BYTES + 1)
        with pytest.raises(StateUnknown, match=r"Whether 'key' was written .* did not answer in time"):
            storage.put("key", b"1", create_only=True)


def test_a_download_from_google_that_stalls_is_given_up(at: At) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Goog-Generation: 1\r\nContent-Length: 10\r\n\r\n12345"
    with stalling(head) as port:
        storage = at(port, storage_attempts=1, storage_read_timeout=0.2)
        with pytest.raises(Retryable, match="did not answer in time"):
            storage.get("key")


def test_a_lost_answer_to_a_google_create_is_recognised_as_ones_own(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port)
    rule = proxy.lose(r"^POST /upload/")
    storage.put("key", b"1", create_only=True)
    assert rule.happened == 1
    assert storage.get("key") == b"1"
    with pytest.raises(AlreadyExists, match="'key' exists already in gs://"):
        storage.put("key", b"1", create_only=True)


def test_when_all_answers_to_a_google_create_are_lost_the_object_tells(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, server = broken
    storage = at(proxy.port, storage_attempts=2)
    proxy.lose(r"^POST /upload/", times=2)
    storage.put("mine", b"1", create_only=True)
    at(server.endpoint).put("theirs", b"2")
    proxy.lose(r"^POST /upload/", times=2)
    with pytest.raises(AlreadyExists, match="'theirs' exists already"):
        storage.put("theirs", b"1", create_only=True)
    assert storage.get("theirs") == b"2"


def test_a_replacement_whose_answers_are_lost_is_looked_up_as_well(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port, storage_attempts=2)
    storage.put("key", b"1")
    proxy.lose(r"^POST /upload/", times=2)
    storage.put("key", b"2")
    assert storage.get("key") == b"2"


def test_a_replacement_that_did_not_take_place_is_to_be_tried_again(at: At) -> None:
    with FakeGcsBucket(whole=False) as bucket:
        storage = at(bucket.endpoint, bucket="bucket", storage_attempts=1)
        bucket.add(storage.display_uri.partition("?")[0].removeprefix("gs://bucket/") + "/key", b"old", {"spanvault-writer": "x"})
        with pytest.raises(Retryable, match="failed, also after several tries"):
            storage.put("key", b"new")
        with pytest.raises(AlreadyExists):
            storage.put("key", b"new", create_only=True)


def test_a_google_create_that_nobody_can_look_up_is_unknown(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, server = broken
    storage = at(proxy.port, storage_attempts=2)
    proxy.lose(r"^(POST /upload/|GET .*key)", times=1000)
    with pytest.raises(StateUnknown, match="Whether 'key' was written to gs://") as caught:
        storage.put("key", b"1", create_only=True)
    # The library's errors hold addresses of uploads, which anybody may write to.
    assert caught.value.__cause__ is None
    assert at(server.endpoint).get("key") == b"1"


@pytest.mark.parametrize("size", [10, WHOLE_BYTES])
def test_a_lost_answer_at_the_end_of_a_short_google_stream(at: At, broken: tuple[TcpProxy, FakeGcs], size: int) -> None:
    proxy, _ = broken
    storage = at(proxy.port, storage_attempts=2)
    rule = proxy.lose(r"^POST /upload/", times=2)
    stream(storage, "stream", size)
    assert rule.happened == 2
    assert storage.get("stream") == bytes(size)


def test_a_deletion_whose_answer_is_lost_has_taken_place(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port, storage_attempts=2)
    storage.put("key", b"1")
    rule = proxy.lose(r"^DELETE .*key")
    storage.delete("key")
    assert rule.happened == 1
    assert storage.head("key") is None


def test_reading_from_google_goes_on_after_a_broken_connection(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port)
    content = b"".join(number.to_bytes(4, "big") for number in range((9 << 20) // 4))
    storage.put("key", content)
    rule = proxy.lose(r"^GET /download/.*key", answer_bytes=1_000_000, times=4)
    assert b"".join(storage.read_chunks("key", 100_000)) == content
    assert rule.happened == 4
    generations = [re.search(r"generation=(\d+)", line) for line in proxy.requests if line.startswith("GET /download/")]
    assert generations[0] is None
    assert len({found[1] for found in generations[1:] if found}) == 1
    assert len(generations) == 5


def test_reading_from_google_ends_when_nothing_more_comes(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port, storage_attempts=2)
    storage.put("key", bytes(5 << 20))
    proxy.lose(r"^GET /download/", answer_bytes=1_000_000)
    chunks = storage.read_chunks("key", 10_000)
    next(chunks)
    rule = proxy.lose(r"^GET /download/", times=1000)
    with pytest.raises(Retryable, match="the connection to http://127"):
        list(chunks)
    assert rule.happened == 2


def test_an_answer_of_google_whose_head_breaks_off_is_asked_for_again(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port, storage_attempts=2)
    storage.put("key", b"1")
    rule = proxy.lose(r"^GET /download/", answer_bytes=100)
    assert storage.get("key") == b"1"
    assert rule.happened == 1


def test_an_object_of_google_replaced_while_it_is_read_is_not_mixed(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, _ = broken
    storage = at(proxy.port)
    storage.put("key", b"1" * (5 << 20))
    proxy.lose(r"^GET /download/", answer_bytes=1_000_000)
    chunks = storage.read_chunks("key", 10_000)
    assert next(chunks) == b"1" * 10_000
    storage.put("key", b"2" * (5 << 20))
    with pytest.raises(Retryable, match="was replaced or deleted while it was read"):
        list(chunks)


def test_bytes_that_google_did_not_store_are_noticed(at: At) -> None:
    # The check value of CRC-32C is 0xE3069283: https://reveng.sourceforge.io/crc-catalogue/17plus.htm#crc.cat.crc-32-iscsi
    told = base64.b64encode(bytes.fromhex("e3069283")).decode()
    headers = {"X-Goog-Generation": "1", "X-Goog-Hash": f"crc32c={told}, md5=JfnnlDI7RTiF9RgfGr2uAA=="}
    with answering(200, b"123456789", headers) as stub:
        assert at(stub.port).get("key") == b"123456789"
    with answering(200, b"123456780", headers) as stub, pytest.raises(Retryable, match="'key' arrived damaged from gs://"):
        at(stub.port).get("key")


def test_listing_google_asks_for_a_page_only_when_it_is_needed(at: At, broken: tuple[TcpProxy, FakeGcs]) -> None:
    proxy, server = broken
    at(server.endpoint).put("key", b"")
    listing = at(proxy.port).list()
    assert proxy.requests == []
    assert next(listing).key == "key"
    assert len(proxy.requests) == 1


def test_a_page_that_is_lost_is_asked_for_again(at: At, place: str) -> None:
    with FakeGcsBucket(page=2) as bucket, TcpProxy(bucket.port) as proxy:
        for name in "abcde":
            bucket.add(f"{place}/{name}", b"")
        rule = proxy.lose(r"^GET .*pageToken=2")
        assert [info.key for info in at(proxy.port, bucket="bucket").list()] == list("abcde")
        assert rule.happened == 1
        assert len(proxy.requests) == 4


def test_what_the_console_shows_as_a_folder_is_no_object(at: At, fake_gcs: FakeGcs, gcs_bucket: str, place: str) -> None:
    for name in (f"{place}/", f"{place}/folder/"):
        address = f"{fake_gcs.endpoint}/upload/storage/v1/b/{gcs_bucket}/o"
        requests.post(address, params={"uploadType": "media", "name": name}, timeout=30).raise_for_status()
    storage = at(fake_gcs.endpoint)
    assert list(storage.list()) == []
    storage.put("folder/key", b"")
    assert [info.key for info in storage.list()] == ["folder/key"]


@pytest.mark.parametrize("hidden", [False, True], ids=["told", "not told"])
def test_where_versions_are_kept_a_deletion_removes_them_all(at: At, place: str, hidden: bool) -> None:
    with FakeGcsBucket(versioning=True, hidden=hidden) as bucket:
        for name in ("key", "key", "key2", "ke"):
            bucket.add(f"{place}/{name}", b"1")
        storage = at(bucket.endpoint, bucket="bucket")
        storage.delete("key")
        storage.delete("key")
        assert sorted(one.name for one in bucket.objects) == [f"{place}/ke", f"{place}/key2"]


def test_where_no_versions_are_kept_a_deletion_asks_for_none(at: At, place: str) -> None:
    with FakeGcsBucket() as bucket:
        storage = at(bucket.endpoint, bucket="bucket")
        for key in ("a", "b"):
            bucket.add(f"{place}/{key}", b"1")
            storage.delete(key)
        assert bucket.objects == []
        assert [line.partition(" ")[0] for line in bucket.requests] == ["GET", "DELETE", "DELETE"]


@pytest.mark.parametrize("versioning", [False, True])
def test_an_object_of_which_a_version_is_kept_stays_visible(at: At, place: str, versioning: bool) -> None:
    with FakeGcsBucket(versioning=versioning) as bucket:
        bucket.add(f"{place}/key", b"1", policy_until=datetime(2126, 5, 1, 12, tzinfo=UTC))
        if versioning:
            bucket.add(f"{place}/key", b"2")
        storage = at(bucket.endpoint, bucket="bucket")
        with pytest.raises(Locked, match=r"'key' in gs://bucket/.* is protected until 2126-05-01 12:00 UTC and was not deleted"):
            storage.delete("key")
        assert storage.head("key") is not None


def test_calls_to_google_wait_for_their_turn(at: At, broken: tuple[TcpProxy, FakeGcs], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {"taken": 0, "back": 0, "most": 0}

    class Counting(CallLimit):
        def enter(self) -> None:
            super().enter()
            turns["taken"] += 1
            turns["most"] = max(turns["most"], turns["taken"] - turns["back"])

        def leave(self) -> None:
            turns["back"] += 1
            super().leave()

    monkeypatch.setattr(CallLimit, "of", staticmethod(Counting))
    proxy, _ = broken
    storage = at(proxy.port, storage_calls=1, storage_upload_memory=16 << 20, storage_attempts=2)
    for call in every_call(storage):
        with suppress(NotFound, AlreadyExists):
            call()
    stream(storage, "large", 17 << 20)  # Its chunks are sent by a thread of their own.
    readers = [storage.read_chunks("large", 1 << 20) for _ in range(3)]
    assert [len(next(reader)) for reader in readers] == [1 << 20] * 3  # Downloads that stand still hold up nobody.
    assert [info.key for info in storage.list("large")] == ["large"]
    assert [sum(map(len, reader)) for reader in readers] == [16 << 20] * 3
    proxy.lose("", times=1000)
    with pytest.raises(Retryable):
        storage.head("key")
    assert turns["taken"] == turns["back"] == len(proxy.requests)
    assert turns["most"] == 1


def test_an_emulators_address_must_be_one(at: At) -> None:
    with pytest.raises(BadInput, match="STORAGE_EMULATOR_HOST must have the form http://host:port"):
        at("localhost:4443")
