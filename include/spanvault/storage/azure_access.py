"""How to reach a container: from the URI's parameters, from a connection, or with the machine's own credentials."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential, TokenCredential
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import ClientSecretCredential, DefaultAzureCredential
from azure.storage.blob import ContainerClient, ExponentialRetry
from pydantic import SecretStr

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.uri import StorageUri
from spanvault.storage.limit import CallLimit

if TYPE_CHECKING:
    from azure.core.pipeline import PipelineRequest, PipelineResponse

READ_BYTES = 4 << 20
# The service takes up to 5,000 MiB in one call; what the contract puts whole (64 MiB) never needs blocks.
_SINGLE_PUT_BYTES = 1 << 30
# What is taken from a connection at a time; as the SDK's own transport does, which otherwise takes 4 KiB.
_RECEIVED_BYTES = 256 << 10
_LONGEST_PAUSE = 20.0
# Blob endpoint and sign-in host of each cloud: https://learn.microsoft.com/azure/storage/common/storage-powershell-independent-clouds
# and https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud. Germany's was closed in 2021.
_CLOUDS = {
    "AZUREPUBLICCLOUD": ("blob.core.windows.net", "login.microsoftonline.com"),
    "AZUREUSGOVERNMENTCLOUD": ("blob.core.usgovcloudapi.net", "login.microsoftonline.us"),
    "AZURECHINACLOUD": ("blob.core.chinacloudapi.cn", "login.chinacloudapi.cn"),
    "AZUREGERMANCLOUD": ("blob.core.cloudapi.de", "login.microsoftonline.de"),
}
_PUBLIC = "AZUREPUBLICCLOUD"

# Both libraries log every request and every way to sign in that they try, as information.
logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
logging.getLogger("azure.identity").setLevel(logging.ERROR)  # what it warns of is in the error that it raises


@dataclass(frozen=True)
class AzureClient:
    """An application that signs in at `authority` with its own secret."""

    tenant_id: str
    client_id: str
    client_secret: SecretStr


@dataclass(frozen=True)
class AzureAccess:
    """The storage account's address and one way in: its key, a SAS token, an application, else the machine's own.

    `url` is the account's blob endpoint and holds no secret. `managed_identity` and `workload_tenant` choose among the
    machine's own identities.
    """

    url: str
    account: str
    authority: str = _CLOUDS[_PUBLIC][1]
    account_key: SecretStr | None = None
    sas_token: SecretStr | None = None
    client: AzureClient | None = None
    managed_identity: str | None = None
    workload_tenant: str | None = None

    @property
    def is_implicit(self) -> bool:
        """Whether the credentials are those of the machine itself."""
        return self.account_key is None and self.sas_token is None and self.client is None


def azure_access(uri: StorageUri, settings: Settings, connections: ConnectionResolver) -> AzureAccess:
    """What `uri` says, or the connection that its conn_id names.

    Raises NotFound or BadInput for a connection that is not there or not usable, Refused where the settings forbid the
    machine's own credentials.
    """
    params = uri.params
    known = _from_connection(connections.resolve(params["conn_id"]), uri) if "conn_id" in params else _from_parameters(uri)
    if known.is_implicit and settings.external_io_disable_implicit_credentials:
        raise Refused(f"{uri} leads to implicit credentials, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")
    return known


def _from_parameters(uri: StorageUri) -> AzureAccess:
    params = uri.params
    account, key = params["AZURE_ACCOUNT_NAME"], params.get("AZURE_ACCOUNT_KEY")
    client = None
    if "AZURE_CLIENT_ID" in params:
        secret = SecretStr(params["AZURE_CLIENT_SECRET"])
        client = AzureClient(params["AZURE_TENANT_ID"], params["AZURE_CLIENT_ID"], secret)
    suffix, authority = _cloud(uri)
    return AzureAccess(
        url=params.get("AZURE_ENDPOINT", f"https://{account}.{suffix}"),
        account=account,
        authority=authority,
        account_key=SecretStr(key) if key else None,
        client=client,
    )


def _cloud(uri: StorageUri) -> tuple[str, str]:
    return _CLOUDS[uri.params.get("AZURE_ENVIRONMENT", _PUBLIC)]


def _from_connection(connection: ConnectionInfo, uri: StorageUri) -> AzureAccess:
    """Airflow's fields, in its order of precedence:
    https://airflow.apache.org/docs/apache-airflow-providers-microsoft-azure/stable/connections/wasb.html"""
    name = f"Connection {connection.conn_id!r}"
    if connection.conn_type not in {"wasb", ""}:
        raise BadInput(f"{name} is of the type {connection.conn_type!r}; azure-blob:// needs one of the type 'wasb'.")
    text = _text(connection, "connection_string", name)
    if text:
        return _from_connection_string(text, _cloud(uri)[1], name)
    sas, tenant = _text(connection, "sas_token", name), _text(connection, "tenant_id", name)
    url = _account_url(connection, uri, name, sas)
    place = AzureAccess(url=url, account=_account_of(url, connection.login), authority=_cloud(uri)[1])
    if tenant:
        if not connection.login or connection.password is None:
            raise BadInput(f"{name} has a tenant_id and so needs the client's id (login) and its secret (password).")
        return replace(place, client=AzureClient(tenant, connection.login, connection.password))
    key = _text(connection, "shared_access_key", name)
    if sas and not key:
        return replace(place, sas_token=SecretStr(sas.rpartition("?")[2]))
    key = key or (connection.password.get_secret_value() if connection.password else _text(connection, "account_key", name))
    if key and not place.account:
        raise BadInput(f"{name} has a key and so needs the storage account's name (login).")
    return replace(
        place,
        account_key=SecretStr(key) if key else None,
        managed_identity=_text(connection, "managed_identity_client_id", name),
        workload_tenant=_text(connection, "workload_identity_tenant_id", name),
    )


