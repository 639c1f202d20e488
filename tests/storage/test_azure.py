"""What only Azure Blob Storage does: blocks that nobody sees, SAS tokens, lost answers, refusals."""

from __future__ import annotations

import json
import re
import socket
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from azure.storage.blob import (
    AccountSasPermissions,
    ContainerClient,
    ContentSettings,
    ResourceTypes,
    Services,
    generate_account_sas,
)

from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Refused, Retryable, StateUnknown
from spanvault.storage.azure_upload import FIRST_BLOCK_BYTES, MAX_BLOCKS, began, block_bytes, writer_name, writer_of
from spanvault.storage.base import Storage
from tests.kit.azurite import ACCOUNT, Azurite
from tests.kit.http_stub import StubServer, answering, silent
from tests.kit.tcp_proxy import TcpProxy
from tests.storage.conftest import OpenStorage

Uri = Callable[..., str]
CLIENT = {"AZURE_CLIENT_ID": "client", "AZURE_CLIENT_SECRET": "hunter2", "AZURE_TENANT_ID": "tenant"}


@pytest.fixture(autouse=True)
def needs_azurite(request: pytest.FixtureRequest) -> None:
    """Every test that is marked `apt` takes the server, and skips where it is not installed."""
    if request.node.get_closest_marker("apt"):
        request.getfixturevalue("azurite")


@pytest.fixture
def place() -> str:
    """A fresh path."""
    return str(uuid.uuid4())


@pytest.fixture
def uri(azurite: Azurite, container: str, place: str) -> Uri:
    """Makes URIs of one fresh place, through any port, with parameters replaced or (None) left out."""

    def uri(port: int | None = None, container: str = container, **params: str | None) -> str:
        given = {
            "AZURE_ENDPOINT": azurite.endpoint_at(port or azurite.port),
            "AZURE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_ACCOUNT_KEY": azurite.account_key,
            **params,
        }
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items() if value)
        return f"azure-blob://{container}/{place}?{query}"

    return uri


@pytest.fixture
def azure_proxy(azurite: Azurite) -> Iterator[TcpProxy]:
    """A proxy before the server whose connections tests break."""
    with TcpProxy(azurite.port) as proxy:
        yield proxy


@pytest.fixture
def sas(azurite: Azurite) -> Callable[..., str]:
    """Makes SAS tokens of the account that end after some hours."""

    def sas(hours: float, *, key: str | None = None, write: bool = True) -> str:
        return generate_account_sas(
            ACCOUNT,
            key or azurite.account_key,
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(read=True, list=True, write=write, delete=write, add=write, create=write),
            datetime.now(UTC) + timedelta(hours=hours),
            services=Services(blob=True),
        )

    return sas


@pytest.fixture
def blobs(azurite: Azurite, container: str) -> Iterator[ContainerClient]:
    """The SDK's own view of the container."""
    with azurite.client() as client:
        yield client.get_container_client(container)


def stream(storage: Storage, key: str, size: int) -> None:
    with storage.open_write(key) as writer:
        writer.write(bytes(size))


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
    yield lambda: stream(storage, "key", FIRST_BLOCK_BYTES + 1)


@pytest.mark.apt
def test_a_missing_container_is_named(opened: OpenStorage, uri: Uri) -> None:
    for call in every_call(opened(uri(container="no-such-container"))):
        with pytest.raises(NotFound, match="There is no container 'no-such-container' at http://127"):
            call()


@pytest.mark.apt
def test_a_wrong_account_key_is_refused_at_once_and_not_shown(opened: OpenStorage, uri: Uri) -> None:
    wrong = "aHVudGVyMmh1bnRlcjI="
    for call in every_call(opened(uri(AZURE_ACCOUNT_KEY=wrong))):
        with pytest.raises(BadInput, match=r"check the account key|account key does not belong") as caught:
            call()
        assert wrong not in repr(caught.value) + repr(caught.value.__cause__)


@pytest.mark.apt
def test_a_key_that_is_no_key_is_refused(opened: OpenStorage, uri: Uri) -> None:
    with pytest.raises(BadInput, match="signing in with the account key failed") as caught:
        opened(uri(AZURE_ACCOUNT_KEY="hunter2")).get("key")
    assert "hunter2" not in str(caught.value)


def refused_by(stub: StubServer) -> str:
    """A place on a stub."""
    endpoint = f"http://127.0.0.1:{stub.port}/account"
    return f"azure-blob://container/a?AZURE_ACCOUNT_NAME=account&AZURE_ACCOUNT_KEY=a2V5&AZURE_ENDPOINT={endpoint}"


