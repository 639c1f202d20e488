"""Random histories: whatever several writers did, and whatever was backed up, killed, tried again, merged and asked for,
each restorable cut holds what PostgreSQL's own point-in-time recovery gives there. `make soak` runs many more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from tests.kit.histories import History
from tests.kit.pitr import Recovery, archiving_server
from tests.kit.servers import fresh_database, server_folder


@pytest.fixture(scope="module")
def archiving() -> Iterator[tuple[PostgresServer, Recovery]]:
    with server_folder() as folder, archiving_server(folder) as both:
        yield both


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_cuts_equal_postgresqls_own_recovery(archiving: tuple[PostgresServer, Recovery], tmp_path: Path, seed: int) -> None:
    server, recovery = archiving
    with fresh_database(server) as database:
        history = History(database, recovery, tmp_path / "collection", seed, pause=0.05)
        history.run(steps=3)
        history.compare(4, tables=4)
    recovery.close()
    assert history.compared > 8, "hardly a table was compared, so the test shows nothing"
