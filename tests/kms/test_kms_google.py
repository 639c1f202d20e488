"""Google Cloud KMS through Google's own client, against FakeGoogleKms."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.cloud.kms_v1 import DecryptResponse, EncryptResponse
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

from spanvault.crypto.kms import KeyService
from spanvault.errors import BadInput, Damaged, NotFound, Refused, Retryable, SpanvaultError
from tests.kit.fake_google_kms import FakeCryptoKey, FakeGoogleKms, encoded
from tests.kit.fake_hosts import FakeHosts
from tests.kms.conftest import CHAIN, DATA_KEY, OTHER_CHAIN, OpenKey

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_credentials_of_this_machine")]
RING = "projects/p-1/locations/europe-west3/keyRings/ring/cryptoKeys"
NAME = f"{RING}/backups"
BACKUP, OTHER = "backup@p-1.iam.gserviceaccount.com", "other@p-1.iam.gserviceaccount.com"
MIDDLE, LAST = "middle@p-1.iam.gserviceaccount.com", "last@p-1.iam.gserviceaccount.com"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGoogleKms]:
    """A fake that this process's clients are led to, with the key `backups`."""
    with FakeGoogleKms() as fake:
        fake.keys[NAME] = FakeCryptoKey()
        monkeypatch.setattr(KeyManagementServiceGrpcTransport, "create_channel", fake.create_channel)
        yield fake


