"""What boto3 raises, as one of our errors with one sentence.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html#ErrorCodeList. A HEAD has no body, so its code
is the HTTP status as text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from spanvault.errors import AlreadyExists, BadInput, NotFound, Retryable, SpanvaultError
from spanvault.storage.s3_access import S3Access

S3Error = (BotoCoreError, ClientError)


class RoleError(BotoCoreError):
    """Why a role could not be assumed: `role` and the error of the call, `cause`."""

    fmt = "The role {role} cannot be assumed: {cause}"

    def __init__(self, role: str, cause: BotoCoreError | ClientError) -> None:
        super().__init__(role=role, cause=cause)
        self.role = role
        self.cause = cause


_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_THROTTLING = (
    "429",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
)
# What stores answer to the headers of a lock where the bucket knows none.
_NO_LOCK = frozenset({"InvalidRequest", "NotImplemented"})
_MISSING_KEY = (NotFound, "There is no object {key!r} in {where}.")
_DENIED = (
    BadInput,
    "{where} refused access ({code}): its credentials need the rights to list, get, put and delete objects and, where it keeps "
    "versions, to list and delete these.",
)
_REGION = (BadInput, "{where} lies in another region than AWS_REGION says: set AWS_REGION to the bucket's own.")
_DIGEST = (Retryable, "{key!r} arrived damaged at {where} and was not stored.")
_CONFLICT = (Retryable, "Another write to {key!r} in {where} was under way.")
_THROTTLED = (Retryable, "{where} asks for fewer requests ({code}), also after several tries.")
_CODES: dict[str, tuple[type[SpanvaultError], str]] = {
    "NoSuchBucket": (NotFound, "There is no bucket {bucket!r} at {endpoint}; create it first."),
    "NoSuchKey": _MISSING_KEY,
    "404": _MISSING_KEY,
    "NoSuchUpload": (Retryable, "The upload of {key!r} to {where} was removed while it was written."),
    "PreconditionFailed": (AlreadyExists, "The object {key!r} exists already in {where}; nothing was overwritten."),
    "ConditionalRequestConflict": _CONFLICT,
    "OperationAborted": _CONFLICT,
    "SignatureDoesNotMatch": (BadInput, "{where}: the secret key does not belong to the access key {access_key}."),
    "InvalidAccessKeyId": (BadInput, "{where}: the access key {access_key} is not known at {endpoint}."),
    "InvalidToken": (BadInput, "{where}: the session token does not belong to the access key {access_key}."),
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "RequestTimeTooSkewed": (BadInput, "{endpoint} refused the request because this machine's clock is wrong; set it."),
    "InvalidStorageClass": (BadInput, "{where}: the object store does not know the storage class in S3_STORAGE_CLASS."),
    "InvalidObjectState": (BadInput, "{key!r} in {where} is archived; bring it back from its storage class first."),
    "BadDigest": _DIGEST,
    "InvalidDigest": _DIGEST,
    "XAmzContentChecksumMismatch": _DIGEST,
    **dict.fromkeys(_THROTTLING, _THROTTLED),
    "RequestTimeout": (Retryable, "{where} did not get all bytes of a request in time, also after several tries."),
}
_PASSING = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    exceptions.FlexibleChecksumError,
    exceptions.ResponseStreamingError,
)
_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
)


@dataclass(frozen=True)
class S3Place:
    """What sentences say of a bucket: its name, the storage's root in it, where it is, and whether locks are asked for."""

    bucket: str
    where: str
    access: S3Access
    locks: bool = False

    @property
    def endpoint(self) -> str:
        """The address for people."""
        return self.access.endpoint or "AWS"


def translate(error: BotoCoreError | ClientError, place: S3Place, key: str) -> SpanvaultError:
    """The error of ours that says what `error` means for `key`."""
    if isinstance(error, RoleError):
        return _no_role(error, place)
    return _answer(error, place, key) if isinstance(error, ClientError) else _no_answer(error, place)


def code_of(error: BaseException) -> str:
    """The object store's code, or an empty text if there was no answer."""
    return error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""


def _answer(error: ClientError, place: S3Place, key: str) -> SpanvaultError:
    code, status = code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _EXPIRED:
        return _expired(place, renewed=place.access.renews_itself)
    if code in _NO_LOCK and place.locks:
        return BadInput(f"{place.where} refused an object lock ({code}): OBJECT_LOCK_* needs a bucket that was created with it.")
    if code in _CODES:
        kind, sentence = _CODES[code]
        access_key = place.access.access_key or "of this machine"
        return kind(
            sentence.format(
                key=key, where=place.where, bucket=place.bucket, endpoint=place.endpoint, code=code, access_key=access_key
            )
        )
    reason = f"{code or status}: {_one_line(error.response.get('Error', {}).get('Message', ''))}".rstrip(": ")
    if status >= 500:
        return Retryable(f"{place.where} failed, also after several tries ({reason}).")
    return BadInput(f"{place.where} refused the call for {key!r} ({reason}).")


def _expired(place: S3Place, *, renewed: bool) -> SpanvaultError:
    """Given credentials are the same at the next try; a role's, and the machine's own, are not."""
    if renewed:
        return Retryable(f"{place.where}: the temporary credentials have expired; the next try gets fresh ones.")
    return BadInput(f"{place.where}: the credentials have expired; give fresh ones.")


def _no_role(error: RoleError, place: S3Place) -> SpanvaultError:
    cause, access = error.cause, place.access
    if not isinstance(cause, ClientError):
        access = replace(access, endpoint=access.sts_endpoint or access.endpoint)
        return _no_answer(cause, replace(place, access=access, where=f"{place.where}, role {error.role}"))
    code, status = code_of(cause), cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _EXPIRED:
        return _expired(place, renewed=access.access_key is None)
    if code in _THROTTLING or status >= 500:
        return Retryable(f"{place.where}: STS failed for the role {error.role}, also after several tries ({code or status}).")
    return BadInput(
        f"{place.where}: the role {error.role} cannot be assumed ({code or status}): its trust policy must name the credentials, "
        "and its external id, if it asks for one, must be given."
    )


def _no_answer(error: BotoCoreError, place: S3Place) -> SpanvaultError:
    if isinstance(error, _CREDENTIALS):
        return BadInput(f"{place.where}: this machine has no usable AWS credentials ({_one_line(str(error))}).")
    if isinstance(error, (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError)):
        return Retryable(f"{place.where}: {place.endpoint} did not answer in time, also after several tries.")
    if isinstance(error, exceptions.EndpointConnectionError):
        return Retryable(f"{place.where}: {place.endpoint} cannot be reached.")
    if isinstance(error, _PASSING):
        return Retryable(f"{place.where}: the connection to {place.endpoint} failed ({_one_line(str(error))}).")
    return BadInput(f"{place.where} cannot be used as described: {_one_line(str(error))}.")


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
