"""clusters.yaml: the named clusters and their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.errors import BadInput, NotFound
from spanvault.model.base import Value
from spanvault.model.locality import Locality

# The libpq parameters that a node's connection may carry beyond host, port, user, password and database.
PASSED_PARAMETERS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "connect_timeout", "keepalives_idle"})


class Endpoint(Value):
    """Where and as whom to reach one node. `parameters` are libpq connection parameters (PASSED_PARAMETERS)."""

    node: str
    host: str
    port: int = 5432
    user: str
    password: SecretStr | None = None
    database: str = "postgres"
    parameters: dict[str, str] = Field(default_factory=dict)
    locality: Locality = Locality()

    @property
    def display(self) -> str:
        """For people: no password."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


class Cluster(Value):
    """A named cluster; the first endpoint is where planning and protection start (the primary)."""

    name: str
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)

    @property
    def primary(self) -> Endpoint:
        """The node that a run starts from; preflight checks that it accepts writes."""
        return self.endpoints[0]


def cluster_from_url(url: str, name: str | None = None) -> Cluster:
    """A cluster of one node from `postgresql://user:password@host:port/database?sslmode=...`.

    Raises BadInput for anything else; the password is never part of the message.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
        if parts.scheme not in {"postgresql", "postgres"} or not parts.hostname:
            raise ValueError
    except ValueError:
        raise BadInput("--url must have the form postgresql://user:password@host:port/database.") from None
    endpoint = Endpoint(
        node="primary",
        host=unquote(parts.hostname),
        port=port,
        user=unquote(parts.username or "postgres"),
        password=SecretStr(unquote(parts.password)) if parts.password else None,
        database=unquote(parts.path.lstrip("/")) or "postgres",
        parameters=_known_parameters(dict(parse_qsl(parts.query)), "--url"),
    )
    return Cluster(name=name or f"{endpoint.host}:{endpoint.port}", endpoints=(endpoint,))


def load_cluster(path: Path, name: str, connections: ConnectionResolver) -> Cluster:
    """The cluster `name` of a clusters.yaml. Raises BadInput for a malformed file, NotFound for an unknown name."""
    clusters = _read(path)
    if name not in clusters:
        raise NotFound(f"{path} has no cluster {name!r}; it has {', '.join(sorted(clusters)) or 'none'}.")
    nodes = clusters[name].get("nodes") if isinstance(clusters[name], dict) else None
    if not isinstance(nodes, list) or not nodes:
        raise BadInput(f"Cluster {name!r} in {path} needs a list `nodes` with at least one node.")
    return Cluster(name=name, endpoints=tuple(_endpoint(node, f"{path}: cluster {name!r}", connections) for node in nodes))


def cluster_names(path: Path) -> list[str]:
    """The names in a clusters.yaml, in its order. Raises BadInput for a malformed file."""
    return list(_read(path))


def cluster_pool(path: Path, name: str) -> str | None:
    """The Airflow pool that bounds the tasks on the cluster `name`, if clusters.yaml names one."""
    pool = (_read(path).get(name) or {}).get("pool")
    return str(pool) if pool else None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise NotFound(f"The cluster file {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise BadInput(f"{path} is not YAML{f' (line {place.line + 1})' if place else ''}.") from None
    clusters = document.get("clusters") if isinstance(document, dict) else None
    if not isinstance(clusters, dict):
        raise BadInput(f"{path} needs a mapping `clusters:` from names to nodes.")
    return clusters


def _endpoint(node: object, where: str, connections: ConnectionResolver) -> Endpoint:
    if not isinstance(node, dict) or not isinstance(node.get("name"), str) or not isinstance(node.get("conn_id"), str):
        raise BadInput(f"{where}: every node needs a `name` and a `conn_id`.")
    unknown = set(node) - {"name", "conn_id", "locality"}
    if unknown:
        raise BadInput(f"{where}: node {node['name']!r} has unknown fields: {', '.join(sorted(map(str, unknown)))}.")
    locality = Locality.parse(str(node.get("locality") or ""))
    return endpoint_of(connections.resolve(node["conn_id"]), node["name"], locality)


def endpoint_of(connection: ConnectionInfo, node: str, locality: Locality) -> Endpoint:
    """The endpoint that a connection describes. Raises BadInput if it lacks a host or user."""
    if not connection.host or not connection.login:
        raise BadInput(f"Connection {connection.conn_id!r} needs a host and a login.")
    extra = {key: str(value) for key, value in connection.extra.items() if not isinstance(value, (dict, list))}
    try:
        return Endpoint(
            node=node,
            host=connection.host,
            port=connection.port or 5432,
            user=connection.login,
            password=connection.password,
            database=connection.schema_name or "postgres",
            parameters={key: value for key, value in extra.items() if key in PASSED_PARAMETERS},
            locality=locality,
        )
    except ValidationError as error:
        raise BadInput(f"Connection {connection.conn_id!r} cannot be used: {error.errors()[0]['msg']}.") from None


def _known_parameters(parameters: dict[str, str], where: str) -> dict[str, str]:
    unknown = sorted(set(parameters) - PASSED_PARAMETERS)
    if unknown:
        raise BadInput(f"{where}: unknown connection parameters: {', '.join(unknown)}.")
    return parameters
