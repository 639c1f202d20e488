"""FakeKeyVault: as much of Azure Key Vault and of Azure's sign-in as wrapping a key takes, with real RSA keys.

It stands for every host: clients come to it through HTTPS_PROXY, so the addresses, the TLS names and the challenge that
they check are the real ones. What it does not prove: Azure's own rights and cryptography. Held to
https://learn.microsoft.com/rest/api/keyvault/keys and https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.kit.fake_hosts import Answer, FakeHosts

TENANT, CLIENT, SECRET = "11111111-2222-3333-4444-555555555555", "backup-client", "hunter2+hunter2/~="
LOGIN = "login.microsoftonline.com"
VAULTS = ("vault.azure.net", "vault.usgovcloudapi.net")
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


@dataclass
class FakeKeyVersion:
    """One version of a key."""

    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    enabled: bool = True


def leading_clients(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyVault]:
    """A fake vault that the clients of this process are led to; for fixtures."""
    with FakeKeyVault(folder) as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        yield fake


class FakeKeyVault:
    """A context manager: one vault named `vault` with keys by name and version.

    `rights` are what the client may do; `answers` are given to the next vault requests instead of the real ones: a status
    with its headers; with `sign_in_fails` nobody gets a token for now; `damage` changes what is unwrapped. `requests` are
    (method, host, path) of what the vaults were asked.
    """

    vault = "spanvault-test"

    def __init__(self, folder: Path) -> None:
        self.keys: dict[tuple[str, str], FakeKeyVersion] = {}
        self.rights = {"get", "wrapKey", "unwrapKey"}
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.sign_in_fails = False
        self.damage: Callable[[bytes], bytes] = lambda unwrapped: unwrapped
        self.requests: list[tuple[str, str, str]] = []
        self._token = str(uuid.uuid4())
        self._hosts = FakeHosts(folder, [LOGIN, "login.microsoftonline.us", *(f"*.{suffix}" for suffix in VAULTS)], self.answer)

    def __enter__(self) -> FakeKeyVault:
        self._hosts.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hosts.__exit__(*exception)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead clients here."""
        return self._hosts.environment

    def add_version(self, name: str) -> str:
        """A new version of the key `name`; returns the version."""
        version = uuid.uuid4().hex
        self.keys[name, version] = FakeKeyVersion()
        return version

    def answer(self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """What the host gives to a request."""
        path = urlsplit(target).path
        if host.startswith("login."):
            return self._sign_in(host, path, body)
        self.requests.append((method, host, path))
        if self.answers:
            status, extra = self.answers.pop(0)
            return Answer(status, _error("Failure", "as the test asked"), extra)
        if headers.get("authorization") != f"Bearer {self._token}":
            domain = next(suffix for suffix in VAULTS if host.endswith(suffix))
            login = LOGIN if domain == VAULTS[0] else "login.microsoftonline.us"
            challenge = f'Bearer authorization="https://{login}/{TENANT}", resource="https://{domain}"'
            return Answer(401, _error("Unauthorized", "AKV10000"), {"WWW-Authenticate": challenge})
        return self._vault(host, path.strip("/").split("/"), body)

    def _sign_in(self, host: str, path: str, body: bytes) -> Answer:
        base = f"https://{host}/{TENANT}"
        if path.endswith("openid-configuration"):
            addresses = {"authorization_endpoint": f"{base}/oauth2/v2.0/authorize", "token_endpoint": f"{base}/oauth2/v2.0/token"}
            return Answer(200, {**addresses, "issuer": f"{base}/v2.0"})
        if path.endswith("/discovery/instance"):
            return Answer(200, {"tenant_discovery_endpoint": f"{base}/v2.0/.well-known/openid-configuration", "metadata": []})
        if self.sign_in_fails:
            return Answer(
                503, {"error": "temporarily_unavailable", "error_description": "AADSTS90033: A transient error has occurred."}
            )
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        known = form.get("client_id") == CLIENT and form.get("client_secret") == SECRET and path.startswith(f"/{TENANT}/")
        if not known or form.get("scope", "").split("/.")[0] not in {f"https://{suffix}" for suffix in VAULTS}:
            return Answer(401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
        return Answer(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": self._token})

    def _vault(self, host: str, parts: list[str], body: bytes) -> Answer:
        name, version = (parts[1], parts[2]) if len(parts) > 2 else ("", "")
        key = self.keys.get((name, version)) if host.startswith(f"{self.vault}.") else None
        operation = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"}.get(parts[3].lower(), "") if len(parts) > 3 else "get"
        if operation not in self.rights:
            return Answer(403, _error("Forbidden", f"The user does not have keys {operation} permission", "ForbiddenByRbac"))
        if key is None:
            return Answer(404, _error("KeyNotFound", f"A key with (name/id) {name}/{version} was not found in this key vault."))
        kid = f"https://{host}/keys/{name}/{version}"
        if operation == "get":
            public = key.private.public_key().public_numbers()
            numbers = {"n": _base64(public.n.to_bytes(256)), "e": _base64(public.e.to_bytes(3))}
            jwk = {"kid": kid, "kty": "RSA", "key_ops": ["wrapKey", "unwrapKey"], **numbers}
            return Answer(200, {"key": jwk, "attributes": {"enabled": key.enabled, "created": 1, "updated": 1}})
        return self._operate(key, kid, operation, json.loads(body))

    def _operate(self, key: FakeKeyVersion, kid: str, operation: str, asked: Mapping[str, str]) -> Answer:
        # Only what needs the private key is refused for a disabled key: https://github.com/Azure/azure-sdk-for-python/issues/45342
        if operation == "unwrapKey" and not key.enabled:
            return Answer(403, _error("Forbidden", "Operation unwrapKey is not allowed on a disabled key.", "KeyDisabled"))
        if asked["alg"] != "RSA-OAEP-256":
            return Answer(400, _error("BadParameter", f"The algorithm {asked['alg']} is not supported by this fake."))
        value = base64.urlsafe_b64decode(asked["value"] + "==")
        try:
            done = (
                key.private.public_key().encrypt(value, _OAEP)
                if operation == "wrapKey"
                else self.damage(key.private.decrypt(value, _OAEP))
            )
        except ValueError:
            return Answer(400, _error("BadParameter", "The parameter is incorrect.\r\n"))
        return Answer(200, {"kid": kid, "value": _base64(done)})


def _error(code: str, message: str, inner: str = "") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **({"innererror": {"code": inner}} if inner else {})}}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
