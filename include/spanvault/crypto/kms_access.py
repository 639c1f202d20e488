"""What all key services share: the settings' refusals, a connection's fields, and words for errors."""

from __future__ import annotations

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.kms_uri import KmsUri


def check_settings(uri: KmsUri, settings: Settings) -> None:
    """Raise Refused if the settings do not allow `uri`, naming the setting; nothing is contacted."""
    if uri.params.get("AUTH") == "implicit":
        check_explicit(uri, settings)
    if settings.external_io_disable_http and "AWS_ENDPOINT" in uri.params:
        raise Refused(f"{uri} names an AWS_ENDPOINT, which SPANVAULT_EXTERNAL_IO_DISABLE_HTTP forbids.")
    settings.check_key_service(uri)


def check_explicit(uri: KmsUri, settings: Settings) -> None:
    """For what leads to the machine's own credentials: raise Refused where the settings forbid them."""
    if settings.external_io_disable_implicit_credentials:
        raise Refused(f"{uri} leads to implicit credentials, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")


def connection_of(uri: KmsUri, connections: ConnectionResolver, conn_type: str) -> ConnectionInfo:
    """The connection that conn_id names. Raises NotFound, or BadInput if it is one of another type."""
    connection = connections.resolve(uri.params["conn_id"])
    if connection.conn_type not in {conn_type, ""}:
        name = f"Connection {connection.conn_id!r}"
        raise BadInput(f"{name} is of the type {connection.conn_type!r}; {uri.scheme}:/// needs one of the type {conn_type!r}.")
    return connection


def refuse_fields(connection: ConnectionInfo, fields: set[str], instead: str) -> None:
    """Raise BadInput if the connection's extra sets one of `fields`, which would be overlooked."""
    found = sorted(name for name in fields if connection.extra.get(name))
    if found:
        raise BadInput(f"Connection {connection.conn_id!r} uses {', '.join(found)}, which keys are not used with; {instead}.")


def text_of(connection: ConnectionInfo, field: str, prefix: str = "") -> str | None:
    """A text in the connection's extra, also under the name with `prefix` of older forms. Raises BadInput."""
    value = connection.extra.get(field) or connection.extra.get(f"{prefix}{field}")
    if value is not None and not isinstance(value, str):
        raise BadInput(f"Connection {connection.conn_id!r}: {field} in its extra fields must be text.")
    return value or None


def one_line(error: object) -> str:
    """An error's text for the middle of a sentence: its first lines as one, without a full stop, bounded."""
    return " ".join(str(error).split())[:300].rstrip(". ")
