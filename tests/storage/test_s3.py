"""What only object stores do: lost answers, broken connections, refusals, multipart uploads in bounded memory."""

from __future__ import annotations

import json
import re
import socket
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import AlreadyExists, BadInput, NotFound, Retryable, StateUnknown
from spanvault.storage.base import Storage
from spanvault.storage.limit import CallLimit
from spanvault.storage.s3_upload import FIRST_PART_BYTES, MAX_PARTS, part_bytes
from tests.kit.http_stub import StubServer, answering, silent, stalling
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

Uri = Callable[..., str]
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
NO_SUCH_CLASS = b"<Error><Code>InvalidStorageClass</Code><Message>The storage class is not valid.</Message></Error>"


@pytest.fixture
def uri(seaweed: SeaweedServer, bucket: str) -> Uri:
    """Makes URIs of one fresh place, through any port, with parameters replaced or (None) left out."""
    path = str(uuid.uuid4())

    def uri(port: int | None = None, bucket: str = bucket, **params: str | None) -> str:
        given = {
            "AWS_ENDPOINT": f"http://127.0.0.1:{port or seaweed.port}",
            "AWS_ACCESS_KEY_ID": seaweed.access_key,
            "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
            "AWS_USE_PATH_STYLE": "true",
            **params,
        }
        return f"s3://{bucket}/{path}?" + "&".join(f"{name}={value}" for name, value in given.items() if value)

    return uri


def every_call(storage: Storage) -> Iterator[Callable[[], object]]:
    """Each method once, on an object that is not there."""
    yield lambda: storage.get("key")
    yield lambda: storage.head("key")
    yield lambda: list(storage.list())
    yield lambda: list(storage.list_folders())
    yield lambda: list(storage.list_unfinished())
    yield lambda: storage.delete("key")
    yield lambda: storage.put("key", b"1")
    yield lambda: storage.put("key", b"1", create_only=True)
    yield lambda: stream(storage, "key", 10)
    yield lambda: stream(storage, "key", FIRST_PART_BYTES + 1)


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


def test_a_missing_bucket_is_named(opened: OpenStorage, uri: Uri) -> None:
    for call in every_call(opened(uri(bucket="no-such-bucket"))):
        with pytest.raises(NotFound, match="There is no bucket 'no-such-bucket' at http://127"):
            call()


def test_a_wrong_secret_is_refused_at_once_and_not_shown(opened: OpenStorage, uri: Uri) -> None:
    for call in every_call(opened(uri(AWS_SECRET_ACCESS_KEY="hunter2hunter2"))):
        with pytest.raises(BadInput, match=r"secret key does not belong to the access key|refused access \(403\)") as caught:
            call()
        assert "hunter2" not in repr(caught.value) + repr(caught.value.__cause__)


def test_an_unknown_access_key_is_named(opened: OpenStorage, uri: Uri) -> None:
    with pytest.raises(BadInput, match="access key NOBODY is not known at http://127"):
        opened(uri(AWS_ACCESS_KEY_ID="NOBODY")).get("key")


