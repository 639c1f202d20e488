"""What the Azure libraries raise, as one of our errors with one sentence.

Codes: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and the common ones beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import parse_qs

from azure.core import exceptions
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError

from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Refused, Retryable, SpanvaultError
from spanvault.model.clock import now
from spanvault.storage.azure_access import AzureAccess

SIGN_IN_IS_DOWN = "Azure's sign-in failed, also after several tries; try again later."
MISSING = frozenset({"BlobNotFound", "ResourceNotFound"})
EXISTING = frozenset({"BlobAlreadyExists", "UnauthorizedBlobOverwrite"})
INVALID_RANGE = "InvalidRange"
_UNPROVEN = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
_DENIED = (
    BadInput,
    "{where} refused access ({code}): check the {credential}, its rights to list, read, write and delete blobs (where versions "
    "are kept, also to delete versions{locks}), and the account's network rules.",
)
_REMOVED = (Retryable, "The upload of {key!r} to {where} was removed while it was written.")
_THROTTLED = (Retryable, "{where} asks for fewer requests ({code}), also after several tries.")
_LOCKED = (Locked, "{key!r} in {where} is kept by the account until its lock ends ({code}); nothing was done to it.")
_PROTECTED = (Refused, "{key!r} in {where} is protected from being changed or deleted ({code}); nothing was done to it.")
_CODES: dict[str, tuple[type[SpanvaultError], str]] = {
    "ContainerNotFound": (NotFound, "There is no container {container!r} at {endpoint}; create it first."),
    "ContainerBeingDeleted": (Retryable, "The container {container!r} at {endpoint} is being deleted."),
    "ContainerDisabled": (BadInput, "The container {container!r} at {endpoint} was disabled by its owner."),
    **dict.fromkeys(MISSING, (NotFound, "There is no object {key!r} in {where}.")),
    **dict.fromkeys(EXISTING, (AlreadyExists, "The object {key!r} exists already in {where}; nothing was overwritten.")),
    "ConditionNotMet": (AlreadyExists, "The object {key!r} in {where} is another one by now; nothing was overwritten."),
    "InvalidBlockList": _REMOVED,
    "InvalidBlobOrBlock": _REMOVED,
    "BlockCountExceedsLimit": (BadInput, "{key!r} is larger than an object in {where} can be."),
    "AccountIsDisabled": (BadInput, "{where}: the storage account {account!r} is disabled."),
    "KeyBasedAuthenticationNotPermitted": (
        BadInput,
        "{where}: the storage account takes no account keys; give AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, "
        "or AUTH=implicit.",
    ),
    "BlobArchived": (BadInput, "{key!r} in {where} is archived; bring it back to an online tier first."),
    "BlobImmutableDueToPolicy": _LOCKED,
    "BlobImmutableDueToLegalHold": _LOCKED,
    "SnapshotsPresent": _PROTECTED,
    "LeaseIdMissing": _PROTECTED,
    "Md5Mismatch": (Retryable, "{key!r} arrived damaged at {where} and was not stored."),
    "ServerBusy": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    "OperationTimedOut": (Retryable, "{where} did not finish a request in time, also after several tries."),
}
_STATUS = {401: _DENIED, 403: _DENIED, 429: _THROTTLED, 503: _THROTTLED}
_FOR_LOCKS = "; for OBJECT_LOCK_*, also to set immutability policies"
_Found = TypeVar("_Found")
_TIMEOUTS = (exceptions.ServiceRequestTimeoutError, exceptions.ServiceResponseTimeoutError)


@dataclass(frozen=True)
class AzurePlace:
    """What sentences say of a container: its name, the storage's root in it, how it is reached, and whether locks are asked
    for."""

    container: str
    where: str
    access: AzureAccess
    locks: bool = False

    @property
    def credential(self) -> str:
        """What the access rests on, for people."""
        if self.access.account_key:
            return "account key"
        if self.access.sas_token:
            return "SAS token"
        return "client's secret" if self.access.client else "machine's own identity"


def translate(error: AzureError, place: AzurePlace, key: str) -> SpanvaultError:
    """The error of ours that says what `error` means for `key`."""
    if isinstance(error, HttpResponseError) and error.response is not None and hasattr(error, "error_code"):
        return _answer(error, place, key)
    return _no_answer(error, place)


def code_of(error: BaseException) -> str:
    """The object store's code, or an empty text if there was no answer."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def if_there(call: Callable[[], _Found]) -> _Found | None:
    """What `call` returns, or None if there is no such blob. A missing container is an error."""
    try:
        return call()
    except ResourceNotFoundError as error:
        if code_of(error) not in MISSING:
            raise
        return None


