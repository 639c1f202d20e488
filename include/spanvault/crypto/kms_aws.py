"""Keys in AWS KMS: symmetric keys; the chain's id is encryption context, which AWS also writes to its trail."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from spanvault.config.connections import ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.crypto.kms_access import check_explicit, connection_of, one_line
from spanvault.errors import BadInput, Damaged, NotFound, Refused, Retryable, SpanvaultError
from spanvault.model.kms_uri import KmsUri, check_not_in_the_clear
from spanvault.model.uri_parameters import check_endpoint
from spanvault.storage.s3_access import S3Access, connection_access
from spanvault.storage.s3_client import aws_session
from spanvault.storage.s3_errors import RoleError

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_CONTEXT = "spanvault-chain"
_DENIED = (BadInput, "{key} refused access ({code}): the credentials need kms:Encrypt and kms:Decrypt for the key.")
_UNKNOWN = (BadInput, "{key}: the access key {access_key} is not known to AWS.")
_UNPROVEN = (BadInput, "{key}: the secret key does not belong to the access key {access_key}.")
_EXPIRED = (BadInput, "{key}: the credentials have expired; give fresh ones.")
_DISABLED = (BadInput, "{key}: the key is disabled; enable it.")
_THROTTLED = (Retryable, "{key}: AWS KMS asks for fewer requests ({code}), also after several tries.")
_NOT_OURS = (Damaged, "{key} cannot unwrap the data key: it is damaged, of another chain or wrapped by another key.")
# https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html#API_Decrypt_Errors, API_Encrypt and CommonErrors
_CODES: dict[str, tuple[type[SpanvaultError], str]] = {
    "AccessDeniedException": _DENIED,
    "AccessDenied": _DENIED,
    # Without a code that can be read: from a gateway or another maker's service.
    "403": _DENIED,
    "NotFoundException": (NotFound, "There is no key {key}: check its name, its account and REGION."),
    "InvalidArnException": (BadInput, "{key}: AWS KMS cannot read the key's name."),
    "DisabledException": _DISABLED,
    "KMSInvalidStateException": (
        BadInput,
        "{key}: the key cannot be used as it is ({text}); it may await its deletion.",
    ),
    "InvalidKeyUsageException": (BadInput, "{key}: the key must be a symmetric one that encrypts and decrypts."),
    "InvalidCiphertextException": _NOT_OURS,
    "IncorrectKeyException": (
        Refused,
        "{key} is not the key that wrapped the data key; if an alias was given another key, let it name the earlier one again.",
    ),
    "UnrecognizedClientException": _UNKNOWN,
    "InvalidClientTokenId": _UNKNOWN,
    "InvalidSignatureException": _UNPROVEN,
    "SignatureDoesNotMatch": _UNPROVEN,
    "IncompleteSignature": _UNPROVEN,
    "ExpiredTokenException": _EXPIRED,
    "ExpiredToken": _EXPIRED,
    "RequestExpired": (BadInput, "{key}: AWS refused the request because this machine's clock is wrong; set it."),
    "ThrottlingException": _THROTTLED,
    "Throttling": _THROTTLED,
    "LimitExceededException": _THROTTLED,
    "KeyUnavailableException": (Retryable, "{key}: the key is not available at the moment."),
}
_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.ProfileNotFound,
)
_TIMEOUTS = (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError)
_NETWORK = (exceptions.HTTPClientError, exceptions.ConnectionError)

# It logs the traceback of credentials that cannot be renewed, and raises it too; people get the sentence.
logging.getLogger("botocore.credentials").setLevel(logging.ERROR)


class AwsKey:
    """One key in AWS KMS, as a KeyService. Opening it contacts nothing."""

    def __init__(self, uri: KmsUri, access: S3Access, settings: Settings) -> None:
        self.key = uri.place
        self.key_id = uri.key_id
        self._name = uri.key
        self._access = access
        self._settings = settings

    def wrap(self, data_key: bytes, chain: str) -> bytes:
        """The data key, encrypted."""
        try:
            answer = self._client.encrypt(KeyId=self._name, Plaintext=data_key, EncryptionContext={_CONTEXT: chain})
        except (BotoCoreError, ClientError, ValueError) as error:
            raise self._translated(error) from None
        return answer["CiphertextBlob"]

    def unwrap(self, wrapped: bytes, chain: str) -> bytes:
        """The data key that the key wrapped for `chain`. The key is named, so that no other one's answer is taken."""
        try:
            answer = self._client.decrypt(KeyId=self._name, CiphertextBlob=wrapped, EncryptionContext={_CONTEXT: chain})
        except (BotoCoreError, ClientError, ValueError) as error:
            raise self._translated(error) from None
        return answer["Plaintext"]

    def __repr__(self) -> str:
        return f"AwsKey({self.key!r})"

    @cached_property
    def _client(self) -> KMSClient:
        """Bounded waits and tries. Made at the first call: looking for the machine's own credentials takes calls."""
        settings = self._settings
        config = Config(
            connect_timeout=settings.storage_connect_timeout,
            read_timeout=settings.storage_read_timeout,
            # Random exponential pauses (at most 20 s) on throttling, 5xx, broken connections and timeouts:
            # https://docs.aws.amazon.com/boto3/latest/guide/retries.html
            retries={"mode": "standard", "total_max_attempts": settings.storage_attempts},
        )
        session = aws_session(self._access, settings)
        return session.client("kms", region_name=self._access.region, endpoint_url=self._access.endpoint, config=config)

    def _translated(self, error: Exception) -> SpanvaultError:
        if isinstance(error, RoleError):
            return self._of_role(error)
        if isinstance(error, ClientError):
            return self._answer(error)
        if isinstance(error, _CREDENTIALS):
            return BadInput(f"{self.key}: this machine has no usable AWS credentials ({one_line(error)}).")
        if isinstance(error, _TIMEOUTS):
            return Retryable(f"{self.key}: {self._endpoint} did not answer in time, also after several tries.")
        if isinstance(error, _NETWORK):
            return Retryable(f"{self.key}: {self._endpoint} cannot be reached; check REGION, the endpoint and the network.")
        return BadInput(f"{self.key} cannot be used as described: {one_line(error)}.")

    def _of_role(self, error: RoleError) -> SpanvaultError:
        cause = error.cause
        if isinstance(cause, ClientError) and _code(cause) in {"AccessDenied", "AccessDeniedException"}:
            return BadInput(
                f"{self.key}: AWS does not let these credentials assume {error.role}; check its trust policy and external_id."
            )
        if isinstance(cause, (*_TIMEOUTS, *_NETWORK)):
            return Retryable(
                f"{self.key}: AWS STS cannot be reached for {error.role}, also after several tries; check REGION, the endpoint"
                " and the network."
            )
        return self._translated(cause)

    def _answer(self, error: ClientError) -> SpanvaultError:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = one_line(error.response.get("Error", {}).get("Message", ""))
        if code in _CODES:
            kind, sentence = _CODES[code]
            access_key = self._access.access_key or "of this machine"
            return kind(sentence.format(key=self.key, code=code, text=text, access_key=access_key))
        if status >= 500:
            return Retryable(f"{self.key}: AWS KMS failed, also after several tries ({code or status}).")
        return BadInput(f"{self.key} refused the call ({code or status}: {text}).")

    @property
    def _endpoint(self) -> str:
        return self._access.endpoint or "AWS KMS"


