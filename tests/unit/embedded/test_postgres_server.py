from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from spanvault.embedded.binaries import tool
from spanvault.embedded.ports import free_ports
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.process import runs, stop_leftover
from spanvault.embedded.run_as import server_identity
from spanvault.errors import BadInput, Permanent
from tests.kit.servers import server_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as made:
        yield made


def one(server: PostgresServer, statement: str) -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_what_was_committed_survives_kill_and_immediate_stop(folder: Path) -> None:
    with PostgresServer(folder / "a") as server:
        port = server.port
        one(server, "create table a as select generate_series(1, 1000) as i")
        server.kill()
        assert not server.is_running()
        server.start()
        assert server.port == port
        assert one(server, "select count(*) from a") == 1000
        assert "was not properly shut down" in server.log.read_text()
        one(server, "insert into a values (0)")
        server.stop(immediate=True)
        server.start()
        assert one(server, "select count(*) from a") == 1001
    assert not (folder / "a").exists()


def test_kill_leaves_no_process_of_the_server(folder: Path) -> None:
    with PostgresServer(folder / "a") as server, psycopg.connect(server.url()):
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert len(family) > 4
        server.kill()
        assert not [member for member in family if member.is_running() and runs(member.pid)]


def test_settings_hold_and_alter_system_can_change_what_is_not_given(folder: Path) -> None:
    with PostgresServer(folder / "a", settings={"wal_level": "logical", "cluster_name": "it's a name", "fsync": "on"}) as server:
        assert one(server, "show wal_level") == "logical"
        assert one(server, "show cluster_name") == "it's a name"
        assert one(server, "show fsync") == "on"
        assert one(server, "show unix_socket_directories") == ""
        assert one(server, "show server_encoding") == "UTF8"
        one(server, "alter system set fsync = off")
        one(server, "alter system set max_connections = 37")
        server.restart()
        assert (one(server, "show fsync"), one(server, "show max_connections")) == ("off", "37")


def test_a_standby_follows_and_can_be_promoted(folder: Path) -> None:
    with PostgresServer(folder / "a", settings={"wal_level": "logical"}) as primary:
        one(primary, "create table a as select 1 as i")
        with PostgresServer.standby_of(primary, folder / "b", name="b", settings={"max_connections": "250"}) as standby:
            assert one(standby, "select pg_is_in_recovery()") is True
            assert one(standby, "show max_connections") == "250"
            assert one(primary, "select application_name from pg_stat_replication") == "b"
            one(primary, "insert into a values (2)")
            target = one(primary, "select pg_current_wal_lsn()::text")
            while not one(standby, f"select pg_last_wal_replay_lsn() >= '{target}'"):
                time.sleep(0.02)
            assert one(standby, "select count(*) from a") == 2
            standby.promote()
            one(standby, "insert into a values (3)")
            assert one(primary, "select count(*) from a") == 2


def test_a_server_that_cannot_start_says_why_in_one_sentence(folder: Path) -> None:
    with PostgresServer(folder / "a") as server:
        server.stop()
        broken = PostgresServer(folder / "a", settings={"wal_level": "minimal"}, name="broken")
        with pytest.raises(Permanent) as error:
            broken.start()
        assert str(error.value) == (
            'PostgreSQL server \'broken\' did not start: WAL streaming ("max_wal_senders" > 0) requires "wal_level" '
            f'to be "replica" or "logical" (log: {server.log}).'
        )
        assert not broken.is_running()


def test_a_taken_port_that_was_asked_for_is_an_error(folder: Path) -> None:
    with PostgresServer(folder / "a") as server, pytest.raises(Permanent, match="'b' did not start: could not create any TCP/IP"):
        PostgresServer(folder / "b", name="b", port=server.port).start()


def test_an_initdb_that_was_killed_is_begun_again(folder: Path) -> None:
    (folder / "a" / "data.new" / "base").mkdir(parents=True)
    (folder / "a" / "data").mkdir()
    with PostgresServer(folder / "a") as server:
        assert one(server, "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as somebody else")
def test_root_is_told_that_a_folder_is_closed_to_the_servers_user(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    with pytest.raises(BadInput, match=rf"refuses root, and {folder}/closed is closed to other users"):
        PostgresServer(folder / "closed" / "a").start()


OWNER = """
import sys, time
from pathlib import Path
from spanvault.embedded.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]), port=int(sys.argv[2]))
server.start()
print(server.pid, flush=True)
sys.stdin.readline()
"""


def test_a_lost_owners_server_is_gone_and_the_next_one_goes_on(folder: Path) -> None:
    (port,) = free_ports(1)
    arguments = [sys.executable, "-c", OWNER, str(folder / "a"), str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        owner.kill()
        owner.wait()
    stop_leftover(folder / "a")
    assert not runs(pid)
    with PostgresServer(folder / "a", port=port) as server:
        assert one(server, "select 1") == 1


@pytest.mark.skipif(
    os.geteuid() != 0, reason="shows, as root, what a normal user gets; the other tests show it when one runs them"
)
def test_a_normal_user_runs_servers_as_himself(folder: Path) -> None:
    user = server_identity()["user"]
    os.chown(folder, user, -1)
    # The imports come first: Python's own folder may be closed to that user.
    drop = f"import os; os.setgroups([]); os.setgid({server_identity()['group']}); os.setuid({user})\n"
    script = OWNER.replace("server = ", drop + "server = ", 1)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "a"), str(free_ports(1)[0])],
        cwd=folder,
        env={**os.environ, "SPANVAULT_PG_BIN": str(tool("postgres").parent)},
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "a" / "server.log").stat().st_uid == user
