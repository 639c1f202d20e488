"""clusters.yaml: what may stand in it, what each mistake is told, and which rule counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spanvault.config.clusters import Cluster, cluster_queues, load_cluster
from spanvault.config.connections import EnvironmentConnections
from spanvault.errors import BadInput
from spanvault.model.locality import Locality

CONNECTIONS = EnvironmentConnections({
    "AIRFLOW_CONN_DB": json.dumps({"conn_type": "postgres", "host": "db.example", "login": "backup"})
})
NODE = "{name: a, conn_id: db}"


def load(tmp_path: Path, cluster: str) -> Cluster:
    file = tmp_path / "clusters.yaml"
    file.write_text(f"clusters:\n  shop: {{{cluster}}}\n")
    return load_cluster(file, "shop", CONNECTIONS)


def test_limits_of_nodes_and_cluster(tmp_path: Path) -> None:
    node = "{name: a, conn_id: db, locality: 'region=eu,zone=a', max_connections: 4, rate_limit: 50MB}"
    cluster = load(tmp_path, f"nodes: [{node}, {{name: b, conn_id: db}}], max_replay_lag: 1m30s, max_active: 20, pool: p")
    assert (cluster.max_replay_lag, cluster.max_active) == (90, 20)
    first, second = cluster.endpoints
    assert (first.max_connections, first.rate_limit, first.session_rate) == (4, 50_000_000, 12_500_000)
    assert (second.max_connections, second.rate_limit, second.session_rate) == (None, None, 0)
    assert cluster.endpoint("b") == second
    assert cluster.endpoint("c") is None


def test_the_most_specific_queue_counts(tmp_path: Path) -> None:
    rules = "[{locality: region=eu, queue: eu}, {locality: 'region=eu,zone=b', queue: eu_b}, {locality: region=us, queue: us}]"
    cluster = load(tmp_path, f"nodes: [{NODE}], queues: {rules}")
    assert cluster.queue_of("region=eu,zone=b") == "eu_b"
    assert cluster.queue_of("region=eu,zone=a") == "eu"
    assert cluster.queue_of(Locality.parse("region=us")) == "us"
    assert cluster.queue_of("region=asia") is None
    assert cluster.queue_of("") is None


def test_the_queues_of_all_clusters_each_once(tmp_path: Path) -> None:
    file = tmp_path / "clusters.yaml"
    one = f"{{nodes: [{NODE}], queues: [{{locality: region=eu, queue: eu}}]}}"
    two = f"{{nodes: [{NODE}], queues: [{{locality: region=us, queue: us}}, {{locality: region=eu, queue: eu}}]}}"
    file.write_text(f"clusters:\n  one: {one}\n  two: {two}\n  three: {{nodes: [{NODE}]}}\n")
    assert cluster_queues(file) == [("region=eu", "eu"), ("region=us", "us")]


def test_tables_are_excluded_by_patterns_that_cover_whole_names(tmp_path: Path) -> None:
    cluster = load(tmp_path, f"nodes: [{NODE}], exclude_data: ['shop.public.log', '*.*.tmp_*']")
    named = [
        ("shop", "public", "log"),
        ("shop", "public", "log2"),
        ("other", "public", "log"),
        ("a.b", "c", "tmp_\n"),
        ("a", "b", "tmp"),
    ]
    assert [cluster.excludes(*names) for names in named] == [True, False, False, True, False]
    assert not load(tmp_path, f"nodes: [{NODE}]").excludes("shop", "public", "log")


def test_the_first_placement_that_covers_a_table_counts(tmp_path: Path) -> None:
    rules = "[{tables: 'shop.public.*_eu', locality: region=eu}, {tables: 'shop.*.*', locality: region=us}]"
    cluster = load(tmp_path, f"nodes: [{NODE}], placement: {rules}")
    assert str(cluster.placed("shop", "public", "orders_eu")) == "region=eu"
    assert str(cluster.placed("shop", "public", "orders_eu2")) == "region=us"
    assert str(cluster.placed("shop", "a.b", "orders\nof_eu")) == "region=us"
    assert cluster.placed("other", "public", "orders_eu") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"nodes: [{NODE}], node: 1", "cluster 'shop' has unknown fields: node."),
        ("nodes: [{name: a, conn_id: db, max_conections: 3}]", "node 'a' has unknown fields: max_conections."),
        ("nodes: [{name: a, conn_id: db, max_connections: 0}]", "max_connections must be a whole number from 1 on, not 0."),
        ("nodes: [{name: a, conn_id: db, max_connections: true}]", "max_connections must be a whole number from 1 on, not True."),
        ("nodes: [{name: a, conn_id: db, rate_limit: 50MB}]", "node 'a' has a rate_limit; it also needs max_connections"),
        ("nodes: [{name: a, conn_id: db, max_connections: 1, rate_limit: fast}]", "rate_limit: 'fast' is not a size"),
        ("nodes: [{name: a, conn_id: db, max_connections: 1, rate_limit: 0}]", "rate_limit must be a whole number from 1 on"),
        ("nodes: [{name: a, conn_id: db, locality: eu}]", "node 'a': Locality 'eu': tier must be in the form"),
        (f"nodes: [{NODE}, {NODE}]", "several nodes of the name a"),
        (f"nodes: [{NODE}], max_replay_lag: 30", "max_replay_lag: '30' is not a duration"),
        (f"nodes: [{NODE}], max_active: many", "max_active must be a whole number from 1 on, not 'many'."),
        (f"nodes: [{NODE}], queues: [{{locality: region=eu}}]", "`queues` is a list in which each entry has `queue` and"),
        (f"nodes: [{NODE}], queues: {{locality: region=eu, queue: q}}", "`queues` is a list in which each entry has `queue` and"),
        (f"nodes: [{NODE}], queues: [{{locality: ' ', queue: q}}]", "queues: ' ' is no locality"),
        (f"nodes: [{NODE}], placement: [{{tables: orders, locality: region=eu}}]", "write tables as database.schema.table"),
        (f"nodes: [{NODE}], exclude_data: [orders]", "`exclude_data` is a list of tables, each as database.schema.table"),
        (f"nodes: [{NODE}], exclude_data: a.b.c", "`exclude_data` is a list of tables"),
        (f"nodes: [{NODE}], placement: [{{tables: a.b.c, locality: eu}}]", "placement: Locality 'eu': tier must be"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