def broke_off(error: BaseException | None) -> bool:
    """Whether the answer had begun and then broke off; the SDK does not count such a call among its tries."""
    return (
        isinstance(error, HttpResponseError)
        and not isinstance(error, exceptions.ClientAuthenticationError)
        and not code_of(error)
    )


def _answer(error: HttpResponseError, place: AzurePlace, key: str) -> SpanvaultError:
    code, status = code_of(error), error.status_code or 0
    if code in _UNPROVEN:
        return _unproven(place, code)
    known = _CODES.get(code) or (_DENIED if code.startswith(("Authorization", "Insufficient")) else _STATUS.get(status))
    if known:
        kind, sentence = known
        return kind(
            sentence.format(
                key=key,
                where=place.where,
                container=place.container,
                endpoint=place.access.url,
                account=place.access.account,
                credential=place.credential,
                locks=_FOR_LOCKS if place.locks else "",
                code=code or status,
            )
        )
    reason = f"{code or status}: {first_line(error)}".rstrip(": ")
    if status >= 500:
        return Retryable(f"{place.where} failed, also after several tries ({reason}).")
    needed = "; an object lock, which OBJECT_LOCK_* asks for, needs a container with version-level immutability"
    return BadInput(f"{place.where} refused the call for {key!r} ({reason}){needed if place.locks else ''}.")


def _unproven(place: AzurePlace, code: str) -> SpanvaultError:
    """The service does not tell (in the code) an expired SAS token from one that was never valid; its text does."""
    access = place.access
    if access.sas_token is not None:
        ended = _expiry(access.sas_token.get_secret_value())
        if ended and ended <= now():
            return BadInput(f"{place.where}: the SAS token expired at {ended:%Y-%m-%d %H:%M:%S} UTC; give a fresh one.")
        return BadInput(f"{place.where}: the SAS token is not valid for {access.url} ({code}); give a fresh one.")
    if access.account_key is not None:
        return BadInput(f"{place.where}: the account key does not belong to the storage account {access.account!r} ({code}).")
    return BadInput(f"{place.where} does not accept the {place.credential} ({code}): it must belong to the account's tenant.")


def _expiry(sas_token: str) -> datetime | None:
    """https://learn.microsoft.com/rest/api/storageservices/create-service-sas: `se` is the time in UTC."""
    try:
        return datetime.fromisoformat(parse_qs(sas_token)["se"][0]).astimezone(UTC)
    except (KeyError, ValueError):
        return None


def _no_answer(error: AzureError, place: AzurePlace) -> SpanvaultError:
    where, endpoint = place.where, place.access.url
    if isinstance(error, exceptions.ClientAuthenticationError):
        if sign_in_is_down(error):
            return Retryable(f"{where}: {SIGN_IN_IS_DOWN}")
        return BadInput(f"{where}: signing in with the {place.credential} failed ({first_line(error)}).")
    # A request whose sending stalls is a connection that was aborted, for the SDK.
    if isinstance(error, _TIMEOUTS) or "timed out" in first_line(error):
        return Retryable(f"{where}: {endpoint} did not answer in time, also after several tries.")
    if isinstance(error, exceptions.ServiceRequestError):
        return Retryable(f"{where}: {endpoint} cannot be reached.")
    # A body that broke off comes as an HttpResponseError without the service's code.
    if isinstance(error, (exceptions.ServiceResponseError, HttpResponseError)):
        return Retryable(f"{where}: the connection to {endpoint} failed ({first_line(error)}).")
    return BadInput(f"{where} cannot be used as described: {first_line(error)}.")


def sign_in_is_down(error: exceptions.ClientAuthenticationError) -> bool:
    """Whether the sign-in answered that it cannot at the moment. azure-identity says that the sign-in failed, with what msal
    raised for an answer of 5xx (raise_for_status in msal's client) in its text alone where it tried several ways."""
    return "HTTP Error: 5" in str(error)


def first_line(error: AzureError) -> str:
    """What the library says, without the request's details that it adds in further lines."""
    return (str(error.message or error).strip().splitlines() or [""])[0].rstrip(". ")
