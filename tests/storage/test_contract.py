"""The contract of storage/base.py, on every backend, and on several places that are one storage."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure.storage.blob import ContainerClient
from botocore.paginate import Paginator
from google.cloud.storage import Client as GoogleClient  # type: ignore[import-untyped]

from spanvault.embedded.ports import LOOPBACK
from spanvault.embedded.seaweed import SeaweedServer
from spanvault.errors import AlreadyExists, BadInput, NotFound, Retryable
from spanvault.storage.base import Storage
from tests.kit.faults import Killed
from tests.storage.conftest import BACKENDS, OpenStorage, uri_on

SMALL = 1 << 10
SEVERAL_PARTS = 20 << 20  # S3 parts and Azure blocks have 8 MiB, chunks of Google Cloud Storage 16 MiB.
UNICODE_KEYS = [
    "A",
    "a b",
    "a%20b",
    "a&b<c>",
    "a+b",
    "e\u0301",
    "z\uffee",
    "z\U0001f600",
    "~",
    "\u00fc/1",
    "\u00fc/\u00df/2",
    "#?",
    "\t",
]

# Writes a stream, says so, and waits to be killed.
KILLED_WRITER = """
import sys
from spanvault.engine.context import Context
uri, key, size = sys.argv[1:]
with Context().stored(uri).open_write(key) as writer:
    writer.write(bytes(int(size)))
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=[*BACKENDS, "spread"])
def storage_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place on each backend, and those of several."""
    return uri_of(request.param, request, tmp_path)


def uri_of(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place, or of several."""
    if backend != "spread":
        return uri_on(backend, request, tmp_path)
    return "\n".join(f"file://{tmp_path}/{tier}?COCKROACH_LOCALITY={tier}" for tier in ("default", "region%3Deu", "region%3Dus"))


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [info.key for info in storage.list(prefix)]


