"""Keys in Azure Key Vault: RSA keys that wrap with RSA-OAEP-256.

Key Vault has no associated data for RSA, so the chain's id is not part of what is wrapped; the seal of the encryption
info binds it. RSA does not withstand quantum computers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from azure.core import exceptions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import RetryPolicy
from azure.identity import ClientSecretCredential, DefaultAzureCredential
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.crypto.kms_access import check_explicit, connection_of, one_line, refuse_fields, text_of
from spanvault.errors import BadInput, Damaged, NotFound, Retryable, SpanvaultError
from spanvault.model.kms_uri import KmsUri
from spanvault.storage.azure_errors import SIGN_IN_IS_DOWN, sign_in_is_down

# Vault suffix and sign-in host of each cloud: https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
# and https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud. Germany's was closed in 2021.
_CLOUDS = {
    "AZUREPUBLICCLOUD": ("vault.azure.net", "login.microsoftonline.com"),
    "AZUREUSGOVERNMENTCLOUD": ("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    "AZURECHINACLOUD": ("vault.azure.cn", "login.chinacloudapi.cn"),
    "AZUREGERMANCLOUD": ("vault.microsoftazure.de", "login.microsoftonline.de"),
}
_Credential = ClientSecretCredential | DefaultAzureCredential
_PUBLIC = "AZUREPUBLICCLOUD"
_LONGEST_PAUSE = 20.0
# The POSTs wrap and unwrap; the vault keeps nothing of them.
_RETRIED = frozenset({"GET", "POST"})
_TIMEOUTS = (exceptions.ServiceRequestTimeoutError, exceptions.ServiceResponseTimeoutError)
_PREFIX = "extra__azure__"
_UNSUPPORTED = {"key_path", "key_json"}
# https://learn.microsoft.com/azure/key-vault/general/rest-error-codes
_DISABLED = (BadInput, "{key}: this version of the key is disabled; enable it in the vault.")
_NOT_OURS = (Damaged, "{key} cannot unwrap the data key ({reason}): it is damaged or was wrapped by another key.")
_FAILED = (Retryable, "{key}: the key vault failed, also after several tries ({reason}).")
_REFUSED = (BadInput, "{key} refused the call ({reason}); the key must be an RSA key that may wrap and unwrap.")
_STATUS: dict[int, tuple[type[SpanvaultError], str]] = {
    403: (
        BadInput,
        "{key} refused access ({reason}): the client needs the rights to get, wrap and unwrap with the key, and the vault's "
        "network rules must let this machine in.",
    ),
    404: (NotFound, "There is no key {key}: check its name, its version and AZURE_VAULT_NAME."),
    408: _FAILED,
    429: (Retryable, "{key}: the key vault asks for fewer requests, also after several tries."),
}

# The libraries log each request and each way to sign in as information, and a local operation that failed with its cause.
logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
logging.getLogger("azure.identity").setLevel(logging.ERROR)  # what it warns of is in the error that it raises


class AzureKey:
    """One version of a key in a vault, as a KeyService. Opening it contacts nothing."""

    def __init__(self, uri: KmsUri, credential: Callable[[], _Credential], settings: Settings) -> None:
        self.key = uri.place
        self.key_id = uri.key_id
        name, _, version = uri.key.partition("/")
        vault, suffix = uri.params["AZURE_VAULT_NAME"], _cloud(uri)[0]
        self._credential = credential
        self._url = f"https://{vault}.{suffix}/keys/{name}/{version}"
        self._waits = _waits(settings)

    def wrap(self, data_key: bytes, chain: str) -> bytes:
        """The data key, wrapped; `chain` is not bound.

        The library wraps with the public key, which it may do with a disabled key too; so what was wrapped is unwrapped
        before it is relied on.
        """
        with self._client() as client:
            wrapped = client.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, data_key, retry_on_methods=_RETRIED).encrypted_key
        if self.unwrap(wrapped, chain) != data_key:
            raise Damaged(f"{self.key} gave back another data key than it was given; do not use it.")
        return wrapped

    def unwrap(self, wrapped: bytes, chain: str) -> bytes:
        """The data key that was wrapped by this version of the key."""
        with self._client(unwrapping=True) as client:
            return client.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, wrapped, retry_on_methods=_RETRIED).key

    def __repr__(self) -> str:
        return f"AzureKey({self.key!r})"

    @contextmanager
    def _client(self, *, unwrapping: bool = False) -> Iterator[CryptographyClient]:
        implicit = False
        try:
            with (
                self._credential() as credential,
                CryptographyClient(self._url, credential, retry_policy=_Retries(**self._waits), **self._waits) as client,
            ):
                implicit = isinstance(credential, DefaultAzureCredential)
                yield client
        except (AzureError, ValueError) as error:
            if implicit and isinstance(error, ClientAuthenticationError) and not sign_in_is_down(error):
                # azure-identity raises the same whatever each of its ways to sign in says.
                raise BadInput(f"{self.key}: this machine has no usable Azure credentials.") from None
            raise self._translated(error, unwrapping=unwrapping) from None

    def _translated(self, error: Exception, *, unwrapping: bool) -> SpanvaultError:
        if isinstance(error, ClientAuthenticationError) and isinstance(error.__cause__, AzureError):
            # azure-identity says that the sign-in failed, whatever the reason.
            return self._translated(error.__cause__, unwrapping=unwrapping)
        if isinstance(error, ClientAuthenticationError):
            if sign_in_is_down(error):
                return Retryable(f"{self.key}: {SIGN_IN_IS_DOWN}")
            return BadInput(
                f"{self.key}: Azure refused the sign-in; check tenant id, client id and client secret, and that the secret has "
                "not expired."
            )
        return self._of_vault(error, unwrapping=unwrapping)

    def _of_vault(self, error: Exception, *, unwrapping: bool) -> SpanvaultError:
        if isinstance(error, HttpResponseError) and error.status_code:
            return self._answer(error, error.status_code, unwrapping=unwrapping)
        if isinstance(error, _TIMEOUTS):
            return Retryable(f"{self.key}: the key vault did not answer in time, also after several tries.")
        if isinstance(error, AzureError):
            return Retryable(
                f"{self.key}: the key vault cannot be reached ({one_line(error)}); check AZURE_VAULT_NAME and the network."
            )
        return BadInput(f"{self.key}: the key cannot be used ({one_line(error)}).")

    def _answer(self, error: HttpResponseError, status: int, *, unwrapping: bool) -> SpanvaultError:
        code, inner = _codes(error)
        known = _STATUS.get(status)
        if inner == "KeyDisabled":
            known = _DISABLED
        elif status == 400 and unwrapping:
            known = _NOT_OURS
        elif status >= 500:
            known = _FAILED
        kind, sentence = known or _REFUSED
        return kind(sentence.format(key=self.key, reason=inner or code or status))


class _Retries(RetryPolicy[Any, Any]):
    """The SDK's retries, whose wait for what the server asks for is otherwise without a bound."""

    def get_retry_after(self, response: PipelineResponse[Any, Any]) -> float | None:
        """Seconds that the server asks for, bounded."""
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _LONGEST_PAUSE)


