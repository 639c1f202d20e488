"""Sessions on PostgreSQL with the settings that decide how values print pinned.

pgoutput, COPY and casts to text all follow the session (DateStyle, bytea_output, lc_monetary, search_path ...), so
every session that reads or writes values is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from spanvault.config.clusters import Endpoint
from spanvault.errors import BadInput, Retryable

APPLICATION_NAME = "spanvault"
CONNECT_TIMEOUT = "15"

PINNED_SETTINGS: dict[str, str] = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "",
    "xmloption": "content",
    "row_security": "off",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
}

# A host that vanished sends nothing more, not even that it is gone, and a session would wait hours for it. Two minutes of
# silence end it: a connection at rest is probed after 30 seconds, then 9 times every 10; what was sent must be acknowledged
# within 120,000 milliseconds. That also ends a session on a server that lives and takes no rows for so long.
KEEPALIVE: Final[Mapping[str, str]] = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "9",
    "tcp_user_timeout": "120000",
}

# A setting since version 17, which older servers would refuse among the connection's options.
NO_TRANSACTION_TIMEOUT = (
    "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'"
)


def options_text(settings: dict[str, str]) -> str:
    """Settings as libpq's `options` parameter: `-c name=value`, with spaces and backslashes escaped."""
    return " ".join(f"-c {name}={_escape(value)}" for name, value in settings.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def connection_parameters(endpoint: Endpoint, database: str | None = None, purpose: str = "") -> dict[str, Any]:
    """libpq parameters for a pinned session; `purpose` shows in pg_stat_activity behind `spanvault`."""
    parameters: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "user": endpoint.user,
        "dbname": database or endpoint.database,
        "application_name": f"{APPLICATION_NAME} {purpose}".strip()[:63],
        "client_encoding": "UTF8",
        "options": options_text(PINNED_SETTINGS),
        "connect_timeout": CONNECT_TIMEOUT,
        **KEEPALIVE,
        **endpoint.parameters,
    }
    if endpoint.password is not None:
        parameters["password"] = endpoint.password.get_secret_value()
    return parameters


def tool_connection(endpoint: Endpoint, database: str) -> str:
    """The connection string of PostgreSQL's own programs, for which the environment has no variables: how soon they notice
    that the server's host vanished. No secret is in it, as others may list a process's arguments."""
    chosen = {name: endpoint.parameters[name] for name in KEEPALIVE if name in endpoint.parameters}
    return make_conninfo(dbname=database, **{**KEEPALIVE, **chosen})


def connect(
    endpoint: Endpoint, database: str | None = None, *, purpose: str = "", autocommit: bool = True, replication: bool = False
) -> psycopg.Connection[TupleRow]:
    """Open a pinned session on `database` (default: the endpoint's). With `replication` it is a walsender, which takes
    replication commands and simple queries.

    Raises BadInput for a refused login or an unknown database, Retryable when the server cannot be reached.
    """
    parameters = connection_parameters(endpoint, database, purpose)
    if replication:
        parameters["replication"] = "database"
    try:
        connection = psycopg.connect(autocommit=True, **parameters)
        try:
            if not replication:
                connection.execute(NO_TRANSACTION_TIMEOUT)
            connection.autocommit = autocommit
        except BaseException:
            connection.close()
            raise
        return connection
    except psycopg.OperationalError as error:
        raise translate_connect_error(error, endpoint, database) from None


def translate_connect_error(error: psycopg.Error, endpoint: Endpoint, database: str | None) -> BadInput | Retryable:
    """The failed connection as one of our errors, with the server's reason on one line."""
    lines = str(error).strip().splitlines()
    # libpq's first line ends in the reason; what follows are guesses such as "Is the server running on that host".
    reason = next((line for line in lines if "FATAL:" in line), lines[0]).split("FATAL:")[-1].split(" failed: ")[-1]
    reason = reason.strip().rstrip(".?")
    where = f"{endpoint.user}@{endpoint.host}:{endpoint.port}/{database or endpoint.database}"
    final = (
        "authentication failed", "does not exist", "no pg_hba.conf entry", "not permitted to log in", "no password supplied",
        "permission denied",
    )  # fmt: skip
    if any(text in reason for text in final):
        return BadInput(f"Node {endpoint.node!r} refused the login {where}: {reason}.")
    return Retryable(f"Node {endpoint.node!r} at {where} cannot be reached: {reason}.")