@pytest.mark.parametrize(
    ("status", "code", "kind", "sentence"),
    [
        (403, "AuthenticationFailed", BadInput, "account key does not belong to the storage account 'account'"),
        (403, "AuthorizationFailure", BadInput, "check the account key, its rights .* network rules"),
        (403, "KeyBasedAuthenticationNotPermitted", BadInput, "takes no account keys; give AZURE_CLIENT_ID"),
        (409, "BlobImmutableDueToPolicy", Locked, "'key' in azure-blob://container/a is kept by the account until"),
        (409, "SnapshotsPresent", Refused, "'key' in azure-blob://container/a is protected"),
        (409, "BlobArchived", BadInput, "'key' in azure-blob://container/a is archived"),
        (400, "InvalidHeaderValue", BadInput, "refused the call for 'key' .InvalidHeaderValue"),
    ],
)
def test_what_the_service_says_becomes_one_sentence(
    opened: OpenStorage, status: int, code: str, kind: type[Exception], sentence: str
) -> None:
    with answering(status, b"", {"x-ms-error-code": code}) as stub:
        with pytest.raises(kind, match=sentence):
            opened(refused_by(stub)).get("key")
        assert len(stub.requests) == 1


def connected(opened: OpenStorage, container: str, place: str, **fields: object) -> Storage:
    connection = json.dumps({"conn_type": "wasb", **fields})
    return opened(f"azure-blob://{container}/{place}?conn_id=store", {"AIRFLOW_CONN_STORE": connection})


