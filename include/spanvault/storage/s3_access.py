"""How to reach a bucket: from the URI's parameters, from a connection, or with the machine's own credentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from pydantic import SecretStr

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.uri import StorageUri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class S3Access:
    """Endpoint and credentials; without an access key the machine's own (environment, profile, instance role)."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    path_style: bool = False


def s3_access(uri: StorageUri, settings: Settings, connections: ConnectionResolver) -> S3Access:
    """What `uri` says, completed by the connection that its conn_id names.

    Raises NotFound or BadInput for a connection that is not there or not usable, Refused where the settings forbid the
    machine's own credentials.
    """
    params = uri.params
    known = _from_connection(connections.resolve(params["conn_id"])) if "conn_id" in params else _from_parameters(uri)
    if known.access_key is None and settings.external_io_disable_implicit_credentials:
        raise Refused(f"{uri} leads to implicit credentials, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")
    return S3Access(
        endpoint=params.get("AWS_ENDPOINT", known.endpoint),
        region=params.get("AWS_REGION", known.region),
        access_key=known.access_key,
        secret_key=known.secret_key,
        session_token=known.session_token,
        path_style=params.get("AWS_USE_PATH_STYLE", str(known.path_style).lower()) == "true",
    )


def _from_parameters(uri: StorageUri) -> S3Access:
    params = uri.params
    secret, token = params.get("AWS_SECRET_ACCESS_KEY"), params.get("AWS_SESSION_TOKEN")
    return S3Access(
        access_key=params.get("AWS_ACCESS_KEY_ID"),
        secret_key=SecretStr(secret) if secret else None,
        session_token=SecretStr(token) if token else None,
    )


def _from_connection(connection: ConnectionInfo) -> S3Access:
    """Airflow's fields: https://airflow.apache.org/docs/apache-airflow-providers-amazon/stable/connections/aws.html"""
    extra, name = connection.extra, f"Connection {connection.conn_id!r}"
    if connection.conn_type not in {"aws", ""}:
        raise BadInput(f"{name} is of the type {connection.conn_type!r}; s3:// needs one of the type 'aws'.")
    unsupported = sorted({"role_arn", "assume_role_method", "profile_name"} & set(extra))
    if unsupported:
        raise BadInput(f"{name} uses {', '.join(unsupported)}, which is not supported yet by this version; give it keys.")
    if bool(connection.login) != bool(connection.password):
        raise BadInput(f"{name} needs both the access key (login) and the secret key (password), or neither.")
    token = _text(extra, "aws_session_token", name)
    return S3Access(
        endpoint=_text(extra, "endpoint_url", name),
        region=_text(extra, "region_name", name),
        access_key=connection.login or None,
        secret_key=connection.password if connection.login else None,
        session_token=SecretStr(token) if token else None,
        path_style=_addressing_style(extra) == "path",
    )


def _text(extra: dict[str, object], field: str, name: str) -> str | None:
    value = extra.get(field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name}: {field} in its extra fields must be text.")
    return value or None


def _addressing_style(extra: dict[str, object]) -> object:
    config = extra.get("config_kwargs")
    s3 = config.get("s3") if isinstance(config, dict) else None
    return s3.get("addressing_style") if isinstance(s3, dict) else None


def s3_client(access: S3Access, settings: Settings, where: str) -> S3Client:
    """A client with bounded waits and tries. It may be used from several threads. Raises BadInput."""
    config = Config(
        connect_timeout=settings.storage_connect_timeout,
        read_timeout=settings.storage_read_timeout,
        # Random exponential pauses (at most 20 s) on throttling, 5xx, broken connections and timeouts:
        # https://docs.aws.amazon.com/boto3/latest/guide/retries.html
        retries={"mode": "standard", "total_max_attempts": settings.storage_attempts},
        s3={"addressing_style": "path" if access.path_style else "auto"},
        signature_version="s3v4",
        request_checksum_calculation="when_supported",
        response_checksum_validation="when_supported",
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    try:
        session = boto3.session.Session(
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key.get_secret_value() if access.secret_key else None,
            aws_session_token=access.session_token.get_secret_value() if access.session_token else None,
            region_name=access.region,
        )
        region = session.region_name or "us-east-1"
        return session.client("s3", region_name=region, endpoint_url=access.endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise BadInput(f"{where} cannot be reached as described: {error}.") from None
