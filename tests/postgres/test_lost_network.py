"""Networks between us and PostgreSQL that break: by a reset, or by falling silent for ever. Both are noticed, told in a sentence,
and the same statement continues."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from spanvault.config.clusters import Cluster, cluster_from_url
from spanvault.database.postgres.connect import connect, connection_parameters, tool_connection
from spanvault.database.postgres.copy_out import CopySession
from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.local import run_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import BadInput, Retryable
from spanvault.model.request import BackupOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.black_hole import runs
from tests.kit.harness import Backup
from tests.kit.servers import SOURCE_SETTINGS, TestDatabase, drop_database, fresh_database
from tests.kit.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

FILL = (
    "create table item (id int primary key, name text);"
    "insert into item select i, repeat(md5(i::text), 4) from generate_series(1, 40000) i"
)
MIDDLE = 2_600_000  # bytes on their way: behind a finished span, within the rows of another
SUM = "select count(*), sum(hashtextextended(item::text, 0)) from item"
OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
GIVEN = "keepalives_idle=3&keepalives_interval=4&keepalives_count=5&tcp_user_timeout=6000"


def options_of(one: socket.socket) -> list[int]:
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return [one.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in OPTIONS]


@pytest.mark.parametrize(("given", "wanted"), [("", [30, 10, 9, 120_000]), (GIVEN, [3, 4, 5, 6000])], ids=["default", "given"])
def test_every_session_probes_its_server(database: TestDatabase, given: str, wanted: list[int]) -> None:
    endpoint = cluster_from_url(f"{database.url}?{given}").primary
    with connect(endpoint) as session, socket.socket(fileno=session.fileno()) as seen:
        found = options_of(seen)
        seen.detach()
    assert found == wanted
    with CopySession(connection_parameters(endpoint)) as copying:
        assert options_of(copying._live._transport.get_extra_info("socket")) == wanted


def test_programs_of_postgresql_probe_too_and_show_no_secret() -> None:
    endpoint = cluster_from_url(f"postgresql://me:secret@host/shop?{GIVEN}&sslmode=require").primary
    assert conninfo_to_dict(tool_connection(endpoint, "a 'b'")) == {
        "dbname": "a 'b'",
        "keepalives_idle": "3",
        "keepalives_interval": "4",
        "keepalives_count": "5",
        "tcp_user_timeout": "6000",
    }


def test_zero_leaves_a_setting_to_the_system(database: TestDatabase) -> None:
    endpoint = cluster_from_url(f"{database.url}?keepalives_idle=0&tcp_user_timeout=0").primary
    with socket.create_server(("127.0.0.1", 0)) as untouched:
        own = untouched.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    with CopySession(connection_parameters(endpoint)) as copying:
        assert options_of(copying._live._transport.get_extra_info("socket")) == [own, 10, 9, 0]


def test_numbers_that_are_none_are_bad_input(database: TestDatabase) -> None:
    with pytest.raises(BadInput, match="--url: keepalives_count, tcp_user_timeout must be a whole number"):
        cluster_from_url(f"{database.url}?tcp_user_timeout=2min&keepalives_count=-1&connect_timeout=3")


def behind(proxy: TcpProxy, database: TestDatabase) -> Cluster:
    (endpoint,) = database.cluster.endpoints
    return database.cluster.model_copy(update={"endpoints": (endpoint.model_copy(update={"port": proxy.port}),)})


def test_a_reset_in_the_middle_of_rows(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(FILL)
    backup = Backup(database, tmp_path / "c", options=BackupOptions(span_bytes=1 << 20, workers=1))
    copy = TestDatabase(database.server, f"{database.name}_copy")
    restore = RestoreRequest(
        target=DatabaseTarget(names=(database.name,)), collection=backup.uri, options=RestoreOptions(new_db_name=copy.name)
    )
    try:
        with TcpProxy(database.server.port) as proxy:
            cluster = behind(proxy, database)
            proxy.after_bytes(MIDDLE, lambda: proxy.break_connections(reset=True))
            with pytest.raises(Retryable, match=rf"^Reading rows on 127.0.0.1:{proxy.port}/\w+ failed: .*\.$"):
                run_backup(backup.context, cluster, backup.request, processes=False)
            finished = {path: path.stat().st_mtime_ns for path in backup.folder.rglob("progress/*.json")}
            assert finished
            run_backup(backup.context, cluster, backup.request, processes=False)
            assert {path: path.stat().st_mtime_ns for path in finished} == finished

            proxy.after_bytes(MIDDLE, lambda: proxy.break_connections(reset=True))
            with pytest.raises(Retryable, match=r'^Loading rows into "public"."item" failed: .*\.$'):
                run_restore(backup.context, cluster, restore, processes=False)
            run_restore(backup.context, cluster, restore, processes=False)
        assert copy.execute(SUM) == database.execute(SUM)
    finally:
        drop_database(database.server, copy.name)


@pytest.fixture
def shop(servers_folder: Path) -> Iterator[TestDatabase]:
    """A database on a server that a Unix socket leads to."""
    folder = servers_folder / "hole"
    settings = {**SOURCE_SETTINGS, "unix_socket_directories": str(folder)}
    with PostgresServer(folder, settings=settings) as server, fresh_database(server, "shop") as database:
        database.execute(FILL)
        yield database


def test_a_host_that_vanishes_in_the_middle_of_rows(shop: TestDatabase, tmp_path: Path) -> None:
    """Read from, it is noticed by the probes; written to, by what it does not acknowledge."""
    soon = "keepalives_idle=1&keepalives_interval=1&keepalives_count=2&tcp_user_timeout=3000"
    at = ["sql", "--url", f"postgresql://postgres@127.0.0.1:{{port}}/{shop.name}?{soon}"]
    folder = tmp_path / "c"
    backup = f"BACKUP DATABASE {shop.name} INTO 'file://{folder}' WITH span_bytes = '1MiB', workers = 1"
    restore = f"RESTORE DATABASE {shop.name} FROM LATEST IN 'file://{folder}' WITH new_db_name = 'copy', workers = 1"
    found = runs(shop.server.directory / f".s.PGSQL.{shop.server.port}", MIDDLE, [[*at, backup], [*at, restore]])
    for (lost, ended), what in zip(found, ("Reading rows on", "Loading rows into"), strict=True):
        (line,) = [line for line in lost.errors.splitlines() if line.startswith("Error: ")]
        assert lost.code == 1, lost.errors
        assert line.startswith(f"Error: {what} "), line
        assert lost.seconds < 30
        assert ended.code == 0, ended.errors
    assert "Continuing the unfinished backup" in found[0][1].errors
    copy = TestDatabase(shop.server, "copy")
    assert copy.execute(SUM) == shop.execute(SUM)
