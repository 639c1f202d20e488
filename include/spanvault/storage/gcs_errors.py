"""What Google's libraries raise, as one of our errors with one sentence.

Statuses and reasons: https://cloud.google.com/storage/docs/json_api/v1/status-codes
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, InvalidOperation, RefreshError, TransportError

from spanvault.errors import AlreadyExists, BadInput, Locked, NotFound, Retryable, SpanvaultError
from spanvault.storage.gcs_access import GcsAccess

# requests' errors are all that HTTP itself gives: a connection refused, broken, stalled.
GcsError = (GoogleAPICallError, GoogleAuthError, requests.RequestException)

_RETENTION = "retentionPolicyNotMet"
_HOLD = "objectUnderActiveHold"
_RATES = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded", "concurrentLimitExceeded"})
_SLOW = (Retryable, "{where} did not finish a request in time, also after several tries ({code}).")
_FAILED = (Retryable, "{where} failed, also after several tries ({code}).")
_STATUS: dict[int, tuple[type[SpanvaultError], str]] = {
    404: (NotFound, "There is no object {key!r} in {where}."),
    408: _SLOW,
    409: _FAILED,
    412: (AlreadyExists, "The object {key!r} exists already in {where}; nothing was overwritten."),
    429: (Retryable, "{where} asks for fewer requests ({code}), also after several tries."),
    500: _FAILED,
    504: _SLOW,
}


@dataclass(frozen=True)
class GcsPlace:
    """What sentences say of a bucket: its name, the storage's root in it, how it is reached, and whether locks are asked for."""

    bucket: str
    where: str
    access: GcsAccess
    locks: bool = False

    @property
    def endpoint(self) -> str:
        """The address for people."""
        return self.access.endpoint or "Google Cloud Storage"


def no_bucket(place: GcsPlace) -> NotFound:
    """The error for a bucket that is not there."""
    return NotFound(f"There is no bucket {place.bucket!r} at {place.endpoint}; create it first.")


def translate(error: Exception, place: GcsPlace, key: str) -> SpanvaultError:
    """The error of ours that says what `error`, one of GcsError, means for `key`."""
    if isinstance(error, GoogleAPICallError):
        return _answer(error, place, key)
    if isinstance(error, GoogleAuthError):
        return _no_sign_in(error, place)
    return _no_answer(error, place)


def _answer(error: GoogleAPICallError, place: GcsPlace, key: str) -> SpanvaultError:
    status = int(error.code or 0)
    reason, message = _said(error)
    code = reason or str(status)
    if reason in _RATES:
        status = 429
    elif status == 400 and "match calculated" in message:
        return Retryable(f"{key!r} arrived damaged at {place.where} and was not stored.")
    elif status not in _STATUS and status > 500:
        status = 500
    if status not in _STATUS:
        return _refusal(status, code, message, place, key)
    kind, sentence = _STATUS[status]
    return kind(sentence.format(key=key, where=place.where, code=code))


def _refusal(status: int, code: str, message: str, place: GcsPlace, key: str) -> SpanvaultError:
    where, name = place.where, place.access.name
    # A hold's own reason is documented and not what the service gives: it says `forbidden`, as for a missing right.
    if code in {_RETENTION, _HOLD} or (status == 403 and "under active" in message):
        kept = f"{key!r} in {where} is kept by the bucket's retention policy, a lock or a hold ({code})"
        return Locked(f"{kept}; nothing was done to it.")
    if "requester pays" in message.lower():
        return BadInput(f"{where}: who uses the bucket pays; name the project with GOOGLE_BILLING_PROJECT.")
    if status == 401:
        return BadInput(f"{where} does not accept the {name} ({code}); give credentials that are valid and have not expired.")
    if status == 403:
        locks = "; object locks need storage.objects.setRetention and storage.objects.update too" if place.locks else ""
        return BadInput(
            f"{where} refused access ({code}): the {name} needs the rights to list, get, create and delete objects, such as "
            f"roles/storage.objectUser on the bucket{locks}."
        )
    if place.locks and "object retention" in message.lower() and "enabled" in message:
        return BadInput(
            f"{where} refused an object lock ({code}): OBJECT_LOCK_MODE needs a bucket with object retention enabled."
        )
    said = f"{code}: {message}".rstrip(": ")
    return BadInput(f"{where} refused the call for {key!r} ({said}).")


