"""How to reach a bucket: from the URI's parameters, from a connection, or with the machine's own credentials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

from pydantic import SecretStr

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.uri import StorageUri
from spanvault.model.uri_parameters import Role

_ROLE_METHODS = frozenset({None, "", "assume_role"})
_ROLE_ARGUMENTS = frozenset({"ExternalId", "RoleSessionName"})


@dataclass(frozen=True)
class S3Access:
    """Endpoint and credentials; without an access key the machine's own (environment, profile, instance role). With them
    the `roles` are assumed one after another, at `sts_endpoint` where it is given."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    path_style: bool = False
    profile: str | None = None
    roles: tuple[Role, ...] = ()
    role_session: str = "spanvault"
    sts_endpoint: str | None = None
    skip_checksum: bool = False

    @property
    def renews_itself(self) -> bool:
        """Whether credentials that have ended are replaced without anybody's doing."""
        return self.access_key is None or bool(self.roles)


def s3_access(uri: StorageUri, settings: Settings, connections: ConnectionResolver) -> S3Access:
    """What `uri` says, completed by the connection that its conn_id names.

    Raises NotFound or BadInput for a connection that is not there or not usable, Refused where the settings forbid the
    machine's own credentials.
    """
    params = uri.params
    known = connection_access(connections.resolve(params["conn_id"])) if "conn_id" in params else _from_parameters(uri)
    if known.access_key is None and settings.external_io_disable_implicit_credentials:
        raise Refused(f"{uri} leads to implicit credentials, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")
    return replace(
        known,
        endpoint=params.get("AWS_ENDPOINT", known.endpoint),
        region=params.get("AWS_REGION", known.region),
        path_style=params.get("AWS_USE_PATH_STYLE", str(known.path_style).lower()) == "true",
        roles=(*known.roles, *uri.roles),
        skip_checksum=params.get("AWS_SKIP_CHECKSUM") == "true",
    )


def _from_parameters(uri: StorageUri) -> S3Access:
    params = uri.params
    secret, token = params.get("AWS_SECRET_ACCESS_KEY"), params.get("AWS_SESSION_TOKEN")
    return S3Access(
        access_key=params.get("AWS_ACCESS_KEY_ID"),
        secret_key=SecretStr(secret) if secret else None,
        session_token=SecretStr(token) if token else None,
    )


def connection_access(connection: ConnectionInfo, service: str = "s3") -> S3Access:
    """What a connection of the type `aws` says of one `service`. Raises BadInput if it cannot be used.

    Airflow's fields: https://airflow.apache.org/docs/apache-airflow-providers-amazon/stable/connections/aws.html
    """
    extra, name = connection.extra, f"Connection {connection.conn_id!r}"
    if connection.conn_type not in {"aws", ""}:
        raise BadInput(f"{name} is of the type {connection.conn_type!r}; s3:// needs one of the type 'aws'.")
    key, secret = _keys(connection)
    token, profile = _text(extra, "aws_session_token", name), _text(extra, "profile_name", name)
    if key and profile:
        raise BadInput(f"{name} has both keys and a profile_name; remove one of them.")
    return S3Access(
        endpoint=_service(extra, service, name) or _text(extra, "endpoint_url", name),
        region=_text(extra, "region_name", name),
        access_key=key,
        secret_key=secret,
        session_token=SecretStr(token) if token else None,
        path_style=_addressing_style(extra) == "path",
        profile=profile,
        sts_endpoint=_service(extra, "sts", name),
        **_role(extra, name),
    )


def _keys(connection: ConnectionInfo) -> tuple[str | None, SecretStr | None]:
    """Login and password, or what stands for them in the extra fields."""
    name = f"Connection {connection.conn_id!r}"
    key = connection.login or _text(connection.extra, "aws_access_key_id", name)
    hidden = _text(connection.extra, "aws_secret_access_key", name)
    secret = connection.password or (SecretStr(hidden) if hidden else None)
    if bool(key) != bool(secret):
        raise BadInput(f"{name} needs both the access key (login) and the secret key (password), or neither.")
    return key, secret


class _RoleFields(TypedDict, total=False):
    roles: tuple[Role, ...]
    role_session: str


def _role(extra: dict[str, object], name: str) -> _RoleFields:
    arn, method, arguments = _text(extra, "role_arn", name), extra.get("assume_role_method"), extra.get("assume_role_kwargs", {})
    if arn is None:
        return {}
    if method not in _ROLE_METHODS:
        raise BadInput(f"{name}: assume_role_method {method!r} is not supported; use assume_role, or the machine's own identity.")
    if not isinstance(arguments, dict) or not set(arguments) <= _ROLE_ARGUMENTS:
        raise BadInput(f"{name}: assume_role_kwargs may hold {' and '.join(sorted(_ROLE_ARGUMENTS))}, and nothing else.")
    external = _text(arguments, "ExternalId", name) or _text(extra, "external_id", name)
    session = _text(arguments, "RoleSessionName", name)
    return {"roles": (Role(arn, external),), **({"role_session": session} if session else {})}


def _service(extra: dict[str, object], service: str, name: str) -> str | None:
    """The endpoint that the connection gives to one service of AWS."""
    services = extra.get("service_config")
    config = services.get(service) if isinstance(services, dict) else None
    return _text(config, "endpoint_url", name) if isinstance(config, dict) else None


def _text(extra: dict[str, object], field: str, name: str) -> str | None:
    value = extra.get(field)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name}: {field} in its extra fields must be text.")
    return value or None


def _addressing_style(extra: dict[str, object]) -> object:
    config = extra.get("config_kwargs")
    s3 = config.get("s3") if isinstance(config, dict) else None
    return s3.get("addressing_style") if isinstance(s3, dict) else None
