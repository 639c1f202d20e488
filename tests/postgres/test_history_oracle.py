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

CRASHING = 372


@pytest.fixture(scope="module")
def archiving() -> Iterator[tuple[PostgresServer, Recovery]]:
    with server_folder() as folder, archiving_server(folder) as both:
        yield both


# Each seed's history has DDL, a kill and a compaction, the last one's also a crash of the server. Where histories draw otherwise
# than they did, others are to be looked for.
@pytest.mark.parametrize("seed", [245, pytest.param(340, marks=pytest.mark.slow), pytest.param(CRASHING, marks=pytest.mark.slow)])
def test_cuts_equal_postgresqls_own_recovery(archiving: tuple[PostgresServer, Recovery], tmp_path: Path, seed: int) -> None:
    server, recovery = archiving

    def crash() -> None:
        server.kill()
        server.start()

    with fresh_database(server) as database:
        history = History(database, recovery, tmp_path / "collection", seed, crash if seed == CRASHING else None, pause=0.05)
        history.run(steps=3)
        history.compare(4, tables=4)
    recovery.close()
    assert history.compared > 8, "hardly a table was compared, so the test shows nothing"
    kinds = {"change", "DDL", "kill", "compaction"} | ({"crash"} if seed == CRASHING else set())
    assert {kind for kind, count in history.happened.items() if count} == kinds, history.log
