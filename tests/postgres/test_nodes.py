"""Which node is the primary is asked, not written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from spanvault.config.clusters import Cluster, Endpoint
from spanvault.database.postgres.nodes import NodeState, discover, probe, probe_all, with_primary
from spanvault.embedded.ports import free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.nodes import node_table
from spanvault.errors import Refused, Retryable
from spanvault.model.cut import Lsn
from tests.kit.command_line import answer, refusal
from tests.kit.servers import TestDatabase, endpoint_of
from tests.kit.standbys import PLACES, Nodes, running_nodes, someone_at_work, wait_for

CLOSED = {"port": free_ports(1)[0]}


@pytest.fixture(scope="module")
def nodes(servers_folder: Path) -> Iterator[Nodes]:
    with running_nodes(servers_folder / "nodes") as found:
        yield found


def test_the_primary_comes_first_wherever_it_is_written(nodes: Nodes) -> None:
    states = discover(nodes.cluster())
    assert [(state.name, state.role) for state in states] == [
        ("standby_us", "standby"),
        ("standby_b", "standby"),
        ("primary", "primary"),
    ]
    assert {state.timeline for state in states} == {1}
    assert len({state.system_identifier for state in states}) == 1
    assert [endpoint.node for endpoint in with_primary(nodes.cluster(), states).endpoints] == [
        "primary",
        "standby_us",
        "standby_b",
    ]


def test_a_standby_tells_how_far_it_is_and_who_works_on_it(nodes: Nodes) -> None:
    standby = TestDatabase(nodes.standby_b, "postgres")
    nodes.caught_up()
    assert probe(endpoint_of(nodes.standby_b)).replay_lag is not None
    standby.execute("select pg_wal_replay_pause()")
    try:
        position = nodes.commit_now()
        wait_for(nodes.standby_b, f"select pg_last_wal_receive_lsn() >= '{position}'::pg_lsn")
        with someone_at_work(nodes.standby_b):
            state = probe(endpoint_of(nodes.standby_b))
        assert state.replay_lag is not None
        assert state.replay_lag >= 0.5, "for half a second it has not replayed what it has received"
        assert state.active == 1
        assert state.replay_lsn is not None
        assert state.replay_lsn < Lsn.parse(position)
    finally:
        standby.execute("select pg_wal_replay_resume()")


def test_a_node_that_does_not_answer_is_a_state(nodes: Nodes) -> None:
    gone = nodes.endpoint(nodes.primary).model_copy(update={"node": "gone", **CLOSED})
    nobody = nodes.endpoint(nodes.primary).model_copy(update={"node": "nobody", "user": "nobody"})
    result = node_table(Cluster(name="c", endpoints=(gone, nobody, nodes.endpoint(nodes.primary))))
    first, second, third = result.dicts()
    assert (first["node"], first["role"]) == ("gone", "unreachable")
    assert "cannot be reached" in str(first["reason"])
    assert second["role"] == "unreachable"
    assert 'role "nobody" does not exist' in str(second["reason"])
    assert (third["role"], third["locality"], third["reason"]) == ("primary", "region=eu,zone=a", "")


def test_the_command_shows_the_nodes_even_without_a_primary(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for server in nodes.servers:
        monkeypatch.setenv(f"AIRFLOW_CONN_{server.name.upper()}", server.url())
    entries = [{"name": one.name, "conn_id": one.name, "locality": PLACES[one.name]} for one in nodes.servers]
    file = tmp_path / "clusters.yaml"
    file.write_text(yaml.safe_dump({"clusters": {"all": {"nodes": entries}, "standbys": {"nodes": entries[1:]}}}))
    monkeypatch.setenv("SPANVAULT_CLUSTERS_FILE", str(file))
    rows = answer(capsys, "cluster", "nodes", "all")
    assert [(row["node"], row["role"], row["locality"]) for row in rows] == [
        ("primary", "primary", "region=eu,zone=a"),
        ("standby_b", "standby", "region=eu,zone=b"),
        ("standby_us", "standby", "region=us,zone=a"),
    ]
    assert [row["role"] for row in answer(capsys, "cluster", "nodes", "standbys")] == ["standby", "standby"]
    assert "once" in refusal(capsys, 2, "cluster", "nodes", "all", "--cluster", "all")


def test_without_a_primary_it_may_come_back_and_two_are_refused(nodes: Nodes, postgres: PostgresServer) -> None:
    cluster = nodes.cluster()
    standbys = cluster.model_copy(update={"endpoints": cluster.endpoints[:2]})
    with pytest.raises(Retryable, match=r"has no primary at the moment: standby_us \(region=us,zone=a, standby\); standby_b"):
        with_primary(standbys, probe_all(standbys))
    mixed = cluster.model_copy(update={"endpoints": (nodes.endpoint(nodes.primary), endpoint_of(postgres))})
    with pytest.raises(Refused, match=r"are not copies of one server: primary to system .*; postgres to system"):
        with_primary(mixed, probe_all(mixed))
    both = [NodeState(name=name, role="primary", timeline=line, system_identifier="1") for name, line in (("a", 1), ("b", 2))]
    with pytest.raises(Refused, match=r"several nodes take writes: a \(timeline 1\) and b \(timeline 2\)"):
        with_primary(cluster, both)


def test_one_node_costs_no_connection() -> None:
    alone = Cluster(name="one", endpoints=(Endpoint(node="closed", user="postgres", host="127.0.0.1", port=CLOSED["port"]),))
    assert discover(alone) == ()
    assert with_primary(alone, ()) == alone