def _from_connection_string(text: str, authority: str, name: str) -> AzureAccess:
    """https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string"""
    fields = {key.strip().lower(): value for key, _, value in (part.partition("=") for part in text.split(";")) if value}
    account, key, sas = fields.get("accountname", ""), fields.get("accountkey"), fields.get("sharedaccesssignature")
    protocol, suffix = fields.get("defaultendpointsprotocol", "https"), fields.get("endpointsuffix", "core.windows.net")
    url = fields.get("blobendpoint") or (f"{protocol}://{account}.blob.{suffix}" if account else "")
    if not url or not (sas or (key and account)):
        raise BadInput(
            f"{name}: its connection_string must hold AccountName or BlobEndpoint, and AccountKey or SharedAccessSignature."
        )
    return AzureAccess(
        url=_checked_url(url, name),
        account=account or _account_of(url, None),
        authority=authority,
        account_key=SecretStr(key) if key else None,
        sas_token=SecretStr(sas.lstrip("?")) if sas and not key else None,
    )


def _account_url(connection: ConnectionInfo, uri: StorageUri, name: str, sas: str | None) -> str:
    """The host may be a whole URL, a host name or, as in older connections, nothing but the account's name."""
    if "AZURE_ENDPOINT" in uri.params:
        return uri.params["AZURE_ENDPOINT"]
    if sas and sas.startswith("https://"):
        return sas.partition("?")[0]
    host = connection.host or ""
    if "://" in host:
        return _checked_url(host, name)
    if "." in host:
        return _checked_url(f"https://{host}" + (f":{connection.port}" if connection.port else ""), name)
    account = host if _text(connection, "tenant_id", name) else connection.login or host
    if not account:
        raise BadInput(f"{name} needs the storage account's URL (host) or its name (login).")
    return f"https://{account}.{_cloud(uri)[0]}"