def azure_key(uri: KmsUri, settings: Settings, connections: ConnectionResolver) -> AzureKey:
    """The key that `uri` names. Raises NotFound or BadInput for a connection that cannot be used, Refused where the
    settings forbid the machine's own credentials."""
    params, login = uri.params, {"authority": _cloud(uri)[1], **_waits(settings)}
    if "conn_id" in params:
        return AzureKey(uri, _from_connection(uri, connection_of(uri, connections, "azure"), settings, login), settings)
    if params.get("AUTH") == "implicit":
        return AzureKey(uri, partial(DefaultAzureCredential, **login), settings)
    names = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")
    return AzureKey(uri, partial(ClientSecretCredential, *(params[name] for name in names), **login), settings)


def _from_connection(
    uri: KmsUri, connection: ConnectionInfo, settings: Settings, login: dict[str, Any]
) -> Callable[[], _Credential]:
    """Airflow's fields: https://airflow.apache.org/docs/apache-airflow-providers-microsoft-azure/stable/connections/azure.html"""
    refuse_fields(connection, _UNSUPPORTED, "give it the client's id (login), its secret (password) and tenantId")
    tenant = text_of(connection, "tenantId", _PREFIX)
    if connection.login or connection.password or tenant:
        if not (connection.login and connection.password and tenant):
            name = f"Connection {connection.conn_id!r}"
            raise BadInput(f"{name} needs the client's id (login), its secret (password) and tenantId, or none of them.")
        return partial(ClientSecretCredential, tenant, connection.login, connection.password.get_secret_value(), **login)
    check_explicit(uri, settings)
    chosen = {name: text_of(connection, name, _PREFIX) for name in ("managed_identity_client_id", "workload_identity_tenant_id")}
    return partial(DefaultAzureCredential, **login, **{name: value for name, value in chosen.items() if value})


def _cloud(uri: KmsUri) -> tuple[str, str]:
    return _CLOUDS[uri.params.get("AZURE_ENVIRONMENT", _PUBLIC)]


def _waits(settings: Settings) -> dict[str, Any]:
    """Bounded waits and tries, for the vault and for signing in."""
    tries = settings.storage_attempts - 1
    return {
        **dict.fromkeys(("retry_total", "retry_connect", "retry_read", "retry_status"), tries),
        "retry_backoff_factor": 0.2,
        "retry_backoff_max": _LONGEST_PAUSE,
        "connection_timeout": settings.storage_connect_timeout,
        "read_timeout": settings.storage_read_timeout,
    }


def _codes(error: HttpResponseError) -> tuple[str, str]:
    """The answer's code and its inner code, which says more."""
    described = error.error
    inner = getattr(described, "innererror", None) or {}
    return str(getattr(described, "code", "") or ""), str(inner.get("code", "") if isinstance(inner, dict) else "")
