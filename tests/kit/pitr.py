"""PostgreSQL's own point-in-time recovery, as an oracle: a base backup, the archived log, and a server that stops anywhere.

It shares nothing with the product but the programs of PostgreSQL. Rules of recovery targets:
https://www.postgresql.org/docs/18/runtime-config-wal.html#RUNTIME-CONFIG-WAL-RECOVERY-TARGET; which record it stops at is
`recoveryStopsBefore` in src/backend/access/transam/xlogrecovery.c.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from spanvault.embedded.binaries import tool, tool_environment
from spanvault.embedded.postgres import PostgresServer
from spanvault.embedded.run_as import make_server_directory, server_identity
from spanvault.model.cut import Lsn, format_time
from tests.kit.servers import SOURCE_SETTINGS

_TIMEOUT = 60.0


@contextmanager
def archiving_server(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[tuple[PostgresServer, Recovery]]:
    """A source whose log is archived below `folder`, and what recovers from there; both end with the block."""
    archive = folder / "archive"
    make_server_directory(archive)
    own = {"archive_mode": "on", "archive_command": f'cp "%p" "{archive}/%f"', "track_commit_timestamp": "on"}
    with PostgresServer(folder / "source", settings={**SOURCE_SETTINGS, **own, **(settings or {})}, name="source") as source:
        recovery = Recovery(source, archive, folder)
        try:
            yield source, recovery
        finally:
            recovery.close()


class Recovery:
    """A base backup of the running `source`, taken now, and a read-only server restored from it to any later moment.

    Moments in ascending order are cheap: the server is restarted with a later target and goes on. An earlier one costs a
    copy of the base backup.
    """

    def __init__(self, source: PostgresServer, archive: Path, folder: Path) -> None:
        self._source = source
        self._archive = archive
        self._folder = folder / "recovered"
        self._base = folder / "base"
        self._server: PostgresServer | None = None
        self._known: str | None = None
        make_server_directory(folder)
        make_server_directory(self._base)

    def take_base(self) -> None:
        """Take the base backup; moments from here on can be had."""
        shutil.rmtree(self._base / "data", ignore_errors=True)
        dsn = f"host=127.0.0.1 port={self._source.port} user={PostgresServer.SUPERUSER}"
        subprocess.run(
            [
                str(tool("pg_basebackup")),
                f"--dbname={dsn}",
                f"--pgdata={self._base / 'data'}",
                "--checkpoint=fast",
                "--no-sync",
            ],
            env=tool_environment(),
            cwd=self._base,
            check=True,
            capture_output=True,
            **server_identity(),
        )

    def finish_log(self) -> None:
        """Put a commit behind everything and archive the log up to here, so that every earlier moment can be had."""
        with psycopg.connect(self._source.url(), autocommit=True) as session:
            session.execute("select pg_logical_emit_message(true, 'test', 'a commit after the moments')")
            session.execute("select pg_logical_emit_message(false, 'test', 'a record after that')")
            segment = _value(session, "select pg_walfile_name(pg_switch_wal())")
            deadline = time.monotonic() + _TIMEOUT
            while not (self._archive / segment).exists() or _value(session, _ARCHIVED, (segment,)) is not True:
                assert time.monotonic() < deadline, f"the source did not archive {segment}"
                time.sleep(0.02)

    def at_position(self, position: Lsn) -> PostgresServer:
        """The cluster with exactly the transactions whose commit record starts before `position`."""
        # Without `inclusive` recovery stops before the first record that starts at or behind the target.
        return self._stopped_at({"recovery_target_lsn": str(position), "recovery_target_inclusive": "off"}, position)

    def at_time(self, moment: datetime) -> PostgresServer:
        """The cluster with the transactions before the first record of an end (commit or abort) later than `moment`."""
        return self._stopped_at({"recovery_target_time": format_time(moment), "recovery_target_inclusive": "on"}, None)

    def replayed(self) -> Lsn:
        """The end of the last record that the recovered server has applied."""
        assert self._server is not None
        with psycopg.connect(self._server.url()) as session:
            return Lsn.parse(_value(session, "select pg_last_wal_replay_lsn()::text"))

    def close(self) -> None:
        """Stop the recovered server and delete its files."""
        if self._server is not None:
            self._server.remove()
            self._server = None

    def _stopped_at(self, target: Mapping[str, str], position: Lsn | None) -> PostgresServer:
        wanted = str(sorted(target.items()))
        if self._server is not None and self._server.is_running() and self._known == wanted:
            return self._server
        if self._server is not None and (position is None or position < self.replayed()):
            self.close()
        if self._server is None:
            self._copy_base()
        else:
            self._server.stop()
        settings = {
            **SOURCE_SETTINGS,
            "restore_command": f'cp "{self._archive}/%f" "%p"',
            "recovery_target_action": "pause",
            "recovery_target_timeline": "1",
            "hot_standby": "on",
            "archive_mode": "off",
            **target,
        }
        self._server = PostgresServer(self._folder, settings=settings, name="recovered")
        self._server.start()
        self._wait_until_paused(self._server)
        self._known = wanted
        return self._server

    def _copy_base(self) -> None:
        make_server_directory(self._folder)
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        copy = ["cp", "-a", str(self._base / "data"), str(self._folder / "data")]
        subprocess.run(copy, check=True, **server_identity())
        subprocess.run(["touch", str(self._folder / "data" / "recovery.signal")], check=True, **server_identity())

    def _wait_until_paused(self, server: PostgresServer) -> None:
        deadline = time.monotonic() + _TIMEOUT
        with psycopg.connect(server.url(), autocommit=True) as session:
            while _value(session, "select pg_get_wal_replay_pause_state()") != "paused":
                assert time.monotonic() < deadline, f"recovery does not end: {server.log.read_text()[-2000:]}"
                time.sleep(0.02)


_ARCHIVED = "select last_archived_wal >= %s from pg_stat_archiver"


def _value(session: psycopg.Connection[Any], query: str, parameters: tuple[object, ...] = ()) -> Any:
    row = session.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]
