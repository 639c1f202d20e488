"""Connections by id: Airflow's own, or read from the environment when Airflow is not there.

`AIRFLOW_CONN_<ID>` holds a connection as a URI or as JSON, as Airflow defines it; the command line reads the same
variables. Airflow's hooks inject a resolver of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError

from spanvault.errors import BadInput, NotFound
from spanvault.model.base import Value


class ConnectionInfo(Value):
    """The fields of an Airflow Connection. `schema_name` is Airflow's `schema`: for PostgreSQL the database."""

    conn_id: str
    conn_type: str = ""
    host: str | None = None
    login: str | None = None
    password: SecretStr | None = None
    schema_name: str | None = None
    port: int | None = None
    extra: dict[str, object] = Field(default_factory=dict)


class ConnectionResolver(Protocol):
    """Finds connections by their ids, and variables that hold a secret."""

    def resolve(self, conn_id: str) -> ConnectionInfo:
        """The connection. Raises NotFound."""

    def variable(self, name: str) -> SecretStr:
        """The variable's text. Raises NotFound."""


class EnvironmentConnections:
    """Reads `AIRFLOW_CONN_<ID>` and `AIRFLOW_VAR_<NAME>` variables."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        # Not os.environ itself: a resolver is sent to worker processes, which have an environment of their own.
        self._environment = environment

    def resolve(self, conn_id: str) -> ConnectionInfo:
        """The connection. Raises NotFound when the variable is not set, BadInput when it cannot be read."""
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        text = (os.environ if self._environment is None else self._environment).get(variable)
        if not text:
            raise NotFound(f"There is no connection {conn_id!r}: set {variable} or add it in Airflow.")
        return _from_json(conn_id, text, variable) if text.lstrip().startswith("{") else _from_uri(conn_id, text)

    def variable(self, name: str) -> SecretStr:
        """The text of Airflow's variable. Raises NotFound when it is not set."""
        key = f"AIRFLOW_VAR_{name.upper()}"
        text = (os.environ if self._environment is None else self._environment).get(key)
        if text is None:
            raise NotFound(f"There is no variable {name!r}: set {key} or add it in Airflow.")
        return SecretStr(text)


def _from_json(conn_id: str, text: str, variable: str) -> ConnectionInfo:
    try:
        fields = json.loads(text)
        extra = fields.get("extra") or {}
        if isinstance(extra, str):
            extra = json.loads(extra)
        return ConnectionInfo(
            conn_id=conn_id,
            conn_type=fields.get("conn_type") or "",
            host=fields.get("host"),
            login=fields.get("login"),
            password=fields.get("password"),
            schema_name=fields.get("schema"),
            port=int(fields["port"]) if fields.get("port") else None,
            extra=extra,
        )
    except (ValueError, TypeError, AttributeError, ValidationError):
        raise BadInput(f"{variable} is not a connection in JSON as Airflow writes it.") from None


def _from_uri(conn_id: str, text: str) -> ConnectionInfo:
    try:
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        extra = json.loads(query.pop("__extra__")) if "__extra__" in query else dict(query)
        return ConnectionInfo(
            conn_id=conn_id,
            conn_type=parts.scheme,
            host=unquote(parts.hostname) if parts.hostname else None,
            login=unquote(parts.username) if parts.username else None,
            password=SecretStr(unquote(parts.password)) if parts.password else None,
            schema_name=unquote(parts.path.lstrip("/")) or None,
            port=parts.port,
            extra=extra,
        )
    except (ValueError, ValidationError):
        raise BadInput(f"The connection {conn_id!r} is not a URI as Airflow writes it.") from None
