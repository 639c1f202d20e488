"""Keys in Google Cloud KMS: symmetric keys; the chain's id is additional authenticated data.

Requests and answers carry CRC32C checksums, as https://cloud.google.com/kms/docs/data-integrity-guidelines asks: what a
network or a proxy changed would otherwise be found when the backup is needed. Google's library counts no tries, only
seconds, so each of its calls is made once and tried again here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import google.auth
import google_crc32c
from google.api_core import exceptions
from google.auth import impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport.requests import Request
from google.cloud.kms_v1 import KeyManagementServiceClient
from google.oauth2 import service_account
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.crypto.kms_access import check_explicit, connection_of, one_line, refuse_fields, text_of
from spanvault.errors import BadInput, Damaged, NotFound, Retryable, SpanvaultError
from spanvault.model.kms_uri import KmsUri

_SCOPES = ("https://www.googleapis.com/auth/cloudkms",)
_PREFIX = "extra__google_cloud_platform__"
_UNSUPPORTED = {"credential_config_file", "key_secret_name", "idp_issuer_url", "is_anonymous"}
# The status codes: https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys/decrypt
# and https://cloud.google.com/apis/design/errors
_ANSWERS: tuple[tuple[type[Exception], type[SpanvaultError], str], ...] = (
    (exceptions.NotFound, NotFound, "There is no key {key}: check project, location, key ring and key."),
    (
        exceptions.PermissionDenied,
        BadInput,
        "{key} refused access: the service account needs the role roles/cloudkms.cryptoKeyEncrypterDecrypter on the key, "
        "if there is such a key.",
    ),
    (exceptions.Unauthenticated, BadInput, "{key}: Google refused the credentials; check that the account's key is still valid."),
    (exceptions.FailedPrecondition, BadInput, "{key}: the key cannot be used as it is ({reason}); enable its version."),
    (exceptions.ResourceExhausted, Retryable, "{key}: Google Cloud KMS asks for fewer requests, also after several tries."),
    (exceptions.DeadlineExceeded, Retryable, "{key}: Google Cloud KMS did not answer in time, also after several tries."),
    (exceptions.ServiceUnavailable, Retryable, "{key}: Google Cloud KMS cannot be reached ({reason})."),
    (exceptions.ServerError, Retryable, "{key}: Google Cloud KMS failed, also after several tries ({reason})."),
    (exceptions.GoogleAPIError, BadInput, "{key} refused the call ({reason}); it must be a symmetric key that encrypts."),
    (DefaultCredentialsError, BadInput, "{key}: this machine has no usable Google credentials."),
    (TransportError, Retryable, "{key}: Google's sign-in cannot be reached; check the network."),
    (GoogleAuthError, BadInput, "{key}: Google refused the sign-in; check the account's key and the right to each ASSUME_ROLE."),
)


class GoogleKey:
    """One key in Google Cloud KMS, as a KeyService. Opening it contacts nothing. Any version of the key unwraps."""

    def __init__(self, uri: KmsUri, credentials: Callable[[], Credentials], settings: Settings) -> None:
        self.key = uri.place
        self.key_id = uri.key_id
        self._name = uri.key
        self._credentials = credentials
        self._timeout = settings.storage_read_timeout
        self._tries = Retrying(
            retry=retry_if_exception_type(Retryable),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            stop=stop_after_attempt(settings.storage_attempts),
            reraise=True,
        )

    def wrap(self, data_key: bytes, chain: str) -> bytes:
        """The data key, encrypted by the key's primary version."""
        return self._tried(partial(self._encrypt, data_key, chain.encode()))

    def unwrap(self, wrapped: bytes, chain: str) -> bytes:
        """The data key that some version of the key wrapped for `chain`."""
        return self._tried(partial(self._decrypt, wrapped, chain.encode()), wrapped=True)

    def __repr__(self) -> str:
        return f"GoogleKey({self.key!r})"

    def _encrypt(self, data_key: bytes, aad: bytes, client: KeyManagementServiceClient) -> bytes:
        answer = client.encrypt(
            request={
                "name": self._name,
                "plaintext": data_key,
                "plaintext_crc32c": google_crc32c.value(data_key),
                "additional_authenticated_data": aad,
                "additional_authenticated_data_crc32c": google_crc32c.value(aad),
            },
            timeout=self._timeout,
            retry=None,
        )
        arrived = answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c
        return self._undamaged(bytes(answer.ciphertext), answer.ciphertext_crc32c if arrived else None)

    def _decrypt(self, wrapped: bytes, aad: bytes, client: KeyManagementServiceClient) -> bytes:
        answer = client.decrypt(
            request={
                "name": self._name,
                "ciphertext": wrapped,
                "ciphertext_crc32c": google_crc32c.value(wrapped),
                "additional_authenticated_data": aad,
                "additional_authenticated_data_crc32c": google_crc32c.value(aad),
            },
            timeout=self._timeout,
            retry=None,
        )
        return self._undamaged(bytes(answer.plaintext), answer.plaintext_crc32c)

    def _undamaged(self, data: bytes, checksum: object) -> bytes:
        if google_crc32c.value(data) != checksum:
            raise Retryable(f"{self.key}: the call or its answer was damaged on the way; nothing was done with it.")
        return data

    def _tried(self, call: Callable[[KeyManagementServiceClient], bytes], *, wrapped: bool = False) -> bytes:
        """What `call` returns, with tries that are bounded each by itself, and random pauses that double up to 20 s."""
        return self._tries.copy()(self._once, call, wrapped=wrapped)

    def _once(self, call: Callable[[KeyManagementServiceClient], bytes], *, wrapped: bool) -> bytes:
        try:
            credentials = self._credentials()
            self._sign_in(credentials)
            with KeyManagementServiceClient(credentials=credentials) as client:
                return call(client)
        except (exceptions.GoogleAPIError, GoogleAuthError) as error:
            raise self._translated(error, wrapped=wrapped) from None

    def _sign_in(self, credentials: Credentials) -> None:
        """A service account signs its own tokens; others get theirs here, since gRPC would call a refusal a broken network."""
        if not isinstance(credentials, service_account.Credentials):
            request = Request()
            with closing(request.session):
                credentials.refresh(partial(request, timeout=self._timeout))  # type: ignore[no-untyped-call]

    def _translated(self, error: Exception, *, wrapped: bool) -> SpanvaultError:
        if wrapped and isinstance(error, exceptions.InvalidArgument):
            return Damaged(f"{self.key} cannot unwrap the data key: it is damaged, of another chain or wrapped by another key.")
        kind, sentence = next((kind, sentence) for known, kind, sentence in _ANSWERS if isinstance(error, known))
        return kind(sentence.format(key=self.key, reason=one_line(getattr(error, "message", ""))))