def test_the_machine_without_credentials(opened: OpenStorage, uri: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    storage = opened(uri(AUTH="implicit", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None))
    for call in every_call(storage):
        with pytest.raises(BadInput, match="this machine has no usable AWS credentials"):
            call()


def test_the_machines_own_credentials(
    opened: OpenStorage, uri: Uri, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    storage = opened(uri(AUTH="implicit", AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None))
    storage.put("key", b"1")
    assert storage.get("key") == b"1"


def test_a_connection_gives_endpoint_and_keys(opened: OpenStorage, uri: Uri, seaweed: SeaweedServer, bucket: str) -> None:
    connection = {
        "conn_type": "aws",
        "login": seaweed.access_key,
        "password": seaweed.secret_key,
        "extra": {
            "endpoint_url": seaweed.endpoint,
            "region_name": "us-east-1",
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }
    place = uri().partition("?")[0]
    storage = opened(f"{place}?conn_id=store", {"AIRFLOW_CONN_STORE": json.dumps(connection)})
    storage.put("key", b"1", create_only=True)
    assert opened(uri()).get("key") == b"1"
    with pytest.raises(NotFound, match="AIRFLOW_CONN_STORE"):
        opened(f"{place}?conn_id=store")
    for change, sentence in (
        ({"conn_type": "postgres"}, "needs one of the type 'aws'"),
        ({"password": None}, "needs both the access key"),
        ({"extra": {"profile_name": "x"}}, "has both keys and a profile_name"),
        ({"extra": {"role_arn": "r", "assume_role_method": "assume_role_with_saml"}}, "'assume_role_with_saml' is not supported"),
        ({"extra": {"role_arn": "r", "assume_role_kwargs": {"Policy": "{}"}}}, "may hold ExternalId and RoleSessionName, and"),
        ({"extra": {"endpoint_url": 1}}, "endpoint_url in its extra fields must be text"),
    ):
        with pytest.raises(BadInput, match=sentence):
            opened(f"{place}?conn_id=store", {"AIRFLOW_CONN_STORE": json.dumps(connection | change)})


def test_nobody_listens(opened: OpenStorage, uri: Uri) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    storage = opened(uri(port), storage_attempts=2)
    for call in every_call(storage):
        with pytest.raises((Retryable, StateUnknown), match="cannot be reached"):
            call()


def test_a_server_that_never_answers_is_given_up(opened: OpenStorage, uri: Uri) -> None:
    with silent() as port:
        storage = opened(uri(port), storage_attempts=2, storage_read_timeout=0.2)
        with pytest.raises(Retryable, match="did not answer in time"):
            storage.get("key")
        with pytest.raises(Retryable, match="did not answer in time"):
            stream(storage, "key", FIRST_PART_BYTES)
        with pytest.raises(StateUnknown, match="did not answer in time"):
            storage.put("key", b"1", create_only=True)


def test_a_download_that_stalls_is_given_up(opened: OpenStorage, uri: Uri) -> None:
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "x"\r\n\r\n' + b"1" * 10
    with stalling(head) as port:
        storage = opened(uri(port), storage_attempts=2, storage_read_timeout=0.2)
        with pytest.raises(Retryable, match="did not answer in time"):
            storage.get("key")


def test_checksums_are_sent_unless_they_are_skipped(opened: OpenStorage, uri: Uri) -> None:
    def checksums(**params: str) -> list[bool]:
        with answering(400, NO_SUCH_CLASS) as stub:
            storage = opened(uri(stub.port, **params))
            for size in (10, FIRST_PART_BYTES):
                with pytest.raises(BadInput):
                    stream(storage, "key", size)
            return [any("checksum" in name for name in headers) for _, _, headers in stub.requests]

    assert checksums() == [True, True]
    assert checksums(AWS_SKIP_CHECKSUM="true") == [False, False]


def test_skipping_checksums_stores_the_same(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri(AWS_SKIP_CHECKSUM="true"))
    storage.put("small", b"1", create_only=True)
    stream(storage, "large", FIRST_PART_BYTES + 1)
    assert storage.get("small") == b"1"
    assert storage.get("large") == bytes(FIRST_PART_BYTES + 1)


def test_calls_wait_for_their_turn(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri(), storage_calls=1)
    stream(storage, "large", 3 * FIRST_PART_BYTES)  # Its parts go one after another.
    readers = [storage.read_chunks("large", 1 << 20) for _ in range(3)]
    assert [len(next(reader)) for reader in readers] == [1 << 20] * 3  # Downloads that stand still hold up nobody.
    assert len(list(storage.list())) == 1
    with pytest.raises(NotFound):
        storage.get("none")
    with pytest.raises(ZeroDivisionError), storage.open_write("gone") as writer:
        writer.write(bytes(2 * FIRST_PART_BYTES))
        raise ZeroDivisionError
    storage.delete("large")
    assert list(storage.list()) == []
    assert list(storage.list_unfinished()) == []


def test_every_call_takes_a_turn_and_gives_it_back(
    opened: OpenStorage, uri: Uri, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = {"taken": 0, "back": 0}

    class Counting(CallLimit):
        def enter(self) -> None:
            super().enter()
            turns["taken"] += 1

        def leave(self) -> None:
            super().leave()
            turns["back"] += 1

    monkeypatch.setattr(CallLimit, "of", staticmethod(Counting))
    storage = opened(uri(proxy.port), storage_calls=2)
    for call in every_call(storage):
        with suppress(NotFound, AlreadyExists):
            call()
    assert turns["taken"] == turns["back"] == len(proxy.requests)


def test_throttling_is_tried_again_and_then_retryable(opened: OpenStorage, uri: Uri) -> None:
    with answering(503, SLOW_DOWN) as stub:
        with pytest.raises(Retryable, match="asks for fewer requests"):
            opened(uri(stub.port), storage_attempts=3).get("key")
        assert [request[0] for request in stub.requests] == ["GET"] * 3


def test_class_and_encryption_are_asked_for_on_every_creation(opened: OpenStorage, uri: Uri) -> None:
    asked = {"S3_STORAGE_CLASS": "STANDARD_IA", "AWS_SERVER_ENC_MODE": "aws:kms", "AWS_SERVER_KMS_ID": "alias/backups"}
    sent = {
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "alias/backups",
    }

    def check(stub: StubServer, write: Callable[[], object]) -> None:
        stub.requests.clear()
        with pytest.raises(BadInput, match="does not know the storage class"):
            write()
        assert sent.items() <= stub.requests[0][2].items()

    with answering(400, NO_SUCH_CLASS) as stub:
        storage = opened(uri(stub.port, **asked))
        check(stub, lambda: storage.put("data/key", b"1"))
        check(stub, lambda: storage.put("data/key", b"1", create_only=True))
        check(stub, lambda: stream(storage, "a/data/key", 10))
        check(stub, lambda: stream(storage, "data/a/key", FIRST_PART_BYTES))
        # What every later backup reads stays in the standard class.
        del sent["x-amz-storage-class"]
        for key in ("key", "a/data", "database/key"):
            check(stub, lambda key=key: storage.put(key, b"1"))  # type: ignore[misc]
            assert "x-amz-storage-class" not in stub.requests[0][2]


def test_the_storage_class_is_stored(opened: OpenStorage, uri: Uri, seaweed: SeaweedServer, bucket: str) -> None:
    storage = opened(uri(S3_STORAGE_CLASS="STANDARD_IA"))
    storage.put("data/small", b"1")
    stream(storage, "data/large", FIRST_PART_BYTES + 1)
    storage.put("document", b"1")
    client = seaweed.client()
    path = uri().partition("?")[0].rpartition("/")[2]
    for key in ("data/small", "data/large"):
        assert client.head_object(Bucket=bucket, Key=f"{path}/{key}")["StorageClass"] == "STANDARD_IA"
    assert client.head_object(Bucket=bucket, Key=f"{path}/document").get("StorageClass", "STANDARD") == "STANDARD"
    client.close()


def test_a_lost_answer_to_a_create_is_recognised_as_ones_own(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    rule = proxy.lose(r"^PUT .*/key")
    storage = opened(uri(proxy.port))
    storage.put("key", b"1", create_only=True)
    assert rule.happened == 1
    assert storage.get("key") == b"1"
    with pytest.raises(AlreadyExists):
        storage.put("key", b"1", create_only=True)


def test_a_lost_refusal_of_a_create_stays_a_refusal(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    opened(uri()).put("key", b"1")
    rule = proxy.lose(r"^PUT .*/key")
    with pytest.raises(AlreadyExists, match="'key' exists already"):
        opened(uri(proxy.port)).put("key", b"1", create_only=True)
    assert rule.happened == 1


def test_when_all_answers_to_a_create_are_lost_the_object_tells(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    proxy.lose(r"^PUT .*/mine", times=2)
    storage = opened(uri(proxy.port), storage_attempts=2)
    storage.put("mine", b"1", create_only=True)
    opened(uri()).put("theirs", b"2")
    proxy.lose(r"^PUT .*/theirs", times=2)
    with pytest.raises(AlreadyExists, match="'theirs' exists already"):
        storage.put("theirs", b"1", create_only=True)
    assert opened(uri()).get("theirs") == b"2"


def test_a_create_that_nobody_can_look_up_is_unknown(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    proxy.lose(r"^(PUT|HEAD) .*/key", times=1000)
    storage = opened(uri(proxy.port), storage_attempts=2)
    with pytest.raises(StateUnknown, match="Whether 'key' was written to s3://"):
        storage.put("key", b"1", create_only=True)
    assert opened(uri()).get("key") == b"1"


@pytest.mark.parametrize("size", [10, FIRST_PART_BYTES + 1])
def test_a_lost_answer_at_the_end_of_a_stream(opened: OpenStorage, uri: Uri, proxy: TcpProxy, size: int) -> None:
    rule = proxy.lose(r"^PUT [^?]*/stream |^POST .*/stream\?uploadId", times=2)
    storage = opened(uri(proxy.port), storage_attempts=2)
    stream(storage, "stream", size)
    assert rule.happened == 2
    assert storage.get("stream") == bytes(size)


def test_a_part_that_cannot_be_sent_leaves_nothing(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    proxy.lose(r"^PUT .*/stream\?", times=1000)
    storage = opened(uri(proxy.port), storage_attempts=2)
    with pytest.raises(Retryable, match="the connection to http://127"):
        stream(storage, "stream", 3 * FIRST_PART_BYTES)
    assert storage.head("stream") is None
    assert list(storage.list_unfinished()) == []


def test_reading_goes_on_after_a_broken_connection(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(1 << 20))
    opened(uri()).put("key", content)
    rule = proxy.lose(r"^GET .*/key", answer_bytes=1_000_000, times=3)
    assert b"".join(opened(uri(proxy.port)).read_chunks("key", 100_000)) == content
    assert rule.happened == 3
    assert sum(line.startswith("GET") for line in proxy.requests) == 4


def test_reading_ends_when_nothing_more_comes(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    opened(uri()).put("key", bytes(1 << 20))
    proxy.lose(r"^GET .*/key", answer_bytes=100_000)
    proxy.lose(r"^GET .*/key", times=1000)
    with pytest.raises(Retryable, match="the connection to http://127"):
        opened(uri(proxy.port), storage_attempts=2).get("key")


def test_an_object_replaced_while_it_is_read_is_not_mixed(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    opened(uri()).put("key", b"1" * (1 << 20))
    proxy.lose(r"^GET .*/key", answer_bytes=100_000)
    chunks = opened(uri(proxy.port)).read_chunks("key", 10_000)
    assert next(chunks) == b"1" * 10_000
    opened(uri()).put("key", b"2" * (1 << 20))
    with pytest.raises(Retryable, match="was replaced while it was read"):
        list(chunks)


def test_connections_that_the_server_closed_are_replaced(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    storage = opened(uri(proxy.port))
    storage.put("key", b"1")
    proxy.break_connections()
    assert storage.get("key") == b"1"
    proxy.break_connections()
    storage.put("other", b"2", create_only=True)
    assert [info.key for info in storage.list()] == ["key", "other"]


def test_listing_asks_for_a_page_only_when_it_is_needed(opened: OpenStorage, uri: Uri, proxy: TcpProxy) -> None:
    opened(uri()).put("key", b"")
    storage = opened(uri(proxy.port))
    listing = storage.list()
    assert proxy.requests == []
    assert next(listing).key == "key"
    assert len(proxy.requests) == 1


def test_an_upload_takes_bounded_memory(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri(), storage_upload_memory=16 << 20)
    block = bytes(1 << 20)
    stream(storage, "warm-up", FIRST_PART_BYTES + 1)
    tracemalloc.start()
    with storage.open_write("large") as writer:
        for _ in range(96):
            writer.write(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    info = storage.head("large")
    assert info is not None
    assert info.size == 96 << 20
    # 16 MiB on their way, a part being filled, a part being handed over.
    assert peak < 40 << 20


def test_ten_thousand_parts_hold_the_largest_object() -> None:
    sizes = [part_bytes(number) for number in range(1, MAX_PARTS + 1)]
    assert sizes[0] == 8 << 20
    assert sizes == sorted(sizes)
    assert sum(sizes) >= 5 << 40
    assert max(sizes) <= 5 << 30


def test_no_secret_is_in_any_representation(opened: OpenStorage, uri: Uri, seaweed: SeaweedServer) -> None:
    storage = opened(uri(AWS_SESSION_TOKEN="tok3n"))
    shown = repr(vars(storage)) + storage.display_uri
    assert not re.search(f"{seaweed.secret_key}|tok3n", shown)