def aws_key(uri: KmsUri, settings: Settings, connections: ConnectionResolver) -> AwsKey:
    """The key that `uri` names. Raises NotFound or BadInput for a connection that cannot be used, Refused where the
    settings forbid the machine's own credentials."""
    params = uri.params
    if "conn_id" in params:
        known = connection_access(connection_of(uri, connections, "aws"), "kms")
        if known.endpoint is not None and "AWS_ENDPOINT" not in params:
            name = f"The endpoint for KMS of the connection {params['conn_id']!r}"
            check_endpoint(known.endpoint, "endpoint_url", "https://host or https://host:port", name)
            check_not_in_the_clear(known.endpoint, name)
    else:
        secret, token = params.get("AWS_SECRET_ACCESS_KEY"), params.get("AWS_SESSION_TOKEN")
        known = S3Access(
            access_key=params.get("AWS_ACCESS_KEY_ID"),
            secret_key=SecretStr(secret) if secret else None,
            session_token=SecretStr(token) if token else None,
        )
    if known.access_key is None:
        check_explicit(uri, settings)
    endpoint = params.get("AWS_ENDPOINT", known.endpoint)
    access = replace(known, endpoint=endpoint, region=params["REGION"], roles=(*known.roles, *uri.roles))
    return AwsKey(uri, access, settings)


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
