"""How to reach a bucket of Google Cloud Storage: from the URI's parameters, from a connection, or as the machine itself."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import google.auth
from google.auth import aws, identity_pool, impersonated_credentials
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials as UserCredentials

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import check_endpoint

# https://cloud.google.com/storage/docs/oauth-scopes: reading and writing objects, and no more.
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# The one way to another server, as Google's own clients know it: for emulators, which ask nobody who he is.
EMULATOR = "STORAGE_EMULATOR_HOST"
_CONNECTION_TYPE = "google_cloud_platform"
_PREFIX = "extra__google_cloud_platform__"
_UNSUPPORTED = ("key_secret_name", "idp_issuer_url")
_IMPLICIT = "machine's own identity"


@dataclass(frozen=True)
class GcsAccess:
    """Who uses the bucket and who pays. `credentials` makes what Google's library signs in with, and may ask the network;
    `name` is how sentences call that. The service accounts of `roles` are acted as one by way of another, the last one uses
    the bucket. `endpoint` is an emulator's address."""

    name: str
    credentials: Callable[[], Credentials] = field(repr=False)
    roles: tuple[str, ...] = ()
    billing_project: str | None = None
    endpoint: str | None = None

    def sign_in(self) -> Credentials:
        """The credentials that use the bucket. Raises GoogleAuthError."""
        source = self.credentials()
        if not self.roles:
            return source
        # Each account but the last passes the right on to the next:
        # https://cloud.google.com/iam/docs/create-short-lived-credentials-delegated
        assumed: Credentials = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
            source_credentials=source,
            target_principal=self.roles[-1],
            delegates=list(self.roles[:-1]),
            target_scopes=[SCOPE],
        )
        return assumed


def gcs_access(uri: StorageUri, settings: Settings, connections: ConnectionResolver) -> GcsAccess:
    """What `uri` says, or the connection that its conn_id names.

    Raises NotFound or BadInput for a connection or credentials that are not there or not usable, Refused where the settings
    forbid the machine's own credentials.
    """
    params = uri.params
    endpoint = os.environ.get(EMULATOR) or None
    if endpoint:
        check_endpoint(endpoint, EMULATOR, "http://host:port", "The environment")
    roles: tuple[str, ...] = ()
    payer = None
    if "CREDENTIALS" in params:
        text = params["CREDENTIALS"]
        key_file = base64.b64decode(text, altchars=b"-_" if {"-", "_"} & set(text) else None)
        name, credentials = _from_file(key_file, f"{uri}: CREDENTIALS", trusted=False)
    elif "conn_id" in params:
        connection = connections.resolve(params["conn_id"])
        name, credentials = _from_connection(connection)
        roles, payer = _impersonated(connection), _text(connection, "quota_project_id")
    else:
        name, credentials = _IMPLICIT, _implicit
    if name == _IMPLICIT and settings.external_io_disable_implicit_credentials:
        raise Refused(f"{uri} leads to implicit credentials, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")
    return GcsAccess(
        name=name,
        credentials=credentials,
        roles=(*roles, *(role.name for role in uri.roles)),
        billing_project=params.get("GOOGLE_BILLING_PROJECT", payer),
        endpoint=endpoint,
    )


_Named = tuple[str, Callable[[], Credentials]]


def _implicit() -> Credentials:
    """Application Default Credentials; none for an emulator, as Google's own clients do it."""
    if os.environ.get(EMULATOR):
        return _anonymous()
    found: Credentials = google.auth.default(scopes=[SCOPE])[0]
    return found


def _anonymous() -> Credentials:
    return AnonymousCredentials()  # type: ignore[no-untyped-call]


def _from_file(content: bytes | str, where: str, *, trusted: bool) -> _Named:
    """The credentials in a key file. Unless it is `trusted`, what it can make this machine do is bounded: it comes from
    whoever wrote the URI (https://cloud.google.com/docs/authentication/external/externally-sourced-credentials)."""
    try:
        info = json.loads(content)
        kind = info["type"]
        if kind == "service_account":
            name, found = "service account's key", _service_account(info)
        elif kind == "authorized_user":
            name, found = "user's credentials", _user(info)
        elif kind == "external_account":
            name, found = _external(info, where, trusted=trusted)
        else:
            raise ValueError(kind)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, GoogleAuthError):
        raise BadInput(
            f"{where} must be JSON as Google Cloud gives it, of the type service_account, authorized_user or external_account, "
            "with all its fields."
        ) from None
    return name, lambda: found


