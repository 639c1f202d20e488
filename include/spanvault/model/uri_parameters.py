"""The parameters of storage URIs: which each scheme takes, what they may hold, and which belong together.

Names and meanings are CockroachDB's (https://www.cockroachlabs.com/docs/stable/cloud-storage-authentication); conn_id,
AZURE_ENDPOINT and OBJECT_LOCK_* are our own.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from spanvault.errors import BadInput
from spanvault.model.locality import Locality

REDACTED = "redacted"
DEFAULT_LOCALITY = "default"
SECRET_PARAMETERS = frozenset({
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CREDENTIALS",
    "AZURE_ACCOUNT_KEY",
    "AZURE_CLIENT_SECRET",
})
# https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, the classes that CockroachDB names.
STORAGE_CLASSES = (
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
)
# What lies in these must be brought back, for hours, before it can be read.
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
AZURE_ENVIRONMENTS = ("AZUREPUBLICCLOUD", "AZUREUSGOVERNMENTCLOUD", "AZURECHINACLOUD", "AZUREGERMANCLOUD")
LONGEST_LOCK_DAYS = 36_500
# The parameters that say on which servers a bucket lies: two URIs that differ in one mean different buckets.
ADDRESS_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ENDPOINT",),
    "azure-blob": ("AZURE_ACCOUNT_NAME", "AZURE_ENDPOINT", "AZURE_ENVIRONMENT"),
}

_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AZURE_CLIENT = ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID")
_LOCK = ("OBJECT_LOCK_MODE", "OBJECT_LOCK_DAYS", "OBJECT_LOCK_LEGAL_HOLD")
_COMMON = frozenset({"COCKROACH_LOCALITY"})
_PARAMETERS: dict[str, frozenset[str]] = {
    "file": _COMMON,
    "nodelocal": _COMMON,
    "s3": _COMMON
    | {"AUTH", "conn_id", *_S3_KEYS, "ASSUME_ROLE", "AWS_REGION", "AWS_ENDPOINT", "AWS_USE_PATH_STYLE", "AWS_SKIP_CHECKSUM"}
    | {"S3_STORAGE_CLASS", "AWS_SERVER_ENC_MODE", "AWS_SERVER_KMS_ID", *_LOCK},
    "gs": _COMMON | {"AUTH", "conn_id", "CREDENTIALS", "ASSUME_ROLE", "GOOGLE_BILLING_PROJECT", *_LOCK},
    "azure-blob": _COMMON
    | {"AUTH", "conn_id", "AZURE_ACCOUNT_NAME", "AZURE_ACCOUNT_KEY", *_AZURE_CLIENT}
    | {"AZURE_ENVIRONMENT", "AZURE_ENDPOINT", *_LOCK},
}
_TRUTH = ("true", "false")
_VALUES = {
    "AUTH": ("specified", "implicit"),
    "AWS_USE_PATH_STYLE": _TRUTH,
    "AWS_SKIP_CHECKSUM": _TRUTH,
    "S3_STORAGE_CLASS": STORAGE_CLASSES,
    "AWS_SERVER_ENC_MODE": ("AES256", "aws:kms"),
    "OBJECT_LOCK_MODE": ("GOVERNANCE", "COMPLIANCE"),
    "OBJECT_LOCK_LEGAL_HOLD": _TRUTH,
    "AZURE_ENVIRONMENT": AZURE_ENVIRONMENTS,
}
_ROLE = re.compile(r"(?P<arn>arn:[^,;\s]+:role/[^,;\s]+)(;external_id=(?P<external_id>[^,;\s]+))?")
_SERVICE_ACCOUNT = re.compile(r"[^,\s@]+@[^,\s@]+")
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")


@dataclass(frozen=True)
class Role:
    """A role to be assumed: on AWS its ARN and, where its owner asks for one, the external id (which is no secret:
    https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_common-scenarios_third-party.html); on Google Cloud a
    service account."""

    name: str
    external_id: str | None = None


@dataclass(frozen=True)
class ObjectLock:
    """How new objects are protected from deletion: for `days` from when each is written, in the store's mode GOVERNANCE
    (special rights may lift it) or COMPLIANCE (nobody may), and by a legal hold without an end. No mode: no days."""

    mode: str | None
    days: float
    legal_hold: bool


def roles_of(text: str) -> tuple[Role, ...]:
    """The chain of roles in a checked ASSUME_ROLE, in the order in which they are assumed."""
    roles = [part.partition(";external_id=") for part in text.split(",")] if text else []
    return tuple(Role(name, external_id or None) for name, _, external_id in roles)


def object_lock_of(params: Mapping[str, str]) -> ObjectLock | None:
    """The lock that checked parameters ask for."""
    hold = params.get("OBJECT_LOCK_LEGAL_HOLD") == "true"
    if "OBJECT_LOCK_MODE" not in params:
        return ObjectLock(None, 0, legal_hold=True) if hold else None
    return ObjectLock(params["OBJECT_LOCK_MODE"], int(params["OBJECT_LOCK_DAYS"]), legal_hold=hold)


def checked_parameters(pairs: Sequence[tuple[str, str]], scheme: str, where: str) -> tuple[tuple[str, str], ...]:
    """The parameters as they are used. Raises BadInput, with `where` and never with a secret, for one that the scheme does
    not take, or that holds what it cannot."""
    _check_names([name for name, _ in pairs], scheme, where)
    params = {name: _normalised(name, value) for name, value in pairs}
    for name, value in params.items():
        if not value:
            raise BadInput(f"{where}: {name} is empty.")
        if value not in _VALUES.get(name, (value,)):
            raise BadInput(f"{where}: unsupported value {value!r} for {name}; it may be {', '.join(_VALUES[name])}.")
    _check_locality(params.get("COCKROACH_LOCALITY"), where)
    if "AWS_ENDPOINT" in params:
        check_endpoint(params["AWS_ENDPOINT"], "AWS_ENDPOINT", "https://host or https://host:port", where)
    if "AZURE_ENDPOINT" in params:
        check_endpoint(params["AZURE_ENDPOINT"], "AZURE_ENDPOINT", "https://host, https://host:port or with /account", where)
    if (params.get("AWS_SERVER_ENC_MODE") == "aws:kms") != ("AWS_SERVER_KMS_ID" in params):
        raise BadInput(f"{where}: AWS_SERVER_KMS_ID must be set when, and only when, AWS_SERVER_ENC_MODE is aws:kms.")
    check_roles(params.get("ASSUME_ROLE"), scheme, where)
    _check_lock(params, where)
    if params.get("CREDENTIALS", REDACTED) != REDACTED:
        check_key_file(params["CREDENTIALS"], where)
    if not _ACCOUNT.fullmatch(params.get("AZURE_ACCOUNT_NAME", "any")):
        raise BadInput(f"{where}: AZURE_ACCOUNT_NAME must be 3 to 24 lower-case letters and digits.")
    return tuple(params.items())


def check_access(scheme: str, params: Mapping[str, str], where: str) -> None:
    """Raise BadInput unless the parameters say in exactly one way with whose rights the place is used."""
    if scheme == "s3":
        check_one_way(params, _S3_KEYS, _S3_KEYS[:2], "give both keys, AUTH=implicit or conn_id", where)
    elif scheme == "gs":
        check_one_way(params, ("CREDENTIALS",), ("CREDENTIALS",), "give it, AUTH=implicit or conn_id", where)
    elif scheme == "azure-blob":
        _check_azure_access(params, where)


def _check_azure_access(params: Mapping[str, str], where: str) -> None:
    if "conn_id" not in params and "AZURE_ACCOUNT_NAME" not in params:
        raise BadInput(f"{where}: AZURE_ACCOUNT_NAME is not set; name the storage account, or a connection with conn_id.")
    if "conn_id" in params and "AZURE_ACCOUNT_NAME" in params:
        raise BadInput(f"{where}: conn_id stands instead of AZURE_ACCOUNT_NAME; remove one of them.")
    client = [name for name in _AZURE_CLIENT if name in params]
    if "AZURE_ACCOUNT_KEY" in params and client:
        raise BadInput(f"{where}: AZURE_ACCOUNT_KEY and {client[0]} are both set; give the account's key or a client, not both.")
    needed = _AZURE_CLIENT if client else ("AZURE_ACCOUNT_KEY",)
    hint = "give AZURE_ACCOUNT_KEY, all of AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, AUTH=implicit or conn_id"
    check_one_way(params, ("AZURE_ACCOUNT_KEY", *_AZURE_CLIENT), needed, hint, where)


def check_one_way(params: Mapping[str, str], keys: Sequence[str], needed: Sequence[str], hint: str, where: str) -> None:
    """Raise BadInput unless exactly one of AUTH=specified with the `needed` of `keys`, AUTH=implicit and conn_id is given."""
    given = [name for name in keys if name in params]
    if "conn_id" in params:
        if given or "AUTH" in params:
            raise BadInput(f"{where}: conn_id stands instead of AUTH and keys; remove {', '.join(given) or 'AUTH'}.")
    elif params.get("AUTH") == "implicit":
        if given:
            raise BadInput(f"{where}: AUTH is set to 'implicit', but {given[0]} is set too; remove one of them.")
    else:
        missing = [name for name in needed if name not in params]
        if missing:
            raise BadInput(f"{where}: AUTH is set to 'specified' (the default), but {missing[0]} is not set; {hint}.")


def _check_names(names: Sequence[str], scheme: str, where: str) -> None:
    known = _PARAMETERS[scheme]
    unknown = sorted(set(names) - known)
    if unknown:
        hint = "; parameter names are upper case" if any(name.upper() in known for name in unknown) else ""
        takes = ", ".join(sorted(known, key=str.lower))
        raise BadInput(f"{where}: unknown query parameters: {', '.join(unknown)}{hint}; {scheme}:// takes {takes}.")
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{where}: {name} is given twice.")


def _normalised(name: str, value: str) -> str:
    if name in SECRET_PARAMETERS:
        # An unencoded + reads as a space. These secrets are base64, which has no spaces; CockroachDB repairs it too.
        return value.replace(" ", "+")
    return value.upper() if name == "AZURE_ENVIRONMENT" else value


def _check_locality(text: str | None, where: str) -> None:
    if text is not None and text != DEFAULT_LOCALITY and len(Locality.parse(text).tiers) != 1:
        raise BadInput(f'{where}: COCKROACH_LOCALITY must be default or one tier in the form "key=value".')


def check_endpoint(endpoint: str, name: str, form: str, where: str) -> None:
    """Raise BadInput unless the parameter `name` holds an http or https address without user, query and fragment."""
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(f"{where}: {name} must have the form {form}.")


def check_roles(text: str | None, scheme: str, where: str) -> None:
    """Raise BadInput for an ASSUME_ROLE that roles_of cannot read: service accounts for `gs`, ARNs of roles otherwise."""
    if text is None:
        return
    form, example = (
        (_SERVICE_ACCOUNT, "service-account@project.iam.gserviceaccount.com")
        if scheme == "gs"
        else (_ROLE, "arn:aws:iam::<account>:role/<name>, each perhaps with ;external_id=<id>")
    )
    for number, part in enumerate(text.split(","), start=1):
        if not form.fullmatch(part):
            raise BadInput(f"{where}: entry {number} of ASSUME_ROLE cannot be read; write a comma-separated chain of {example}.")


def _check_lock(params: Mapping[str, str], where: str) -> None:
    # Locked objects need a checksum of their bytes: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    if ("OBJECT_LOCK_MODE" in params) != ("OBJECT_LOCK_DAYS" in params):
        raise BadInput(f"{where}: OBJECT_LOCK_MODE and OBJECT_LOCK_DAYS must be set together.")
    if params.get("AWS_SKIP_CHECKSUM") == "true" and not {"OBJECT_LOCK_MODE", "OBJECT_LOCK_LEGAL_HOLD"}.isdisjoint(params):
        raise BadInput(f"{where}: an object lock needs checksums; remove AWS_SKIP_CHECKSUM or OBJECT_LOCK_*.")
    days = params.get("OBJECT_LOCK_DAYS", "1")
    if not (days.isascii() and days.isdigit() and len(days) <= 6 and 1 <= int(days) <= LONGEST_LOCK_DAYS):
        raise BadInput(f"{where}: OBJECT_LOCK_DAYS must be a whole number from 1 to {LONGEST_LOCK_DAYS}.")


def check_key_file(text: str, where: str) -> None:
    """Raise BadInput unless CREDENTIALS is JSON in base64."""
    try:
        valid = isinstance(json.loads(base64.b64decode(text, altchars=b"-_" if {"-", "_"} & set(text) else None)), dict)
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise BadInput(f"{where}: CREDENTIALS must be the JSON of a service account's key file, encoded in base64.")