def google_key(uri: KmsUri, settings: Settings, connections: ConnectionResolver) -> GoogleKey:
    """The key that `uri` names. Raises NotFound or BadInput for a connection that cannot be used, Refused where the
    settings forbid the machine's own credentials."""
    params = uri.params
    roles = tuple(role.name for role in uri.roles)
    if "CREDENTIALS" in params:
        text = params["CREDENTIALS"]
        key_file = base64.b64decode(text, altchars=b"-_" if {"-", "_"} & set(text) else None)
        source = _service_account(key_file, f"{uri.place}: CREDENTIALS")
    elif "conn_id" in params:
        connection = connection_of(uri, connections, "google_cloud_platform")
        source = _from_connection(uri, connection, settings)
        roles = (*_impersonated(connection), *roles)
    else:
        source = _implicit
    return GoogleKey(uri, lambda: _assuming(source(), roles), settings)


def _implicit() -> Credentials:
    found: Credentials = google.auth.default(scopes=_SCOPES)[0]
    return found


def _service_account(key_file: bytes | str, where: str) -> Callable[[], Credentials]:
    """Only service accounts: other kinds of credential files name programs and addresses, which would be used."""
    try:
        info = json.loads(key_file)
        found: Credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            info, scopes=_SCOPES
        )
    except (ValueError, TypeError, AttributeError, GoogleAuthError):
        raise BadInput(f"{where} must be the key file of a service account (JSON with client_email and private_key).") from None
    return lambda: found


def _from_connection(uri: KmsUri, connection: ConnectionInfo, settings: Settings) -> Callable[[], Credentials]:
    """Airflow's fields: https://airflow.apache.org/docs/apache-airflow-providers-google/stable/connections/gcp.html"""
    refuse_fields(connection, _UNSUPPORTED, "give it keyfile_dict or key_path")
    name = f"Connection {connection.conn_id!r}"
    keyfile = connection.extra.get("keyfile_dict") or connection.extra.get(f"{_PREFIX}keyfile_dict")
    path = text_of(connection, "key_path", _PREFIX)
    if keyfile:
        return _service_account(keyfile if isinstance(keyfile, str) else json.dumps(keyfile), f"{name}: keyfile_dict")
    if path:
        try:
            return _service_account(Path(path).read_bytes(), f"{name}: the file in key_path")
        except OSError as error:
            raise BadInput(f"{name}: the file in key_path cannot be read: {error.strerror}.") from None
    check_explicit(uri, settings)
    return _implicit


def _impersonated(connection: ConnectionInfo) -> tuple[str, ...]:
    chain = connection.extra.get("impersonation_chain") or connection.extra.get(f"{_PREFIX}impersonation_chain") or ()
    names = chain.split(",") if isinstance(chain, str) else chain
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"Connection {connection.conn_id!r}: impersonation_chain must be names of service accounts.")
    return tuple(name.strip() for name in names if name.strip())


def _assuming(source: Credentials, roles: tuple[str, ...]) -> Credentials:
    """Each account of the chain but the last passes the right on to the next; the last one uses the key:
    https://cloud.google.com/iam/docs/create-short-lived-credentials-delegated"""
    if not roles:
        return source
    assumed: Credentials = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
        source_credentials=source, target_principal=roles[-1], delegates=list(roles[:-1]), target_scopes=_SCOPES, lifetime=900
    )
    return assumed
