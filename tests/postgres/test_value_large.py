"""Values of 100 MB come back, and no step of a backup or a restore takes more than 2 GiB of memory for them
(docs/scale.md)."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from spanvault.embedded.postgres import PostgresServer
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import compact_backups
from spanvault.engine.restore_local import run_restore
from spanvault.model.request import BackupOptions, BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.harness import Notes
from tests.kit.servers import TestDatabase, drop_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT = 2 << 30
# Text whose CSV is longer than it is, and bytes whose text is twice as long.
TEXT = "repeat(E'\"é,\\n\\\\' || {n}, 15000000)"
BYTES = "decode(repeat('005c22ff0a0d2c0{n}', 25 << 19), 'hex')"
BUILD = f"""
    CREATE TABLE large (id integer PRIMARY KEY, n integer, t text, b bytea);
    ALTER TABLE large ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
    INSERT INTO large VALUES (1, 0, {TEXT.format(n=1)}, NULL), (2, 0, NULL, {BYTES.format(n=1)}), (3, 0, 'small', '');
"""
# One row keeps its value, one gets another, and one takes its value along to another key.
CHANGES = (
    "UPDATE large SET n = 1 WHERE id = 1",
    f"UPDATE large SET b = {BYTES.format(n=2)} WHERE id = 2",
    "UPDATE large SET id = 7 WHERE id = 1",
    f"INSERT INTO large VALUES (4, 0, {TEXT.format(n=4)}, NULL)",
    "DELETE FROM large WHERE id = 3",
)
LOOK = "SELECT id, n, octet_length(t), md5(t), length(b), md5(b) FROM large ORDER BY id"


def test_values_of_100_megabytes(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(BUILD)
    port, name, folder = database.server.port, database.name, tmp_path
    peaks = {"full": _apart(_back_up, port, name, folder, None)}
    for statement in CHANGES:
        database.execute(statement)
    peaks["incremental"] = _apart(_back_up, port, name, folder, "LATEST")
    wanted = database.execute(LOOK)
    assert [max(row[2] or 0, row[4] or 0) >= 100_000_000 for row in wanted] == [True, True, True]
    for step in ("restore", "restore of compacted layers"):
        target = TestDatabase(database.server, f"{name}_r")
        try:
            peaks[step] = _apart(_restore, port, name, folder, target.name)
            assert target.execute(LOOK) == wanted
        finally:
            drop_database(database.server, target.name)
        if step == "restore":
            peaks["compaction"] = _apart(_compact, port, name, folder, None)
    assert max(peaks.values()) < LIMIT, peaks


def _apart(work: Callable[[TestDatabase, str, str | None], object], port: int, name: str, folder: Path, given: str | None) -> int:
    """Do the work in a new process; the most memory that it had, in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, port, name, folder, given).result()


def _measured(
    work: Callable[[TestDatabase, str, str | None], object], port: int, name: str, folder: Path, given: str | None
) -> int:
    work(TestDatabase(PostgresServer(folder / "elsewhere", port=port), name), f"file://{folder}/collection", given)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _back_up(source: TestDatabase, uri: str, append: str | None) -> None:
    options = BackupOptions(protection="1h", workers=1)
    request = BackupRequest(target=DatabaseTarget(names=(source.name,)), into=uri, append=append, options=options)
    run_backup(Context(progress=Notes()), source.cluster, request, processes=False)


def _restore(source: TestDatabase, uri: str, new_name: str | None) -> None:
    options = RestoreOptions(new_db_name=new_name)
    request = RestoreRequest(target=DatabaseTarget(names=(source.name,)), collection=uri, options=options)
    run_restore(Context(progress=Notes()), source.cluster, request, processes=False)


def _compact(source: TestDatabase, uri: str, _: str | None) -> None:
    compact_backups(Context(progress=Notes()), uri, "LATEST", first=0, number=1)