@pytest.mark.apt
def test_each_form_of_a_connection_leads_in(
    opened: OpenStorage, uri: Uri, azurite: Azurite, container: str, place: str, sas: Callable[..., str]
) -> None:
    opened(uri()).put("key", b"1")
    text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};BlobEndpoint={azurite.endpoint};"
    forms: list[dict[str, object]] = [
        {"login": ACCOUNT, "password": azurite.account_key, "host": azurite.endpoint},
        {"login": ACCOUNT, "host": azurite.endpoint, "extra": {"shared_access_key": azurite.account_key}},
        {"login": ACCOUNT, "host": azurite.endpoint, "extra": {"extra__wasb__account_key": azurite.account_key}},
        {"host": azurite.endpoint, "extra": {"sas_token": sas(1)}},
        {"host": azurite.endpoint, "extra": {"sas_token": "?" + sas(1)}},
        {"extra": {"connection_string": f"{text}AccountKey={azurite.account_key};"}},
        {"extra": {"connection_string": f"{text}SharedAccessSignature={sas(1)}"}},
    ]
    for form in forms:
        assert connected(opened, container, place, **form).get("key") == b"1"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"conn_type": "aws"}, "needs one of the type 'wasb'"),
        ({}, "needs the storage account's URL"),
        ({"login": "a", "password": "k", "host": "http://user@host"}, "must have the form https://account"),
        ({"host": "https://shared.example", "password": "k"}, "needs the storage account's name"),
        ({"host": "account", "extra": {"tenant_id": "t"}}, "needs the client's id"),
        ({"extra": {"connection_string": "AccountName=a"}}, "its connection_string must hold"),
        ({"extra": {"sas_token": 1}}, "sas_token in its extra fields must be text"),
    ],
)
def test_a_connection_that_lacks_something(opened: OpenStorage, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        connected(opened, "container", "a", **fields)


@pytest.mark.parametrize(
    ("fields", "url", "credential"),
    [
        ({"login": "acc", "password": "a2V5"}, "https://acc.blob.core.windows.net", "account key"),
        ({"login": "acc", "password": "a2V5", "host": "acc.blob.core.usgovcloudapi.net"}, None, "account key"),
        ({"login": "id", "password": "s", "host": "acc", "extra": {"tenant_id": "t"}}, None, "client's secret"),
        ({"extra": {"sas_token": "https://acc.blob.core.windows.net/?se=2099-01-01&sig=x"}}, None, "SAS token"),
        ({"login": "acc", "extra": {"managed_identity_client_id": "m"}}, None, "machine's own identity"),
    ],
)
def test_where_connections_lead(opened: OpenStorage, fields: dict[str, object], url: str | None, credential: str) -> None:
    place = vars(connected(opened, "container", "a", **fields))["_place"]
    wanted = url or ("https://" + str(fields.get("host", "acc")).partition(".blob")[0] + ".blob.core.")
    assert place.access.url.startswith(wanted)
    assert place.access.account == "acc"
    assert place.credential == credential


@pytest.mark.parametrize(
    ("cloud", "url", "authority"),
    [
        ("AZUREPUBLICCLOUD", "https://acc.blob.core.windows.net", "login.microsoftonline.com"),
        ("AZUREUSGOVERNMENTCLOUD", "https://acc.blob.core.usgovcloudapi.net", "login.microsoftonline.us"),
        ("AZURECHINACLOUD", "https://acc.blob.core.chinacloudapi.cn", "login.chinacloudapi.cn"),
        ("AZUREGERMANCLOUD", "https://acc.blob.core.cloudapi.de", "login.microsoftonline.de"),
    ],
)
def test_each_cloud_has_its_own_hosts(opened: OpenStorage, cloud: str, url: str, authority: str) -> None:
    client = "&".join(f"{name}={value}" for name, value in CLIENT.items())
    storage = opened(f"azure-blob://container/a?AZURE_ACCOUNT_NAME=acc&{client}&AZURE_ENVIRONMENT={cloud}")
    access = vars(storage)["_place"].access
    assert (access.url, access.authority) == (url, authority)


def test_the_machines_own_credentials_can_be_forbidden(opened: OpenStorage) -> None:
    for uri in ("AZURE_ACCOUNT_NAME=acc&AUTH=implicit", "conn_id=store"):
        with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
            opened(
                f"azure-blob://container/a?{uri}",
                {"AIRFLOW_CONN_STORE": '{"conn_type": "wasb", "login": "acc"}'},
                external_io_disable_implicit_credentials=True,
            )


@pytest.mark.apt
def test_tokens_go_to_nobody_without_encryption(opened: OpenStorage, uri: Uri) -> None:
    with pytest.raises(BadInput, match="cannot be reached as described: Token credential is only supported with HTTPS"):
        opened(uri(AZURE_ACCOUNT_KEY=None, **CLIENT)).get("key")


@pytest.mark.apt
def test_a_sas_token_that_has_expired_says_when(
    opened: OpenStorage, azurite: Azurite, container: str, place: str, sas: Callable[..., str]
) -> None:
    token = sas(-1)
    for call in every_call(connected(opened, container, place, host=azurite.endpoint, extra={"sas_token": token})):
        with pytest.raises(
            BadInput, match=r"SAS token expired at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC|check the SAS token"
        ) as caught:
            call()
        assert token.rpartition("sig=")[2] not in repr(caught.value) + repr(caught.value.__cause__)


@pytest.mark.apt
def test_a_sas_token_without_the_right_to_write(
    opened: OpenStorage, uri: Uri, azurite: Azurite, container: str, place: str, sas: Callable[..., str]
) -> None:
    opened(uri()).put("key", b"1")
    storage = connected(opened, container, place, host=azurite.endpoint, extra={"sas_token": sas(1, write=False)})
    assert storage.get("key") == b"1"
    with pytest.raises(BadInput, match=r"refused access \(Authorization\w+\): check the SAS token, its rights"):
        storage.put("key", b"2")


@pytest.mark.apt
def test_nobody_listens_on_azures_port(opened: OpenStorage, uri: Uri) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for call in every_call(opened(uri(port), storage_attempts=1)):
        with pytest.raises((Retryable, StateUnknown), match="cannot be reached"):
            call()


@pytest.mark.apt
def test_an_azure_server_that_never_answers_is_given_up(opened: OpenStorage, uri: Uri) -> None:
    with silent() as port:
        storage = opened(uri(port), storage_attempts=2, storage_read_timeout=0.2, storage_connect_timeout=0.2)
        with pytest.raises(Retryable, match="did not answer in time"):
            storage.get("key")
        with pytest.raises(Retryable, match="did not answer in time"):
            stream(storage, "key", FIRST_BLOCK_BYTES)
        with pytest.raises(StateUnknown, match="did not answer in time"):
            storage.put("key", b"1", create_only=True)


@pytest.mark.parametrize(("status", "code"), [(503, "ServerBusy"), (429, "TooManyRequests")])
def test_azures_throttling_is_tried_again_and_then_retryable(opened: OpenStorage, status: int, code: str) -> None:
    with answering(status, b"", {"x-ms-error-code": code}) as stub:
        storage = opened(refused_by(stub), storage_attempts=3)
        with pytest.raises(Retryable, match=rf"asks for fewer requests \({code}\)"):
            list(storage.list())
        assert [request[0] for request in stub.requests] == ["GET"] * 3


@pytest.mark.apt
def test_a_lost_answer_to_an_azure_create_is_recognised_as_ones_own(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy) -> None:
    rule = azure_proxy.lose(r"^PUT .*/key")
    storage = opened(uri(azure_proxy.port))
    storage.put("key", b"1", create_only=True)
    assert rule.happened == 1
    assert storage.get("key") == b"1"
    with pytest.raises(AlreadyExists):
        storage.put("key", b"1", create_only=True)


@pytest.mark.apt
def test_when_all_answers_to_an_azure_create_are_lost_the_blob_tells(
    opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy
) -> None:
    azure_proxy.lose(r"^PUT .*/mine", times=2)
    storage = opened(uri(azure_proxy.port), storage_attempts=2)
    storage.put("mine", b"1", create_only=True)
    opened(uri()).put("theirs", b"2")
    azure_proxy.lose(r"^PUT .*/theirs", times=2)
    with pytest.raises(AlreadyExists, match="'theirs' exists already"):
        storage.put("theirs", b"1", create_only=True)
    assert opened(uri()).get("theirs") == b"2"


@pytest.mark.apt
def test_an_azure_create_that_nobody_can_look_up_is_unknown(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy) -> None:
    azure_proxy.lose(r"^(PUT|HEAD) .*/key", times=1000)
    storage = opened(uri(azure_proxy.port), storage_attempts=2)
    with pytest.raises(StateUnknown, match="Whether 'key' was written to azure-blob://"):
        storage.put("key", b"1", create_only=True)
    assert opened(uri()).get("key") == b"1"


@pytest.mark.apt
@pytest.mark.parametrize("size", [10, FIRST_BLOCK_BYTES + 1])
def test_a_lost_answer_at_the_end_of_an_azure_stream(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy, size: int) -> None:
    rule = azure_proxy.lose(r"^PUT [^?]*/stream |^PUT .*/stream\?.*comp=blocklist", times=2)
    storage = opened(uri(azure_proxy.port), storage_attempts=2)
    stream(storage, "stream", size)
    assert rule.happened == 2
    assert storage.get("stream") == bytes(size)


@pytest.mark.apt
def test_a_block_that_cannot_be_sent_leaves_nothing(
    opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy, blobs: ContainerClient, place: str
) -> None:
    azure_proxy.lose(r"^PUT .*/stream\?.*comp=block&", times=1000)
    storage = opened(uri(azure_proxy.port), storage_attempts=2)
    with pytest.raises(Retryable, match="the connection to http://127"):
        stream(storage, "stream", 3 * FIRST_BLOCK_BYTES)
    assert storage.head("stream") is None
    assert list(storage.list_unfinished()) == []
    assert list(blobs.list_blobs(name_starts_with=place, include=["uncommittedblobs"])) == []


@pytest.mark.apt
def test_an_unfinished_write_shows_its_key_and_when_it_began(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri())
    before = datetime.now(UTC).timestamp()
    with pytest.raises(Retryable, match="was removed while"), storage.open_write("folder/stream") as writer:
        writer.write(bytes(FIRST_BLOCK_BYTES))
        (unfinished,) = storage.list_unfinished()
        assert unfinished.key == "folder/stream"
        assert before - 0.001 <= unfinished.started <= datetime.now(UTC).timestamp()
        # What another writer sends is not removed in its place.
        storage.remove_unfinished(unfinished.model_copy(update={"handle": writer_name(str(uuid.uuid4()))}))
        assert list(storage.list_unfinished()) == [unfinished]
        storage.remove_unfinished(unfinished)
        assert list(storage.list_unfinished()) == []
    assert list(storage.list()) == []


@pytest.mark.apt
def test_blocks_of_others_are_left_alone(opened: OpenStorage, uri: Uri, blobs: ContainerClient, place: str) -> None:
    blobs.get_blob_client(f"{place}/foreign").stage_block("0001", b"1")
    assert list(opened(uri()).list_unfinished()) == []
    assert [blob.name for blob in blobs.list_blobs(name_starts_with=place, include=["uncommittedblobs"])] == [f"{place}/foreign"]


@pytest.mark.apt
def test_the_mark_of_an_interrupted_removal_is_no_object(
    opened: OpenStorage, uri: Uri, blobs: ContainerClient, place: str
) -> None:
    mark = ContentSettings(content_type="application/x-spanvault-removed")
    blobs.get_blob_client(f"{place}/stream").commit_block_list([], content_settings=mark)
    storage = opened(uri())
    assert storage.head("stream") is None
    assert list(storage.list()) == []
    with pytest.raises(NotFound, match="There is no object 'stream'"):
        storage.get("stream")
    with pytest.raises(Retryable, match="is being removed"):
        storage.put("stream", b"1", create_only=True)
    (unfinished,) = storage.list_unfinished()
    storage.remove_unfinished(unfinished)
    storage.put("stream", b"1", create_only=True)
    # The removal of what is an object by now does nothing.
    storage.remove_unfinished(unfinished)
    assert storage.get("stream") == b"1"


@pytest.mark.apt
def test_reading_from_azure_goes_on_after_a_broken_connection(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range((9 << 20) // 4))
    opened(uri()).put("key", content)
    rule = azure_proxy.lose(r"^GET .*/key", answer_bytes=1_000_000, times=4)
    assert b"".join(opened(uri(azure_proxy.port)).read_chunks("key", 100_000)) == content
    assert rule.happened == 4


@pytest.mark.apt
def test_reading_from_azure_ends_when_nothing_more_comes(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy) -> None:
    opened(uri()).put("key", bytes(5 << 20))
    chunks = opened(uri(azure_proxy.port), storage_attempts=2).read_chunks("key")
    next(chunks)
    azure_proxy.lose(r"^GET .*/key", times=1000)
    with pytest.raises(Retryable, match="the connection to http://127"):
        list(chunks)


@pytest.mark.apt
def test_a_blob_replaced_while_it_is_read_is_not_mixed(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri())
    storage.put("key", b"1" * (5 << 20))
    chunks = storage.read_chunks("key", 10_000)
    assert next(chunks) == b"1" * 10_000
    storage.put("key", b"2" * (5 << 20))
    with pytest.raises(Retryable, match="was replaced while it was read"):
        list(chunks)


@pytest.mark.apt
def test_listing_azure_asks_for_a_page_only_when_it_is_needed(opened: OpenStorage, uri: Uri, azure_proxy: TcpProxy) -> None:
    opened(uri()).put("key", b"")
    storage = opened(uri(azure_proxy.port))
    listing = storage.list()
    assert azure_proxy.requests == []
    assert next(listing).key == "key"
    assert len(azure_proxy.requests) == 1


@pytest.mark.apt
def test_an_upload_to_azure_takes_bounded_memory(opened: OpenStorage, uri: Uri) -> None:
    storage = opened(uri(), storage_upload_memory=16 << 20)
    block = bytes(1 << 20)
    stream(storage, "warm-up", FIRST_BLOCK_BYTES + 1)
    tracemalloc.start()
    with storage.open_write("large") as writer:
        for _ in range(96):
            writer.write(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    info = storage.head("large")
    assert info is not None
    assert info.size == 96 << 20
    # 16 MiB on their way, a block being filled, a block being handed over.
    assert peak < 40 << 20


def test_fifty_thousand_blocks_hold_more_than_the_largest_object_elsewhere() -> None:
    sizes = [block_bytes(number) for number in range(1, MAX_BLOCKS + 1)]
    assert sizes[0] == 8 << 20
    assert sizes == sorted(sizes)
    # 1,000 blocks each of 8, 16, ... 400 MiB: 8 * 1,000 * (50 * 51 / 2) MiB.
    assert sum(sizes) == 10_200_000 << 20
    assert max(sizes) <= 4_000 << 20


def test_the_names_of_blocks_tell_their_writer() -> None:
    token = "0b5a2c9e-6f0d-4a58-9f0e-3f1c7c9f5d11"
    writer = writer_name(token)
    assert writer.endswith(token)
    assert writer_of(f"{writer}{1:06d}") == writer_of(f"{writer}{MAX_BLOCKS:06d}") == writer
    assert len(f"{writer}{MAX_BLOCKS:06d}") <= 64
    assert began(f"0193509b2800-{token}") == 0x0193509B2800 / 1000
    for foreign in ("", "0001", writer, "x" * 55, f"{writer}0000001"):
        assert writer_of(foreign) is None


@pytest.mark.apt
def test_no_secret_of_azure_is_in_any_representation(
    opened: OpenStorage, uri: Uri, azurite: Azurite, container: str, place: str, sas: Callable[..., str]
) -> None:
    token = sas(1)
    for storage in (opened(uri()), connected(opened, container, place, host=azurite.endpoint, extra={"sas_token": token})):
        shown = repr(vars(storage)) + storage.display_uri
        assert not re.search(f"{re.escape(azurite.account_key)}|{re.escape(token.rpartition('sig=')[2])}", shown)
