"""clusters.yaml: the named clusters, their nodes, and what those may be asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError

from spanvault.config.connections import ConnectionInfo, ConnectionResolver
from spanvault.errors import BadInput, NotFound
from spanvault.model.base import Value
from spanvault.model.locality import Locality
from spanvault.model.units import parse_bytes, parse_duration

# The libpq parameters that a node's connection may carry beyond host, port, user, password and database.
KEEPALIVE_PARAMETERS = frozenset({"keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"})
_NUMBERS = KEEPALIVE_PARAMETERS | {"connect_timeout"}
PASSED_PARAMETERS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"}) | _NUMBERS

_T = TypeVar("_T")

_NODE_FIELDS = frozenset({"name", "conn_id", "locality", "max_connections", "rate_limit"})
_CLUSTER_FIELDS = frozenset({"nodes", "pool", "placement", "exclude_data", "queues", "max_replay_lag", "max_active"})


class Endpoint(Value):
    """Where and as whom to reach one node. `parameters` are libpq connection parameters (PASSED_PARAMETERS).

    `max_connections` bounds the sessions that export from the node at a time, over all workers. `rate_limit` is in bytes a
    second, of which each of these sessions gets its share. None: no bound.
    """

    node: str
    host: str
    port: int = 5432
    user: str
    password: SecretStr | None = None
    database: str = "postgres"
    parameters: dict[str, str] = Field(default_factory=dict)
    locality: Locality = Locality()
    max_connections: int | None = Field(default=None, ge=1)
    rate_limit: int | None = Field(default=None, ge=1)

    @property
    def session_rate(self) -> int:
        """The bytes a second that one session may write; 0: no limit."""
        return 0 if self.rate_limit is None else max(1, self.rate_limit // (self.max_connections or 1))

    @property
    def display(self) -> str:
        """For people: no password."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


class Placement(Value):
    """Which tables belong to a locality: `database.schema.table`, in each part of which `*` stands for any text."""

    tables: str
    locality: Locality

    def covers(self, database: str, schema: str, table: str) -> bool:
        """Whether the table is meant."""
        return _covers(self.tables, database, schema, table)


def _covers(tables: str, *names: str) -> bool:
    parts = zip(tables.split("."), names, strict=True)
    return all(re.fullmatch(re.escape(part).replace(r"\*", ".*"), name, re.DOTALL) for part, name in parts)


class QueueRule(Value):
    """The Airflow queue of the workers in a locality."""

    locality: Locality
    queue: str


class Cluster(Value):
    """A named cluster; the first endpoint is where planning and protection start (the primary). `exclude_data` names the
    tables whose rows are in no backup, as in Placement.

    A node is left alone for a while when it, or of the primary the worst of its standbys, lags by more than `max_replay_lag`
    seconds, or when more than `max_active` sessions of others are at work on it. None: however it is.
    """

    name: str
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    placement: tuple[Placement, ...] = ()
    exclude_data: tuple[str, ...] = ()
    queues: tuple[QueueRule, ...] = ()
    max_replay_lag: float | None = None
    max_active: int | None = None

    @property
    def primary(self) -> Endpoint:
        """The node that a run starts from; preflight checks that it accepts writes."""
        return self.endpoints[0]

    def endpoint(self, node: str) -> Endpoint | None:
        """The node of that name, or None."""
        return next((endpoint for endpoint in self.endpoints if endpoint.node == node), None)

    def placed(self, database: str, schema: str, table: str) -> Locality | None:
        """Where the table belongs by the first placement that covers it; None if none does."""
        return next((rule.locality for rule in self.placement if rule.covers(database, schema, table)), None)

    def excludes(self, database: str, schema: str, table: str) -> bool:
        """Whether clusters.yaml leaves the table's rows out of backups."""
        return any(_covers(tables, database, schema, table) for tables in self.exclude_data)

    def queue_of(self, locality: Locality | str) -> str | None:
        """The queue of the workers in that locality: of the rules whose tiers all are its, the one with the most; None
        without one."""
        place = Locality.parse(locality) if isinstance(locality, str) else locality
        fitting = [rule for rule in self.queues if rule.locality.matches(place)]
        return max(fitting, key=lambda rule: len(rule.locality.tiers)).queue if fitting else None


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
    entry, where = clusters[name], f"{path}: cluster {name!r}"
    nodes = entry.get("nodes") if isinstance(entry, dict) else None
    if not isinstance(nodes, list) or not nodes:
        raise BadInput(f"Cluster {name!r} in {path} needs a list `nodes` with at least one node.")
    if unknown := set(entry) - _CLUSTER_FIELDS:
        raise BadInput(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}.")
    endpoints = tuple(_endpoint(node, where, connections) for node in nodes)
    names = [endpoint.node for endpoint in endpoints]
    if twice := sorted({node for node in names if names.count(node) > 1}):
        raise BadInput(f"{where} has several nodes of the name {', '.join(twice)}; give each one its own.")
    lag = entry.get("max_replay_lag")
    return Cluster(
        name=name,
        endpoints=endpoints,
        placement=tuple(_placements(entry, where)),
        exclude_data=_excluded(entry, where),
        queues=tuple(_queues(entry, where)),
        max_replay_lag=None if lag is None else _read_as(parse_duration, lag, f"{where}: max_replay_lag").total_seconds(),
        max_active=_count(entry.get("max_active"), f"{where}: max_active"),
    )


