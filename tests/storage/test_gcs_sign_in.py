"""With whose rights a bucket of Google Cloud Storage is used, against FakeGoogle behind the real addresses."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from spanvault.errors import BadInput, Refused, Retryable, SpanvaultError
from spanvault.storage.base import Storage
from tests.kit.fake_google_sign_in import HOSTS, FakeGoogle
from tests.kit.fake_hosts import FakeHosts
from tests.storage.conftest import OpenStorage

pytestmark = pytest.mark.slow

BACKUP, MIDDLE, LAST = (f"{name}@p-1.iam.gserviceaccount.com" for name in ("backup", "middle", "last"))
USER = {
    "type": "authorized_user",
    "client_id": "client",
    "client_secret": "a-clients-secret",
    "refresh_token": "a-users-refresh-token",
}
Connected = Callable[..., Storage]


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGoogle]:
    """Google's hosts; nothing of the machine's own is found."""
    for name in os.environ:
        if name.startswith(("GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR")) or name.lower() in {"http_proxy", "no_proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    fake = FakeGoogle()
    with FakeHosts(tmp_path, HOSTS, fake.answer) as hosts:
        for name, value in hosts.environment.items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def key_file(google: FakeGoogle) -> dict[str, str]:
    """The key file of the account `backup`."""
    return google.add_account(BACKUP)


@pytest.fixture
def connected(opened: OpenStorage) -> Connected:
    """Opens a bucket with a connection that has these extra fields."""

    def connected(extra: dict[str, object], more: str = "", conn_type: str = "google_cloud_platform") -> Storage:
        connection = json.dumps({"conn_type": conn_type, "extra": extra})
        return opened(f"gs://bucket/a?conn_id=store{more}", {"AIRFLOW_CONN_STORE": connection}, storage_attempts=1)

    return connected


def credentials(info: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(info).encode()).decode()


def uri(info: object, more: str = "") -> str:
    return f"gs://bucket/a?AUTH=specified&CREDENTIALS={credentials(info)}{more}"


def who_lists(google: FakeGoogle, storage: Storage) -> str | None:
    google.asked.clear()
    assert list(storage.list()) == []
    ((who, path),) = google.asked
    assert path.startswith("/storage/v1/b/bucket/o?")
    return who


def refusal(storage: Storage, kind: type[Exception], *secrets: str) -> str:
    """The sentence of the error, which holds no secret, nor does anything that is shown with it."""
    with pytest.raises(kind) as caught:
        list(storage.list())
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    for secret in (*secrets, "PRIVATE KEY"):
        assert secret not in text + repr(caught.value) + repr(caught.value.__cause__)
    return text


def test_a_key_file_leads_in(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    assert who_lists(google, opened(uri(key_file))) == BACKUP


def test_a_users_credentials_lead_in(opened: OpenStorage, google: FakeGoogle) -> None:
    assert who_lists(google, opened(uri(USER))) == "user"


def test_a_token_that_has_expired_early_is_replaced(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    storage = opened(uri(key_file))
    assert who_lists(google, storage) == BACKUP
    google.denied = set(google.tokens)
    assert who_lists(google, storage) == BACKUP
    assert len(google.tokens) == 2


def test_a_key_that_was_revoked(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    google.revoke(key_file)
    text = refusal(opened(uri(key_file)), BadInput, key_file["private_key"])
    assert text == (
        "gs://bucket/a: Google refused the sign-in with the service account's key (invalid_grant); give credentials that are "
        "valid."
    )


def test_tokens_that_the_bucket_refuses(
    opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "denied", _Everything())
    text = refusal(opened(uri(key_file)), BadInput, *google.tokens)
    assert "does not accept the service account's key (authError); give credentials that are valid" in text


class _Everything(set[str]):
    def __contains__(self, item: object) -> bool:
        return True


def test_a_sign_in_that_is_down_is_tried_again(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    google.down.add("oauth2.googleapis.com")
    assert "Google's sign-in failed, also after" in refusal(opened(uri(key_file), storage_attempts=1), Retryable)


def test_a_sign_in_that_cannot_be_reached(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    nowhere = {**key_file, "token_uri": "http://127.0.0.1:1/token"}
    assert "Google's sign-in cannot be reached" in refusal(opened(uri(nowhere), storage_attempts=2), Retryable)


def test_service_accounts_are_acted_as_by_way_of_each_other(
    opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]
) -> None:
    google.may_become |= {(BACKUP, MIDDLE), (MIDDLE, LAST), ("user", MIDDLE)}
    assert who_lists(google, opened(uri(key_file, f"&ASSUME_ROLE={MIDDLE},{LAST}"))) == LAST
    assert who_lists(google, opened(uri(key_file, f"&ASSUME_ROLE={MIDDLE}"))) == MIDDLE
    assert who_lists(google, opened(uri(USER, f"&ASSUME_ROLE={MIDDLE}"))) == MIDDLE


def test_a_service_account_that_may_not_be_acted_as(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    google.may_become.add((BACKUP, MIDDLE))
    text = refusal(opened(uri(key_file, f"&ASSUME_ROLE={MIDDLE},{LAST}")), BadInput, *google.tokens)
    assert f"the service account {LAST} cannot be used (403 PERMISSION_DENIED)" in text
    assert "roles/iam.serviceAccountTokenCreator" in text
    google.down.add("iamcredentials.googleapis.com")
    storage = opened(uri(key_file, f"&ASSUME_ROLE={MIDDLE}"), storage_attempts=2)
    assert "Google's sign-in failed" in refusal(storage, Retryable)


@pytest.mark.parametrize("prefix", ["", "extra__google_cloud_platform__"])
@pytest.mark.parametrize("field", ["keyfile_dict", "keyfile_dict as text", "key_path", "credential_config_file"])
def test_each_form_of_a_google_connection_leads_in(
    connected: Connected, google: FakeGoogle, key_file: dict[str, str], tmp_path: Path, field: str, prefix: str
) -> None:
    google.may_become.add((BACKUP, MIDDLE))
    file = tmp_path / "key.json"
    file.write_text(json.dumps(key_file))
    value = {"keyfile_dict": key_file, "keyfile_dict as text": json.dumps(key_file)}.get(field, str(file))
    extra: dict[str, object] = {f"{prefix}{field.partition(' ')[0]}": value, "project": "p-1"}
    assert who_lists(google, connected(extra)) == BACKUP
    assert who_lists(google, connected({**extra, f"{prefix}impersonation_chain": MIDDLE})) == MIDDLE
    assert who_lists(google, connected({**extra, f"{prefix}impersonation_chain": [MIDDLE]})) == MIDDLE


def test_a_connections_chain_comes_before_the_uris(connected: Connected, google: FakeGoogle, key_file: dict[str, str]) -> None:
    google.may_become |= {(BACKUP, MIDDLE), (MIDDLE, LAST)}
    storage = connected({"keyfile_dict": key_file, "impersonation_chain": f"{MIDDLE}"}, f"&ASSUME_ROLE={LAST}")
    assert who_lists(google, storage) == LAST


def external(**source: object) -> dict[str, object]:
    """A configuration of workload identity."""
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": source,
    }


def test_workload_identity_leads_in(opened: OpenStorage, connected: Connected, google: FakeGoogle, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("the-machines-own-token")
    given = external(file=str(token))
    assert who_lists(google, opened(uri(given))) == "machine"
    assert who_lists(google, connected({"credential_config_file": given})) == "machine"
    assert who_lists(google, connected({"credential_config_file": json.dumps(given)})) == "machine"
    token.write_text("a-stale-token")
    assert "(invalid_request)" in refusal(opened(uri(given)), BadInput, "a-stale-token")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"token_url": "https://sts.evil.example/token"}, "its token_url is not an address of Google's"),
        ({"token_url": "http://sts.googleapis.com/token"}, "its token_url is not an address of Google's"),
        ({"token_url": "https://googleapis.com.evil.example/token"}, "its token_url is not an address of Google's"),
        ({"token_info_url": "https://x.example"}, "its token_info_url is not an address of Google's"),
        ({"service_account_impersonation_url": "https://x.example"}, "its service_account_impersonation_url is not"),
        ({"credential_source": {"executable": {"command": "/bin/id"}}}, "names a program to run"),
        ({"credential_source": None}, "must be JSON as Google Cloud gives it"),
    ],
)
def test_a_uri_cannot_make_the_machine_tell_others_what_it_holds(
    opened: OpenStorage, google: FakeGoogle, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        opened(uri({**external(file="/etc/hostname"), **change}))
    assert google.asked == []


@pytest.mark.parametrize(
    "info",
    [{}, {"type": "service_account"}, {"type": "authorized_user"}, {"type": "external_account"}, {"type": "gdch"}, {"type": 1}],
    ids=str,
)
def test_credentials_that_are_none(opened: OpenStorage, info: object) -> None:
    with pytest.raises(BadInput, match=r"^gs://bucket/a\?.*CREDENTIALS must be JSON as Google Cloud gives it, of the type"):
        opened(uri(info))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"keyfile_dict": "no json"}, "keyfile_dict must be JSON as Google Cloud gives it"),
        ({"key_path": "/nowhere/key.json"}, "key_path names a file that cannot be read: No such file"),
        ({"key_path": 1}, "key_path in its extra fields must be text"),
        ({"key_path": "/a", "keyfile_dict": "{}"}, "has both keyfile_dict and key_path"),
        ({"key_secret_name": "s"}, "uses key_secret_name, which Spanvault does not"),
        ({"idp_issuer_url": "s"}, "uses idp_issuer_url, which Spanvault does not"),
        ({"keyfile_dict": USER, "impersonation_chain": [1]}, "impersonation_chain must be names of service accounts"),
    ],
)
def test_a_google_connection_that_cannot_be_used(connected: Connected, extra: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^Connection 'store'.*{sentence}"):
        connected(extra)


def test_a_connection_of_another_type_is_refused(connected: Connected) -> None:
    with pytest.raises(BadInput, match="is of the type 'aws'; gs:// needs one of the type 'google_cloud_platform'"):
        connected({}, conn_type="aws")


@pytest.mark.parametrize("anonymous", [True, "true", "True"])
def test_anonymous_access_signs_nothing(connected: Connected, google: FakeGoogle, anonymous: object) -> None:
    storage = connected({"is_anonymous": anonymous, "keyfile_dict": "{}"})
    assert "does not accept the anonymous access" in refusal(storage, BadInput)


def test_a_machine_without_credentials_says_so(opened: OpenStorage, connected: Connected, google: FakeGoogle) -> None:
    for storage in (opened("gs://bucket/a?AUTH=implicit"), connected({})):
        assert "this machine has no usable Google credentials" in refusal(storage, BadInput)


def test_the_machines_own_credentials_are_found(
    opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.json"
    file.write_text(json.dumps(key_file))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    assert who_lists(google, opened("gs://bucket/a?AUTH=implicit")) == BACKUP


def test_the_machines_own_google_credentials_can_be_forbidden(opened: OpenStorage, tmp_path: Path) -> None:
    for parameters in ("AUTH=implicit", "conn_id=store", f"CREDENTIALS={credentials(external(file='/etc/hostname'))}"):
        with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
            opened(
                f"gs://bucket/a?{parameters}",
                {"AIRFLOW_CONN_STORE": '{"conn_type": "google_cloud_platform"}'},
                external_io_disable_implicit_credentials=True,
            )


def test_opening_contacts_nothing(opened: OpenStorage, google: FakeGoogle, key_file: dict[str, str]) -> None:
    google.down.update(HOSTS)
    storage = opened(uri(key_file, f"&ASSUME_ROLE={MIDDLE}"))
    assert google.tokens == {}
    shown = repr(vars(storage)) + repr(storage) + storage.display_uri
    assert key_file["private_key"] not in shown
    assert credentials(key_file) not in shown
    assert "CREDENTIALS=redacted" in storage.display_uri


def test_the_project_that_pays_is_named_in_every_call(
    opened: OpenStorage, connected: Connected, google: FakeGoogle, key_file: dict[str, str]
) -> None:
    for storage, project in (
        (opened(uri(key_file, "&GOOGLE_BILLING_PROJECT=payer-1"), storage_attempts=1), "payer-1"),
        (connected({"keyfile_dict": key_file, "quota_project_id": "payer-2"}), "payer-2"),
        (connected({"keyfile_dict": key_file, "quota_project_id": "payer-2"}, "&GOOGLE_BILLING_PROJECT=payer-3"), "payer-3"),
    ):
        google.asked.clear()
        list(storage.list("x"))
        list(storage.list_folders())
        # The bucket there only says who asks, and answers nonsense.
        with suppress(SpanvaultError):
            storage.get("key")
        with suppress(SpanvaultError):
            storage.put("key", b"1", create_only=True)
        with suppress(SpanvaultError):
            storage.put("key", bytes(2 << 20))
        assert len(google.asked) >= 5
        assert all(f"userProject={project}" in path for _, path in google.asked), google.asked
