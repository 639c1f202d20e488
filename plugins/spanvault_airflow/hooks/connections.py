"""Airflow's Connections as the engine's ConnectionResolver."""

from __future__ import annotations

import json

from airflow.sdk import BaseHook, Variable
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError, ErrorType
from airflow.sdk.log import mask_secret
from pydantic import SecretStr

from spanvault.config.connections import ConnectionInfo
from spanvault.errors import BadInput, NotFound, Retryable


class AirflowConnections:
    """Resolves connection ids through Airflow: secrets backends, environment variables and the metadata database."""

    def resolve(self, conn_id: str) -> ConnectionInfo:
        """The connection `conn_id`.

        Raises NotFound if Airflow does not know it, BadInput if its extra is not a JSON object, Retryable when Airflow
        itself cannot be asked right now.
        """
        try:
            connection = BaseHook.get_connection(conn_id)
        except AirflowNotFoundException:
            raise NotFound(f"There is no connection {conn_id!r}: add it in Airflow under Admin, Connections.") from None
        except AirflowRuntimeError as error:
            raise Retryable(f"Airflow could not look up the connection {conn_id!r}: {error.error.error.value}.") from None
        return ConnectionInfo(
            conn_id=conn_id,
            conn_type=connection.conn_type or "",
            host=connection.host or None,
            login=connection.login or None,
            password=SecretStr(connection.password) if connection.password else None,
            schema_name=connection.schema or None,
            port=connection.port,
            extra=_extra(conn_id, connection.extra),
        )

    def variable(self, name: str) -> SecretStr:
        """The variable `name`, whose text Airflow masks in logs from then on. Raises NotFound, Retryable."""
        try:
            text = Variable.get(name)
        except AirflowRuntimeError as error:
            if error.error.error == ErrorType.VARIABLE_NOT_FOUND:
                raise NotFound(f"There is no variable {name!r}: add it in Airflow under Admin, Variables.") from None
            raise Retryable(f"Airflow could not look up the variable {name!r}: {error.error.error.value}.") from None
        mask_secret(text)
        return SecretStr(text)


def _extra(conn_id: str, text: str | None) -> dict[str, object]:
    try:
        extra = json.loads(text) if text and text.strip() else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise BadInput(f"The extra of connection {conn_id!r} must be a JSON object.")
    return extra
