"""The S3 client: bounded waits, tries and calls, and the roles that it assumes.

Temporary credentials of roles are fetched at the first call and again some minutes before they end, by botocore's own
refreshable credentials; a chain of roles is one of them on top of another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.credentials import (
    CredentialProvider,
    CredentialResolver,
    Credentials,
    DeferredRefreshableCredentials,
    create_assume_role_refresher,
)
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from spanvault.config.settings import Settings
from spanvault.errors import BadInput
from spanvault.model.uri_parameters import Role
from spanvault.storage.limit import CallLimit
from spanvault.storage.s3_access import S3Access
from spanvault.storage.s3_errors import RoleError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_METHOD = "spanvault-roles"
# It logs the traceback of a role that cannot be assumed, and raises it too; people get the sentence.
logging.getLogger("botocore.credentials").setLevel(logging.ERROR)


def s3_client(access: S3Access, settings: Settings, where: str) -> S3Client:
    """A client with bounded waits and tries. It may be used from several threads. Contacts nothing. Raises BadInput."""
    try:
        session = aws_session(access, settings)
        client = session.client(
            "s3", region_name=session.region_name or "us-east-1", endpoint_url=access.endpoint, config=_config(access, settings)
        )
    except (BotoCoreError, ValueError) as error:
        raise BadInput(f"{where} cannot be reached as described: {error}.") from None
    _take_part(client, CallLimit.of(settings.storage_calls))
    return client


def _config(access: S3Access, settings: Settings) -> Config:
    checksums: Literal["when_required", "when_supported"] = "when_required" if access.skip_checksum else "when_supported"
    return Config(
        connect_timeout=settings.storage_connect_timeout,
        read_timeout=settings.storage_read_timeout,
        # Random exponential pauses (at most 20 s) on throttling, 5xx, broken connections and timeouts:
        # https://docs.aws.amazon.com/boto3/latest/guide/retries.html
        retries={"mode": "standard", "total_max_attempts": settings.storage_attempts},
        s3={"addressing_style": "path" if access.path_style else "auto"},
        signature_version="s3v4",
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        max_pool_connections=32,
        tcp_keepalive=True,
    )


def aws_session(access: S3Access, settings: Settings) -> boto3.session.Session:
    """A session with the credentials of `access`, its roles assumed. Contacts nothing. Raises BotoCoreError or ValueError."""
    session = boto3.session.Session(
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key.get_secret_value() if access.secret_key else None,
        aws_session_token=access.session_token.get_secret_value() if access.session_token else None,
        region_name=access.region,
        profile_name=access.profile,
    )
    for role in access.roles:
        session = _with_role(session, role, access, settings)
    return session


def _with_role(session: boto3.session.Session, role: Role, access: S3Access, settings: Settings) -> boto3.session.Session:
    """A session with the credentials that `role` gives to those of `session`."""
    region = session.region_name or "us-east-1"
    client = session.client(
        "sts",
        region_name=region,
        endpoint_url=sts_endpoint(access),
        config=Config(
            connect_timeout=settings.storage_connect_timeout,
            read_timeout=settings.storage_read_timeout,
            retries={"mode": "standard", "total_max_attempts": settings.storage_attempts},
        ),
    )
    asked = {"RoleArn": role.name, "RoleSessionName": access.role_session}
    if role.external_id:
        asked["ExternalId"] = role.external_id
    fetch = _named(create_assume_role_refresher(client, asked), role.name)
    inner = get_session()
    inner.register_component("credential_provider", CredentialResolver([_Fixed(DeferredRefreshableCredentials(fetch, _METHOD))]))
    return boto3.session.Session(botocore_session=inner, region_name=region)


def sts_endpoint(access: S3Access) -> str | None:
    """Where roles are assumed: at AWS for its own endpoints; other stores serve STS where they serve S3, and their keys
    are nothing to AWS."""
    if access.sts_endpoint or access.endpoint is None:
        return access.sts_endpoint
    host = urlsplit(access.endpoint).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else access.endpoint


def _named(fetch: Callable[[], dict[str, Any]], role: str) -> Callable[[], dict[str, Any]]:
    def fetch_or_name() -> dict[str, Any]:
        try:
            return fetch()
        except RoleError:
            raise  # Of a role before this one in the chain.
        except (BotoCoreError, ClientError) as error:
            raise RoleError(role, error) from error

    return fetch_or_name


class _Fixed(CredentialProvider):
    """Gives botocore the credentials that it is to use."""

    METHOD = _METHOD

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Credentials:
        return self._credentials


def _take_part(client: S3Client, limit: CallLimit | None) -> None:
    """Let each call of `client` wait for its turn. A download counts until its first bytes come."""
    if limit is None:
        return
    events: Any = client.meta.events
    # Last, so that a call that other handlers refuse takes no turn.
    events.register_last("before-call.s3", lambda **_: limit.enter())
    for end in ("after-call.s3", "after-call-error.s3"):
        events.register_first(end, lambda **_: limit.leave())