def pattern(size: int) -> bytes:
    """Bytes in which every 8 differ, so that a lost, doubled or moved part shows."""
    return b"".join(number.to_bytes(8, "big") for number in range(-(-size // 8)))[:size]


def test_what_was_put_is_read(storage: Storage) -> None:
    storage.put("a/b.json", b"content")
    assert storage.get("a/b.json") == b"content"
    assert b"".join(storage.read_chunks("a/b.json", 3)) == b"content"
    info = storage.head("a/b.json")
    assert info is not None
    assert (info.key, info.size) == ("a/b.json", 7)
    assert list(storage.list()) == [info]


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.put("empty", b"")
    with storage.open_write("streamed"):
        pass
    assert storage.get("empty") == storage.get("streamed") == b""
    assert keys(storage) == ["empty", "streamed"]


@pytest.mark.parametrize("size", [SMALL, 8 << 20, (8 << 20) + 1, SEVERAL_PARTS])
def test_a_stream_is_stored_whole(storage: Storage, size: int) -> None:
    data = pattern(size)
    with storage.open_write("stream") as writer:
        for start in range(0, size, 3 << 20):
            assert writer.write(memoryview(data)[start : start + (3 << 20)]) == len(data[start : start + (3 << 20)])
        assert storage.head("stream") is None
        assert keys(storage) == []
    digest, longest = hashlib.sha256(), 0
    for chunk in storage.read_chunks("stream", 1 << 20):
        digest.update(chunk)
        longest = max(longest, len(chunk))
    assert digest.digest() == hashlib.sha256(data).digest()
    assert longest <= 1 << 20
    assert list(storage.list_unfinished()) == []


@pytest.mark.parametrize("size", [SMALL, SEVERAL_PARTS])
def test_after_an_exception_in_the_stream_nothing_is_there(storage: Storage, size: int) -> None:
    for raised in (ValueError("stop"), OSError(28, "full"), KeyboardInterrupt(), Killed(), Retryable("stop")):
        with pytest.raises(type(raised)) as caught, storage.open_write("stream") as writer:
            writer.write(bytes(size))
            raise raised
        assert caught.value is raised
        assert storage.head("stream") is None
        assert keys(storage) == []
        assert list(storage.list_folders()) == []
        assert list(storage.list_unfinished()) == []


def test_an_exception_leaves_an_existing_object_as_it_was(storage: Storage) -> None:
    storage.put("stream", b"old")
    with pytest.raises(ValueError, match="stop"), storage.open_write("stream") as writer:
        writer.write(bytes(SEVERAL_PARTS))
        raise ValueError("stop")
    assert storage.get("stream") == b"old"


def test_a_killed_writer_leaves_only_what_list_unfinished_shows(storage: Storage, storage_uri: str) -> None:
    arguments = [sys.executable, "-c", KILLED_WRITER, storage_uri, "folder/stream", str(SEVERAL_PARTS)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert keys(storage) == []
    assert list(storage.list_folders()) == []
    assert storage.head("folder/stream") is None
    if storage_uri.startswith("gs:"):
        # The service does not tell, and removes them itself.
        assert list(storage.list_unfinished()) == []
        return
    (unfinished,) = storage.list_unfinished()
    assert unfinished.key in {"folder/stream", ""}
    storage.remove_unfinished(unfinished)
    storage.remove_unfinished(unfinished)
    assert list(storage.list_unfinished()) == []


def test_a_writer_whose_leftover_is_removed_publishes_nothing(storage: Storage, storage_uri: str) -> None:
    if storage_uri.startswith("gs:"):
        pytest.skip("Google Cloud Storage does not list unfinished uploads; test_gcs.py removes one by its address.")
    with pytest.raises(Retryable, match="was removed while"), storage.open_write("stream") as writer:
        writer.write(bytes(SEVERAL_PARTS))
        for unfinished in list(storage.list_unfinished()):
            storage.remove_unfinished(unfinished)
    assert storage.head("stream") is None
    assert keys(storage) == []


def test_put_replaces_and_create_only_does_not(storage: Storage) -> None:
    storage.put("key", b"1")
    storage.put("key", b"2")
    with pytest.raises(AlreadyExists, match="'key' exists already"):
        storage.put("key", b"3", create_only=True)
    with pytest.raises(AlreadyExists):
        storage.put("key", b"2", create_only=True)
    assert storage.get("key") == b"2"
    storage.delete("key")
    storage.put("key", b"4", create_only=True)
    assert storage.get("key") == b"4"


@pytest.mark.slow
@pytest.mark.parametrize("content", [lambda _: b"the same", lambda number: b"%d" % number], ids=["equal", "different"])
def test_of_racing_creators_exactly_one_wins(storage: Storage, content: Callable[[int], bytes]) -> None:
    for turn in range(3):
        key, gate = f"race/{turn}", threading.Barrier(16)

        def create(number: int, key: str = key, gate: threading.Barrier = gate) -> tuple[bool, bytes]:
            gate.wait()
            try:
                storage.put(key, content(number), create_only=True)
            except AlreadyExists:
                return False, storage.get(key)
            return True, content(number)

        with ThreadPoolExecutor(16) as threads:
            outcomes = list(threads.map(create, range(16)))
        winners = [data for won, data in outcomes if won]
        assert len(winners) == 1
        assert {data for _, data in outcomes} == set(winners)


def test_unicode_keys_come_back_in_byte_order(storage: Storage) -> None:
    for key in UNICODE_KEYS:
        storage.put(key, key.encode())
    assert keys(storage) == sorted(UNICODE_KEYS, key=str.encode)
    assert [storage.get(key).decode() for key in UNICODE_KEYS] == UNICODE_KEYS
    assert keys(storage, "\u00fc/") == ["\u00fc/1", "\u00fc/\u00df/2"]
    assert keys(storage, "z") == ["z\uffee", "z\U0001f600"]


def test_folders_beside_similar_names_are_listed_once_each(storage: Storage) -> None:
    names = {"a/1", "a/2", "a-b", "a.b/1", "a0", "ab/1"}
    for name in names:
        storage.put(name, b"")
    assert sorted(keys(storage)) == sorted(names)
    assert sorted(storage.list_folders()) == ["a.b/", "a/", "ab/"]


def test_a_prefix_is_text_and_never_leads_out(storage: Storage) -> None:
    for key in ["data/000001.json", "data/000010.json", "data/000011.json", "datum"]:
        storage.put(key, b"")
    assert keys(storage, "data/00001") == ["data/000010.json", "data/000011.json"]
    assert keys(storage, "dat") == ["data/000001.json", "data/000010.json", "data/000011.json", "datum"]
    assert keys(storage, "data") == ["data/000001.json", "data/000010.json", "data/000011.json"]
    assert keys(storage, "data/000001.json") == ["data/000001.json"]
    for prefix in ["nothing", "data/../datum", "../", "data/000001.json/", ".spanvault-", "/data"]:
        assert keys(storage, prefix) == []


def _names(count: int) -> list[str]:
    return [f"many/{number:06d}" for number in range(count)]


def _many(storage: Storage, names: list[str]) -> None:
    """Objects of these names are made and listed."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: storage.put(name, b""), names))
    _are_listed(storage, names)


def _put_signed(server: SeaweedServer, uri: str, names: list[str]) -> None:
    """Empty objects below the URI, by bare requests, in half of the SDK's time."""
    place = urlsplit(uri)
    with closing(server.client()) as client:
        signed = [
            client.generate_presigned_url("put_object", Params={"Bucket": place.netloc, "Key": f"{place.path[1:]}/{name}"})
            for name in names
        ]

    def put(urls: list[str]) -> None:
        with closing(HTTPConnection(LOOPBACK, server.port)) as connection:
            for url in urls:
                connection.request("PUT", url.removeprefix(server.endpoint))
                answer = connection.getresponse()
                assert answer.status == 200, answer.read()
                answer.read()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, [signed[start::8] for start in range(8)]))


def _are_listed(storage: Storage, names: list[str]) -> None:
    assert keys(storage, "many/") == names
    assert list(storage.list_folders()) == ["many/"]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are asked for pages of 100 names: they end as their own of 1,000 or 5,000 do, with a fraction of the objects."""
    for client, listing, asked in (
        (ContainerClient, "list_blobs", {"results_per_page": 100}),
        (ContainerClient, "walk_blobs", {"results_per_page": 100}),
        (Paginator, "paginate", {"PaginationConfig": {"PageSize": 100}}),
        (GoogleClient, "list_blobs", {"page_size": 100}),
    ):
        original = getattr(client, listing)

        def small(*given: object, original: Any = original, asked: Any = asked, **more: object) -> object:
            return original(*given, **{**more, **asked})

        monkeypatch.setattr(client, listing, small)


@pytest.mark.usefixtures("small_pages")
def test_listing_goes_on_over_pages(storage: Storage) -> None:
    _many(storage, _names(250))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["file", "spread", "s3"])
def test_ten_thousand_are_listed(backend: str, opened: OpenStorage, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """S3's own pages have 1,000 names. The test servers of Azure and Google take two minutes for so many objects, whoever puts
    them; their pages are those of `test_listing_goes_on_over_pages`."""
    uri = uri_of(backend, request, tmp_path)
    if backend != "s3":
        _many(opened(uri), _names(10_000))
        return
    _put_signed(request.getfixturevalue("seaweed"), uri, _names(10_000))
    _are_listed(opened(uri), _names(10_000))


def test_folders_are_the_distinct_next_parts(storage: Storage) -> None:
    for key in ["2026/11/22-143000.00/PLAN.json", "2026/11/22-150000.00/PLAN.json", "2026/12/x", "2025/01/y", "COLLECTION.json"]:
        storage.put(key, b"")
    assert list(storage.list_folders()) == ["2025/", "2026/"]
    assert list(storage.list_folders("2026/")) == ["11/", "12/"]
    assert list(storage.list_folders("2026/11/")) == ["22-143000.00/", "22-150000.00/"]
    assert list(storage.list_folders("2026/12/")) == []
    assert list(storage.list_folders("1999/")) == []
    with pytest.raises(BadInput, match="end in '/'"):
        list(storage.list_folders("2026"))


def test_deleting_is_idempotent(storage: Storage) -> None:
    storage.put("a/b", b"1")
    storage.put("a/c", b"2")
    storage.delete("a/b")
    storage.delete("a/b")
    storage.delete("never/was")
    assert keys(storage) == ["a/c"]
    assert storage.head("a/b") is None


def test_what_is_missing_is_named(storage: Storage) -> None:
    assert storage.head("no/such") is None
    for read in (storage.get, lambda key: list(storage.read_chunks(key))):
        with pytest.raises(NotFound, match=r"^There is no object 'no/such' in (file|s3|azure-blob|gs)://.*\.$"):
            read("no/such")
    assert keys(storage) == []
    assert list(storage.list_folders()) == []
    assert list(storage.list_unfinished()) == []


BAD_KEYS = ["", "/a", "a/", "a//b", ".", "a/../b", "a\0b", "\ud800", ".spanvault-tmp/x", "a" * 201, "a/" * 460 + "a"]


def test_keys_that_break_the_contract_are_refused(storage: Storage) -> None:
    for key in BAD_KEYS:
        for use in (
            storage.get,
            storage.head,
            storage.delete,
            lambda key: storage.put(key, b""),
            lambda key: storage.put(key, b"", create_only=True),
            lambda key: storage.open_write(key).__enter__(),
            lambda key: list(storage.read_chunks(key)),
        ):
            with pytest.raises(BadInput, match="cannot be the key of a stored object"):
                use(key)
    assert keys(storage) == []


def test_the_longest_key_is_stored(storage: Storage) -> None:
    key = "/".join(["\u00fc" * 100] * 4 + ["x" * 96])
    assert len(key.encode()) == 900
    storage.put(key, b"1", create_only=True)
    assert keys(storage) == [key]
    assert storage.get(key) == b"1"


def test_the_display_uri_shows_the_place_and_no_secret(storage: Storage, storage_uri: str) -> None:
    assert storage.display_uri.partition("?")[0] == storage_uri.partition("?")[0]
    for parameter in ("AWS_SECRET_ACCESS_KEY", "AZURE_ACCOUNT_KEY"):
        _, _, secret = storage_uri.partition(f"{parameter}=")
        if secret:
            assert secret.partition("&")[0] not in storage.display_uri
            assert f"{parameter}=redacted" in storage.display_uri