def cluster_queues(path: Path) -> list[tuple[str, str]]:
    """The locality and name of every queue that a clusters.yaml speaks of, each once, in its order. Raises BadInput for a
    malformed file."""
    rules = [rule for name, entry in _read(path).items() for rule in _queues(entry, f"{path}: cluster {name!r}")]
    return list(dict.fromkeys((str(rule.locality), rule.queue) for rule in rules))


def cluster_names(path: Path) -> list[str]:
    """The names in a clusters.yaml, in its order. Raises BadInput for a malformed file."""
    return list(_read(path))


def cluster_pools(path: Path) -> dict[str, str]:
    """The Airflow pool that bounds the tasks on a cluster, by the cluster's name, where a clusters.yaml names one."""
    entries = {name: entry for name, entry in _read(path).items() if isinstance(entry, dict)}
    return {name: str(entry["pool"]) for name, entry in entries.items() if entry.get("pool")}


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
    where = f"{where}: node {node['name']!r}"
    unknown = set(node) - _NODE_FIELDS
    if unknown:
        raise BadInput(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}.")
    most = _count(node.get("max_connections"), f"{where}: max_connections")
    rate = node.get("rate_limit")
    if rate is not None and most is None:
        raise BadInput(f"{where} has a rate_limit; it also needs max_connections, for each session gets its share.")
    endpoint = endpoint_of(
        connections.resolve(node["conn_id"]), node["name"], _read_as(Locality.parse, node.get("locality") or "", where)
    )
    limit = None if rate is None else _count(_read_as(parse_bytes, rate, f"{where}: rate_limit"), f"{where}: rate_limit")
    return endpoint.model_copy(update={"max_connections": most, "rate_limit": limit})


def _excluded(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    listed = entry.get("exclude_data") or []
    if not isinstance(listed, list) or not all(isinstance(text, str) and len(text.split(".")) == 3 for text in listed):
        raise BadInput(f"{where}: `exclude_data` is a list of tables, each as database.schema.table, with * for any.")
    return tuple(listed)


def _placements(entry: dict[str, Any], where: str) -> Iterator[Placement]:
    for rule in _rules(entry, "placement", "tables", where):
        if len(rule["tables"].split(".")) != 3:
            raise BadInput(f"{where}: placement of {rule['tables']!r}: write tables as database.schema.table, with * for any.")
        yield Placement(tables=rule["tables"], locality=_place(rule["locality"], f"{where}: placement"))


def _queues(entry: object, where: str) -> Iterator[QueueRule]:
    for rule in _rules(entry, "queues", "queue", where):
        yield QueueRule(queue=rule["queue"], locality=_place(rule["locality"], f"{where}: queues"))


def _rules(entry: object, field: str, what: str, where: str) -> Iterator[dict[str, str]]:
    """The entries of a list in which each is a `locality` and one thing more."""
    rules = entry.get(field) if isinstance(entry, dict) else None
    if rules is None:
        return
    for rule in rules if isinstance(rules, list) else [rules]:
        whole = isinstance(rule, dict) and set(rule) == {what, "locality"} and isinstance(rules, list)
        if not whole or not all(isinstance(text, str) and text for text in rule.values()):
            raise BadInput(f"{where}: `{field}` is a list in which each entry has `{what}` and `locality`, both of them text.")
        yield rule


def _place(text: str, where: str) -> Locality:
    place = _read_as(Locality.parse, text, where)
    if not place.tiers:
        raise BadInput(f"{where}: {text!r} is no locality; write it as in 'region=eu' or 'region=eu,zone=a'.")
    return place


def _count(value: object, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadInput(f"{where} must be a whole number from 1 on, not {value!r}.")
    return value


def _read_as(parse: Callable[[str], _T], value: object, where: str) -> _T:
    """The value by one of the model's parsers, whose error then says where it stands."""
    try:
        return parse(str(value))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


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
            parameters=_checked_numbers(
                {key: value for key, value in extra.items() if key in PASSED_PARAMETERS}, f"Connection {connection.conn_id!r}"
            ),
            locality=locality,
        )
    except ValidationError as error:
        raise BadInput(f"Connection {connection.conn_id!r} cannot be used: {error.errors()[0]['msg']}.") from None


def _known_parameters(parameters: dict[str, str], where: str) -> dict[str, str]:
    unknown = sorted(set(parameters) - PASSED_PARAMETERS)
    if unknown:
        raise BadInput(f"{where}: unknown connection parameters: {', '.join(unknown)}.")
    return _checked_numbers(parameters, where)


def _checked_numbers(parameters: dict[str, str], where: str) -> dict[str, str]:
    wrong = sorted(name for name in _NUMBERS & parameters.keys() if not re.fullmatch(r"[0-9]{1,9}", parameters[name]))
    if wrong:
        raise BadInput(f"{where}: {', '.join(wrong)} must be a whole number, as libpq takes it.")
    return parameters