def _said(error: GoogleAPICallError) -> tuple[str, str]:
    """The reason and the message of the service. Not the library's text: it holds the call's address, and with it the
    secret name of an upload."""
    response: Any = error.response
    try:
        told = response.json()["error"]
        found = told.get("errors") or [{}]
        return _one_line(found[0].get("reason", "")), _one_line(told.get("message", ""))
    except (AttributeError, ValueError, KeyError, TypeError):
        text = getattr(response, "text", "") or ""
        # Uploads are refused in plain text.
        return "", "" if text.lstrip().startswith("<") else _one_line(text)


def _no_sign_in(error: GoogleAuthError, place: GcsPlace) -> SpanvaultError:
    where, access = place.where, place.access
    if isinstance(error, InvalidOperation):
        # A kind of the next one. What 401 means for anonymous access, which has nothing to renew.
        return BadInput(f"{where} does not accept the {access.name}; give credentials.")
    if isinstance(error, DefaultCredentialsError):
        return BadInput(
            f"{where}: this machine has no usable Google credentials; set GOOGLE_APPLICATION_CREDENTIALS, or give CREDENTIALS "
            "or conn_id."
        )
    if isinstance(error, TransportError):
        return Retryable(f"{where}: Google's sign-in cannot be reached, also after several tries.")
    told = _refusal_of_sign_in(error)
    if error.retryable or told.partition(" ")[0] in {"429", "500", "502", "503", "504"}:
        return Retryable(f"{where}: Google's sign-in failed, also after several tries ({told}).")
    if access.roles and isinstance(error, RefreshError) and "impersonated" in str(error.args[0]):
        return BadInput(
            f"{where}: the service account {access.roles[-1]} cannot be used ({told}): each account of ASSUME_ROLE must give "
            "the one before it, and the first one the given credentials, the role roles/iam.serviceAccountTokenCreator."
        )
    return BadInput(f"{where}: Google refused the sign-in with the {access.name} ({told}); give credentials that are valid.")


def _refusal_of_sign_in(error: GoogleAuthError) -> str:
    """The code that the sign-in gave, such as `invalid_grant` or `403 PERMISSION_DENIED`, and nothing that it may repeat of
    what was sent."""
    told: Any = error.args[1] if len(error.args) > 1 else None
    try:
        told = json.loads(told) if isinstance(told, (str, bytes)) else told
        found = told["error"]
        code = f"{found['code']} {found.get('status', '')}".strip() if isinstance(found, dict) else str(found)
    except (ValueError, KeyError, TypeError):
        code = type(error).__name__
    return _one_line(code)


def _no_answer(error: Exception, place: GcsPlace) -> SpanvaultError:
    where, endpoint = place.where, place.endpoint
    # A body that stalls, and sending that stalls, are broken connections for the library.
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return Retryable(f"{where}: {endpoint} did not answer in time, also after several tries.")
    if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
        return BadInput(f"{where}: {endpoint} has no certificate that this machine trusts.")
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        cause = str(error)
        if "NewConnectionError" in cause or "NameResolutionError" in cause or isinstance(error, requests.exceptions.ProxyError):
            return Retryable(f"{where}: {endpoint} cannot be reached.")
        return Retryable(f"{where}: the connection to {endpoint} failed.")
    return BadInput(f"{where} cannot be used as described: {endpoint} does not answer as Google Cloud Storage does.")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200].rstrip(". ")