def _service_account(info: Mapping[str, Any]) -> Credentials:
    found: Credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
        info, scopes=[SCOPE]
    )
    return found


def _user(info: Mapping[str, Any]) -> Credentials:
    """With the scopes that the user once agreed to."""
    found: Credentials = UserCredentials.from_authorized_user_info(info)  # type: ignore[no-untyped-call]
    return found


def _external(info: Mapping[str, Any], where: str, *, trusted: bool) -> tuple[str, Credentials]:
    """Workload identity: a token of the machine, from a file or an address, is exchanged for one of Google's. That is the
    machine's own identity if whoever wrote the URI chose it."""
    source = info["credential_source"]
    if "executable" in source:
        raise BadInput(f"{where} names a program to run, which Spanvault does not do; let it name a file or an address.")
    if not trusted:
        for address in ("token_url", "token_info_url", "service_account_impersonation_url"):
            parts = urlsplit(info.get(address) or "https://sts.googleapis.com")
            if parts.scheme != "https" or not (parts.hostname or "").endswith(".googleapis.com"):
                raise BadInput(f"{where}: its {address} is not an address of Google's; tokens are sent nowhere else.")
    kind: Any = aws if str(source.get("environment_id", "")).startswith("aws") else identity_pool
    return "workload identity" if trusted else _IMPLICIT, kind.Credentials.from_info(info, scopes=[SCOPE])


def _from_connection(connection: ConnectionInfo) -> _Named:
    """Airflow's fields: https://airflow.apache.org/docs/apache-airflow-providers-google/stable/connections/gcp.html"""
    where = _name(connection)
    if connection.conn_type not in {_CONNECTION_TYPE, ""}:
        raise BadInput(f"{where} is of the type {connection.conn_type!r}; gs:// needs one of the type {_CONNECTION_TYPE!r}.")
    if str(_field(connection, "is_anonymous")).lower() == "true":
        return "anonymous access", _anonymous
    for name in _UNSUPPORTED:
        if _field(connection, name):
            raise BadInput(f"{where} uses {name}, which Spanvault does not; give it keyfile_dict, key_path or nothing.")
    given = {name: _field(connection, name) for name in ("keyfile_dict", "key_path", "credential_config_file")}
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        raise BadInput(f"{where} has both {named[0]} and {named[1]}; remove one of them.")
    if not named:
        return _IMPLICIT, _implicit
    value, place = given[named[0]], f"{where}: {named[0]}"
    content = json.dumps(value) if isinstance(value, dict) else _text(connection, named[0]) or ""
    if named[0] == "key_path" or (named[0] == "credential_config_file" and not content.lstrip().startswith("{")):
        content, place = _read(content, place), f"{where}: the file in {named[0]}"
    return _from_file(content, place, trusted=True)


def _read(path: str, where: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInput(f"{where} names a file that cannot be read: {reason}.") from None


def _impersonated(connection: ConnectionInfo) -> tuple[str, ...]:
    chain = _field(connection, "impersonation_chain") or ()
    names = chain.split(",") if isinstance(chain, str) else chain
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{_name(connection)}: impersonation_chain must be names of service accounts.")
    return tuple(name.strip() for name in names if name.strip())


def _field(connection: ConnectionInfo, field: str) -> object:
    """Older versions of Airflow put a prefix before the fields of their own forms."""
    return connection.extra.get(field) or connection.extra.get(f"{_PREFIX}{field}")


def _text(connection: ConnectionInfo, field: str) -> str | None:
    value = _field(connection, field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{_name(connection)}: {field} in its extra fields must be text.")
    return value or None


def _name(connection: ConnectionInfo) -> str:
    return f"Connection {connection.conn_id!r}"
