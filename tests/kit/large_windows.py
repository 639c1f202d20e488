"""An incremental over a large window in a process of its own, whose memory can be told."""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

from spanvault.backup import layer_seal
from spanvault.backup.layer_log import LogPlace
from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase


def increment_apart(database: TestDatabase, folder: Path, *, history: bool, chunk_bytes: int | None = None) -> tuple[int, int]:
    """Take an incremental in a new process; the change rows on storage, and how far the process's memory grew beyond what
    it had before (bytes)."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_increment, database.name, database.server.port, folder, history, chunk_bytes).result()


def _increment(name: str, port: int, folder: Path, history: bool, chunk_bytes: int | None) -> tuple[int, int]:
    from spanvault.embedded.postgres import PostgresServer

    database = TestDatabase(PostgresServer(folder / "elsewhere", port=port), name)
    backup = Backup(database, folder, options=BackupOptions(workers=1, revision_history=history))
    before = _peak()
    place = partial(LogPlace, chunk_bytes=chunk_bytes) if chunk_bytes else LogPlace
    with mock.patch.object(layer_seal, "LogPlace", place):
        manifest = backup.increment()
    return manifest.databases[0].window.changes, _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