@pytest.fixture
def sign_in(
    no_credentials_of_this_machine: None, google: FakeGoogleKms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The hosts that hand out tokens."""
    hosts = ["oauth2.googleapis.com", "iamcredentials.googleapis.com"]
    with FakeHosts(tmp_path, hosts, google.answer) as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def key_file(google: FakeGoogleKms) -> dict[str, str]:
    """The key file of the account `backup`."""
    return google.add_account("backup")


@pytest.fixture
def uri(key_file: dict[str, str]) -> str:
    """The key `backups`, used by the account `backup`."""
    return f"gs:///{NAME}?AUTH=specified&CREDENTIALS={encoded(key_file)}"


def refusal(key: KeyService, call: str, kind: type[SpanvaultError], wrapped: bytes = b"") -> str:
    """The sentence of the error, which is of exactly this type, is one line and holds no secret."""
    with pytest.raises(SpanvaultError) as caught:
        key.wrap(DATA_KEY, CHAIN) if call == "wrap" else key.unwrap(wrapped, CHAIN)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert "PRIVATE KEY" not in text + repr(caught.value) + repr(caught.value.__cause__)
    assert "\n" not in text
    return text


def test_what_is_wrapped_is_unwrapped(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    wrapped = opened(uri).wrap(DATA_KEY, CHAIN)
    assert DATA_KEY not in wrapped
    assert opened(uri).unwrap(wrapped, CHAIN) == DATA_KEY
    assert google.calls == [("Encrypt", BACKUP), ("Decrypt", BACKUP)]


def test_another_chain_is_refused(opened: OpenKey, uri: str) -> None:
    key = opened(uri)
    with pytest.raises(Damaged, match="of another chain"):
        key.unwrap(key.wrap(DATA_KEY, CHAIN), OTHER_CHAIN)


@pytest.mark.parametrize("change", ["flipped", "cut", "empty"])
def test_tampered_text_is_refused(opened: OpenKey, uri: str, change: str) -> None:
    wrapped = opened(uri).wrap(DATA_KEY, CHAIN)
    changed = {"flipped": wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "cut": wrapped[:-1], "empty": b""}[change]
    assert "cannot unwrap the data key" in refusal(opened(uri), "unwrap", Damaged, changed)


def test_another_key_is_refused(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    google.keys[f"{RING}/other"] = FakeCryptoKey()
    other = opened(uri.replace("/backups?", "/other?"))
    assert "wrapped by another key" in refusal(other, "unwrap", Damaged, opened(uri).wrap(DATA_KEY, CHAIN))


def test_after_a_rotation_both_versions_unwrap(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    key = opened(uri)
    before = key.wrap(DATA_KEY, CHAIN)
    google.keys[NAME].versions.append(bytes(32))
    after = key.wrap(DATA_KEY, CHAIN)
    assert (before[0], after[0]) == (1, 2)
    assert key.unwrap(before, CHAIN) == key.unwrap(after, CHAIN) == DATA_KEY


def test_a_disabled_version(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    key = opened(uri)
    wrapped = key.wrap(DATA_KEY, CHAIN)
    google.keys[NAME].disabled = {1}
    for call in ("wrap", "unwrap"):
        assert "current state is: DISABLED); enable its version" in refusal(key, call, BadInput, wrapped)


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
def test_a_missing_key(opened: OpenKey, uri: str, call: str) -> None:
    assert f"There is no key gs:///{RING}/missing" in refusal(opened(uri.replace("/backups?", "/missing?")), call, NotFound)


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
def test_an_account_without_the_right(opened: OpenKey, google: FakeGoogleKms, uri: str, call: str) -> None:
    google.denied = {BACKUP}
    assert "cryptoKeyEncrypterDecrypter" in refusal(opened(uri), call, BadInput)


def test_an_account_that_was_given_another_key(opened: OpenKey, google: FakeGoogleKms, key_file: dict[str, str]) -> None:
    forged = {**google.add_account("other"), "private_key_id": key_file["private_key_id"], "client_email": BACKUP}
    assert "refused the credentials" in refusal(opened(f"gs:///{NAME}?CREDENTIALS={encoded(forged)}"), "wrap", BadInput)


def damaged_ciphertext(answer: Any) -> Any:
    if isinstance(answer, EncryptResponse):
        answer.ciphertext = bytes(len(answer.ciphertext))
    return answer


def damaged_plaintext(answer: Any) -> Any:
    if isinstance(answer, DecryptResponse):
        answer.plaintext = bytes(32)
    return answer


def unverified_plaintext(answer: Any) -> Any:
    if isinstance(answer, EncryptResponse):
        answer.verified_plaintext_crc32c = False
    return answer


def unverified_chain(answer: Any) -> Any:
    if isinstance(answer, EncryptResponse):
        answer.verified_additional_authenticated_data_crc32c = False
    return answer


@pytest.mark.parametrize("damage", [damaged_ciphertext, damaged_plaintext, unverified_plaintext, unverified_chain])
def test_damage_on_the_way_is_found(opened: OpenKey, google: FakeGoogleKms, uri: str, damage: Any) -> None:
    wrapped = opened(uri).wrap(DATA_KEY, CHAIN)
    google.damage = damage
    call = "unwrap" if damage is damaged_plaintext else "wrap"
    assert "damaged on the way" in refusal(opened(uri), call, Retryable, wrapped)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
def test_failures_that_pass_are_tried_again(opened: OpenKey, google: FakeGoogleKms, uri: str, code: grpc.StatusCode) -> None:
    google.failures = [code, code]
    assert opened(uri, storage_attempts=3).wrap(DATA_KEY, CHAIN)
    assert google.calls == [("Encrypt", BACKUP)]


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_failures_without_an_end_are_tried_as_often_as_the_settings_say(
    opened: OpenKey, google: FakeGoogleKms, uri: str, call: str, code: grpc.StatusCode
) -> None:
    google.failures = [code] * 100
    refusal(opened(uri, storage_attempts=3), call, Retryable)
    assert len(google.failures) == 97


def test_a_refusal_is_not_tried_again(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    google.denied = {BACKUP}
    refusal(opened(uri), "wrap", BadInput)
    assert google.calls == [("Encrypt", BACKUP)]


def test_a_call_that_is_never_answered_ends(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    released = threading.Event()

    def never(answer: Any) -> Any:
        released.wait(60)
        return answer

    google.damage = never
    said = refusal(opened(uri, storage_read_timeout=0.5), "wrap", Retryable)
    released.set()
    assert "did not answer in time, also after several tries" in said
    assert google.calls == [("Encrypt", BACKUP)] * 2


def test_a_server_that_is_down(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    google.__exit__()
    refusal(opened(uri, storage_read_timeout=1), "unwrap", Retryable)


@pytest.mark.usefixtures("sign_in")
def test_a_chain_of_accounts(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    google.may_become = {(BACKUP, MIDDLE), (MIDDLE, LAST)}
    google.denied = {BACKUP, MIDDLE}
    key = opened(f"{uri}&ASSUME_ROLE={MIDDLE},{LAST}")
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert google.calls == [("Encrypt", LAST), ("Decrypt", LAST)]


@pytest.mark.usefixtures("sign_in")
def test_an_account_that_may_not_be_assumed(opened: OpenKey, google: FakeGoogleKms, uri: str) -> None:
    google.may_become = {(BACKUP, LAST)}
    assert "ASSUME_ROLE" in refusal(opened(f"{uri}&ASSUME_ROLE={MIDDLE},{LAST}"), "wrap", BadInput)


def test_a_sign_in_that_is_down(opened: OpenKey, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    key = opened(f"{uri}&ASSUME_ROLE={LAST}", storage_read_timeout=1)
    assert "sign-in cannot be reached" in refusal(key, "wrap", Retryable)


def connection(extra: dict[str, object], conn_type: str = "google_cloud_platform") -> dict[str, str]:
    return {"AIRFLOW_CONN_MY_GOOGLE": json.dumps({"conn_type": conn_type, "extra": extra})}


@pytest.mark.parametrize("form", ["dict", "text", "prefixed", "path"])
def test_a_connection_gives_the_account(
    opened: OpenKey, google: FakeGoogleKms, key_file: dict[str, str], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key_file))
    forms: dict[str, dict[str, object]] = {
        "dict": {"keyfile_dict": key_file},
        "text": {"keyfile_dict": json.dumps(key_file)},
        "prefixed": {"extra__google_cloud_platform__keyfile_dict": json.dumps(key_file)},
        "path": {"key_path": str(path)},
    }
    extra = forms[form]
    key = opened(f"gs:///{NAME}?conn_id=my_google", connection(extra), external_io_disable_implicit_credentials=True)
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert google.calls == [("Encrypt", BACKUP), ("Decrypt", BACKUP)]


@pytest.mark.usefixtures("sign_in")
def test_a_connections_chain_comes_before_the_uris(opened: OpenKey, google: FakeGoogleKms, key_file: dict[str, str]) -> None:
    google.may_become = {(BACKUP, MIDDLE), (MIDDLE, LAST)}
    extra: dict[str, object] = {"keyfile_dict": key_file, "impersonation_chain": MIDDLE}
    opened(f"gs:///{NAME}?conn_id=my_google&ASSUME_ROLE={LAST}", connection(extra)).wrap(DATA_KEY, CHAIN)
    assert google.calls == [("Encrypt", LAST)]


@pytest.mark.parametrize(
    ("extra", "conn_type", "expected"),
    [
        ({"keyfile_dict": "{}"}, "google_cloud_platform", "key file of a service account"),
        ({"keyfile_dict": "[]"}, "google_cloud_platform", "key file of a service account"),
        ({"keyfile_dict": '{"type": "external_account"}'}, "google_cloud_platform", "key file of a service account"),
        ({"key_path": "/nowhere/key.json"}, "google_cloud_platform", "cannot be read: No such file"),
        ({"key_secret_name": "x"}, "google_cloud_platform", "uses key_secret_name"),
        ({"keyfile_dict": "{}", "impersonation_chain": 7}, "google_cloud_platform", "key file of a service account"),
        ({"impersonation_chain": 7}, "google_cloud_platform", "impersonation_chain must be names of service accounts"),
        ({"impersonation_chain": [7]}, "google_cloud_platform", "impersonation_chain must be names of service accounts"),
        ({}, "aws", "needs one of the type 'google_cloud_platform'"),
    ],
)
def test_connections_that_cannot_be_used(opened: OpenKey, extra: dict[str, object], conn_type: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        opened(f"gs:///{NAME}?conn_id=my_google", connection(extra, conn_type))


def test_credentials_that_are_no_service_accounts(opened: OpenKey) -> None:
    for content in ({}, {"type": "authorized_user"}, {"client_email": "a@b", "private_key": "hunter2", "token_uri": "x"}):
        with pytest.raises(BadInput, match="CREDENTIALS must be the key file of a service account") as caught:
            opened(f"gs:///{NAME}?CREDENTIALS={encoded(content)}")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("access", ["AUTH=implicit", "conn_id=my_google"])
def test_the_machines_own_credentials(
    opened: OpenKey, google: FakeGoogleKms, key_file: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key_file))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    key = opened(f"gcp-kms:///{NAME}?{access}", connection({}))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert google.calls[0] == ("Encrypt", BACKUP)


def test_a_machine_without_credentials(opened: OpenKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert "no usable Google credentials" in refusal(opened(f"gs:///{NAME}?AUTH=implicit"), "wrap", BadInput)


@pytest.mark.parametrize("access", ["AUTH=implicit", "conn_id=my_google"])
def test_the_machines_own_credentials_may_be_forbidden(opened: OpenKey, access: str) -> None:
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        opened(f"gs:///{NAME}?{access}", connection({}), external_io_disable_implicit_credentials=True)


def test_nothing_shows_the_secret(opened: OpenKey, uri: str, key_file: dict[str, str]) -> None:
    key = opened(uri)
    shown = repr(key) + str(key) + key.key + key.key_id
    assert "PRIVATE KEY" not in shown
    assert encoded(key_file)[:40] not in shown
