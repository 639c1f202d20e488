"""Azure Key Vault through Azure's own client, against FakeKeyVault."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from spanvault.crypto.kms import KeyService
from spanvault.errors import BadInput, Damaged, NotFound, Refused, Retryable, SpanvaultError
from tests.kit.fake_key_vault import CLIENT, SECRET, TENANT, FakeKeyVault, leading_clients
from tests.kit.http_stub import answering, silent
from tests.kms.conftest import CHAIN, DATA_KEY, OTHER_CHAIN, OpenKey

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_credentials_of_this_machine")]
VAULT = FakeKeyVault.vault


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyVault]:
    """A fake vault that clients of this process are led to."""
    yield from leading_clients(tmp_path, monkeypatch)


@pytest.fixture
def version(vault: FakeKeyVault) -> str:
    """The only version of the key `backups`."""
    return vault.add_version("backups")


def uri_of(version: str, secret: str = SECRET, vault: str = VAULT, key: str = "backups", more: str = "") -> str:
    client = f"AZURE_TENANT_ID={TENANT}&AZURE_CLIENT_ID={CLIENT}&AZURE_CLIENT_SECRET={quote(secret, safe='')}"
    return f"azure-kms:///{key}/{version}?AZURE_VAULT_NAME={vault}&{client}{more}"


def refusal(key: KeyService, call: str, kind: type[SpanvaultError], wrapped: bytes = b"") -> str:
    """The sentence of the error, which is of exactly this type, is one line and holds no secret."""
    with pytest.raises(SpanvaultError) as caught:
        key.wrap(DATA_KEY, CHAIN) if call == "wrap" else key.unwrap(wrapped, CHAIN)
    assert type(caught.value) is kind, caught.value
    text = str(caught.value)
    assert "hunter2" not in text + repr(caught.value) + repr(caught.value.__cause__)
    assert "\n" not in text
    return text


def test_what_is_wrapped_is_unwrapped(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    key = opened(uri_of(version))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    assert len(wrapped) == 256
    assert DATA_KEY not in wrapped
    assert opened(uri_of(version)).unwrap(wrapped, CHAIN) == DATA_KEY
    assert {(host, path.rpartition("/")[2]) for _, host, path in vault.requests} == {
        (f"{VAULT}.vault.azure.net", version),
        (f"{VAULT}.vault.azure.net", "unwrapkey"),
    }


def test_an_rsa_key_binds_no_chain(opened: OpenKey, version: str) -> None:
    key = opened(uri_of(version))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), OTHER_CHAIN) == DATA_KEY


def test_without_the_right_to_get_the_vault_wraps(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.rights = {"wrapKey", "unwrapKey"}
    key = opened(uri_of(version))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert f"/keys/backups/{version}/wrapkey" in [path for _, _, path in vault.requests]


def test_after_a_rotation_the_old_version_unwraps(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    wrapped = opened(uri_of(version)).wrap(DATA_KEY, CHAIN)
    newer = opened(uri_of(vault.add_version("backups")))
    assert opened(uri_of(version)).unwrap(wrapped, CHAIN) == DATA_KEY
    assert "damaged or was wrapped by another key" in refusal(newer, "unwrap", Damaged, wrapped)
    assert newer.key_id != opened(uri_of(version)).key_id


@pytest.mark.parametrize("change", ["flipped", "cut", "empty"])
def test_tampered_text_is_refused(opened: OpenKey, version: str, change: str) -> None:
    key = opened(uri_of(version))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    changed = {"flipped": bytes([wrapped[0] ^ 1]) + wrapped[1:], "cut": wrapped[:-1], "empty": b""}[change]
    assert "cannot unwrap the data key" in refusal(key, "unwrap", Damaged, changed)


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
def test_a_wrong_secret(opened: OpenKey, version: str, call: str) -> None:
    key = opened(uri_of(version, secret="hunter2-wrong"))
    assert "refused the sign-in" in refusal(key, call, BadInput)


@pytest.mark.parametrize("call", ["wrap", "unwrap"])
def test_a_missing_key_and_a_missing_version(opened: OpenKey, version: str, call: str) -> None:
    for uri in (uri_of("0" * 32), uri_of(version, key="elsewhere"), uri_of(version, vault="another-vault")):
        assert "There is no key azure-kms:///" in refusal(opened(uri), call, NotFound, bytes(256))


def test_a_disabled_key_is_found_before_a_backup_relies_on_it(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    key = opened(uri_of(version))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    vault.keys["backups", version].enabled = False
    assert "is disabled; enable it" in refusal(key, "unwrap", BadInput, wrapped)
    assert "is disabled; enable it" in refusal(key, "wrap", BadInput)


def test_no_right_to_unwrap_is_found_before_a_backup_relies_on_it(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.rights = {"get", "wrapKey"}
    assert "ForbiddenByRbac" in refusal(opened(uri_of(version)), "wrap", BadInput)


def test_a_key_that_gives_back_another_data_key_is_found_before_a_backup_relies_on_it(
    opened: OpenKey, vault: FakeKeyVault, version: str
) -> None:
    vault.damage = lambda unwrapped: unwrapped[::-1]
    assert "gave back another data key than it was given" in refusal(opened(uri_of(version)), "wrap", Damaged)


def test_no_rights_at_all(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.rights = set()
    assert "needs the rights to get, wrap and unwrap" in refusal(opened(uri_of(version)), "wrap", BadInput)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_pass_are_tried_again(opened: OpenKey, vault: FakeKeyVault, version: str, status: int) -> None:
    key = opened(uri_of(version))
    wrapped = key.wrap(DATA_KEY, CHAIN)
    vault.answers = [(status, {"Retry-After": "0"})] * 2
    assert opened(uri_of(version), storage_attempts=4).unwrap(wrapped, CHAIN) == DATA_KEY
    assert vault.answers == []


def test_throttling_without_an_end(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.answers = [(429, {})] * 100
    assert "asks for fewer requests" in refusal(opened(uri_of(version)), "unwrap", Retryable, bytes(256))
    # The key is asked for, then the unwrapping; two tries of each.
    assert len(vault.answers) == 96


def test_a_vault_that_goes_on_failing_may_be_tried_later(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.answers = [(503, {})] * 100
    assert "the key vault failed, also after several tries" in refusal(opened(uri_of(version)), "unwrap", Retryable, bytes(256))


def test_a_sign_in_that_is_down_may_be_tried_later(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    vault.sign_in_fails = True
    assert "Azure's sign-in failed, also after several tries" in refusal(opened(uri_of(version)), "wrap", Retryable)


def test_a_tenant_that_cannot_be_one_is_refused_with_the_reason(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    said = refusal(opened(uri_of(version).replace(TENANT, "our%20tenant")), "wrap", BadInput)
    assert "the key cannot be used (Invalid tenant ID provided" in said
    assert vault.requests == []


def test_a_server_that_is_down(opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(opened(uri_of(version)), "unwrap", Retryable)


def test_a_server_that_says_nothing(opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        key = opened(uri_of(version), storage_attempts=1, storage_connect_timeout=0.3, storage_read_timeout=0.3)
        assert "did not answer in time" in refusal(key, "unwrap", Retryable)


def test_another_certificate_is_not_trusted(opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(opened(uri_of(version)), "unwrap", Retryable)


def test_another_cloud_has_other_addresses(opened: OpenKey, vault: FakeKeyVault, version: str) -> None:
    key = opened(uri_of(version, more="&AZURE_ENVIRONMENT=AzureUSGovernmentCloud"))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert {host for _, host, _ in vault.requests} == {f"{VAULT}.vault.usgovcloudapi.net"}


def connection(fields: Mapping[str, object]) -> dict[str, str]:
    return {"AIRFLOW_CONN_MY_AZURE": json.dumps({"conn_type": "azure", **fields})}


@pytest.mark.parametrize("prefix", ["", "extra__azure__"])
def test_a_connection_gives_the_client(opened: OpenKey, version: str, prefix: str) -> None:
    fields = {"login": CLIENT, "password": SECRET, "extra": {f"{prefix}tenantId": TENANT}}
    uri = f"azure-kms:///backups/{version}?AZURE_VAULT_NAME={VAULT}&conn_id=my_azure"
    key = opened(uri, connection(fields), external_io_disable_implicit_credentials=True)
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY
    assert (key.key, key.key_id) == (opened(uri_of(version)).key, opened(uri_of(version)).key_id)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"login": CLIENT, "password": SECRET}, "needs the client's id"),
        ({"extra": {"tenantId": TENANT}}, "needs the client's id"),
        ({"extra": {"key_path": "/x.json"}}, "uses key_path"),
        ({"extra": {"tenantId": 7}}, "tenantId in its extra fields must be text"),
        ({"extra": {"managed_identity_client_id": 7}}, "managed_identity_client_id in its extra fields must be text"),
        ({"conn_type": "wasb"}, "needs one of the type 'azure'"),
    ],
)
def test_connections_that_cannot_be_used(opened: OpenKey, fields: dict[str, object], expected: str) -> None:
    uri = f"azure-kms:///backups/{'0' * 32}?AZURE_VAULT_NAME={VAULT}&conn_id=my_azure"
    with pytest.raises(BadInput, match=expected) as caught:
        opened(uri, connection(fields))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("access", ["AUTH=implicit", "conn_id=my_azure"])
def test_the_machines_own_credentials(opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch, access: str) -> None:
    # https://learn.microsoft.com/python/api/azure-identity/azure.identity.environmentcredential
    for name, value in {"TENANT_ID": TENANT, "CLIENT_ID": CLIENT, "CLIENT_SECRET": SECRET}.items():
        monkeypatch.setenv(f"AZURE_{name}", value)
    key = opened(f"azure-kms:///backups/{version}?AZURE_VAULT_NAME={VAULT}&{access}", connection({}))
    assert key.unwrap(key.wrap(DATA_KEY, CHAIN), CHAIN) == DATA_KEY


def test_a_connection_chooses_which_of_the_machines_identities_uses_the_key(
    opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
    fields = {"extra": {"managed_identity_client_id": "the-second-one"}}
    token = json.dumps({"access_token": "x", "expires_on": "4102444800", "resource": "x", "token_type": "Bearer"})
    with answering(200, token.encode(), {"Content-Type": "application/json"}) as stub:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{stub.port}/token")
        monkeypatch.setenv("IDENTITY_HEADER", "hunter2")
        refusal(
            opened(f"azure-kms:///backups/{version}?AZURE_VAULT_NAME={VAULT}&conn_id=my_azure", connection(fields)),
            "wrap",
            BadInput,
        )
        assert "client_id=the-second-one" in stub.requests[0][1]


def test_a_machine_without_credentials_is_told_so(opened: OpenKey, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wherever the test runs, its surroundings are not asked:
    # https://learn.microsoft.com/azure/developer/python/sdk/authentication/credential-chains
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    key = opened(f"azure-kms:///backups/{version}?AZURE_VAULT_NAME={VAULT}&AUTH=implicit")
    for call in ("wrap", "unwrap"):
        assert "this machine has no usable Azure credentials" in refusal(key, call, BadInput)


def test_a_sign_in_that_is_down_is_no_lack_of_credentials(
    opened: OpenKey, vault: FakeKeyVault, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TENANT_ID", TENANT), ("CLIENT_ID", CLIENT), ("CLIENT_SECRET", SECRET)):
        monkeypatch.setenv(f"AZURE_{name}", value)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    uri = f"azure-kms:///backups/{version}?AZURE_VAULT_NAME={VAULT}&AUTH=implicit"
    assert opened(uri).wrap(DATA_KEY, CHAIN)
    vault.sign_in_fails = True
    assert "Azure's sign-in failed, also after several tries" in refusal(opened(uri), "wrap", Retryable)


@pytest.mark.parametrize("access", ["AUTH=implicit", "conn_id=my_azure"])
def test_the_machines_own_credentials_may_be_forbidden(opened: OpenKey, access: str) -> None:
    uri = f"azure-kms:///backups/{'0' * 32}?AZURE_VAULT_NAME={VAULT}&{access}"
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        opened(uri, connection({}), external_io_disable_implicit_credentials=True)


def test_nothing_shows_the_secret(opened: OpenKey, version: str) -> None:
    key = opened(uri_of(version))
    assert "hunter2" not in repr(key) + str(key) + key.key + key.key_id