def _checked_url(url: str, name: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(f"{name}: the storage account's URL must have the form https://account.blob.core.windows.net.")
    return url


def _account_of(url: str, login: str | None) -> str:
    """The account's name is the first part of its host, or of the path where the host is shared."""
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path.strip("/")
    return path or (host.partition(".")[0] if ".blob." in host else login or "")


def _text(connection: ConnectionInfo, field: str, name: str) -> str | None:
    """Older versions of Airflow put a prefix before the fields of their own forms."""
    value = connection.extra.get(field) or connection.extra.get(f"extra__wasb__{field}")
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name}: {field} in its extra fields must be text.")
    return value or None


class AzureRetry(ExponentialRetry):
    """The SDK's retries (408, 5xx, broken connections, timeouts) with random pauses that double up to 20 s, and 429 too.

    `attempts` counts all tries, the first included.
    """

    def __init__(self, attempts: int) -> None:
        tries = attempts - 1
        super().__init__(retry_total=tries, retry_connect=tries, retry_read=tries, retry_status=tries)

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        """Seconds until the next try."""
        return random.uniform(0, min(_LONGEST_PAUSE, 0.5 * 2 ** settings["count"]))  # noqa: S311 - no secret

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Send with retries."""
        send: Any = super().send
        sleep: Any = self.sleep
        answer: PipelineResponse[Any, Any] = send(request)
        for count in range(1, self.total_retries + 1):
            if answer.http_response.status_code != 429:
                break
            sleep({"count": count}, request.context.transport)
            answer = send(request)
        return answer


class _InTurn(RequestsTransport):  # type: ignore[misc]
    """Sends each request when its turn has come; pauses between tries take none. A download counts until its first bytes
    come; signing in, which has a transport of its own, does not count."""

    def __init__(self, calls: CallLimit, settings: Settings) -> None:
        super().__init__(
            connection_timeout=settings.storage_connect_timeout,
            read_timeout=settings.storage_read_timeout,
            connection_data_block_size=_RECEIVED_BYTES,
        )
        self._calls = calls

    def send(self, request: Any, **options: Any) -> Any:
        """Send once."""
        self._calls.enter()
        try:
            return super().send(request, **options)
        finally:
            self._calls.leave()


def azure_client(
    access: AzureAccess, container: str, settings: Settings, where: str, on_answer: Callable[[PipelineResponse[Any, Any]], None]
) -> ContainerClient:
    """A client with bounded waits, tries and calls. It may be used from several threads. `on_answer` is called with all that
    it gets. Raises BadInput."""
    calls = CallLimit.of(settings.storage_calls)
    try:
        return ContainerClient(
            access.url,
            container,
            credential=_credential(access, settings),
            retry_policy=AzureRetry(settings.storage_attempts),
            connection_timeout=settings.storage_connect_timeout,
            read_timeout=settings.storage_read_timeout,
            max_single_get_size=READ_BYTES,
            max_chunk_get_size=READ_BYTES,
            max_single_put_size=_SINGLE_PUT_BYTES,
            raw_response_hook=on_answer,
            **({"transport": _InTurn(calls, settings)} if calls else {}),
        )
    except (AzureError, ValueError) as error:
        raise BadInput(f"{where} cannot be reached as described: {str(error).rstrip('.')}.") from None


def _credential(access: AzureAccess, settings: Settings) -> AzureNamedKeyCredential | AzureSasCredential | TokenCredential:
    if access.account_key:
        return AzureNamedKeyCredential(access.account, access.account_key.get_secret_value())
    if access.sas_token:
        return AzureSasCredential(access.sas_token.get_secret_value())
    waits = {"connection_timeout": settings.storage_connect_timeout, "read_timeout": settings.storage_read_timeout}
    if access.client:
        client = access.client
        return ClientSecretCredential(
            client.tenant_id,
            client.client_id,
            client.client_secret.get_secret_value(),
            authority=access.authority,
            retry_total=settings.storage_attempts - 1,
            **waits,
        )
    chosen = {
        "managed_identity_client_id": access.managed_identity,
        "workload_identity_tenant_id": access.workload_tenant,
    }
    return DefaultAzureCredential(authority=access.authority, **{name: value for name, value in chosen.items() if value})
