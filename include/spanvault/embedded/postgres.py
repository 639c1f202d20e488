"""A PostgreSQL server of our own: for tests, the demo and restore drills.

It listens on 127.0.0.1 only (no unix socket: deep temporary folders make their names too long), its superuser is
`postgres`, and it trusts whoever reaches it: nothing but scratch data belongs into it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg

from spanvault.embedded.binaries import tool, tool_environment
from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.embedded.process import ServerProcess, runs
from spanvault.embedded.run_as import give_to_server, make_server_directory, server_identity
from spanvault.errors import Permanent, Retryable

_STATUS_LINE = 8  # of postmaster.pid (src/include/utils/pidfile.h, LOCK_FILE_LINE_PM_STATUS)


class PostgresServer:
    """One server with its data, log and process file below `directory`.

    `settings` go into a configuration file (not the command line, which ALTER SYSTEM could not change). fsync is
    off unless they say otherwise: a crash of the server alone loses nothing then, a crash of the machine does.
    `programs` is the folder of another PostgreSQL's programs, which every user may run.
    """

    SUPERUSER: ClassVar[str] = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        name: str = "postgres",
        port: int | None = None,
        programs: Path | None = None,
    ) -> None:
        self.directory = directory
        self.name = name
        self._programs = programs
        self._settings = dict(settings or {})
        self._port = port
        self._process: ServerProcess | None = None

    @classmethod
    def standby_of(
        cls,
        primary: PostgresServer,
        directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        name: str = "standby",
        port: int | None = None,
    ) -> PostgresServer:
        """A streaming standby of the running `primary`, copied into the new `directory` and not yet started.

        The primary keeps a physical slot `name`, so the standby never misses WAL. Raises Permanent if the copy fails.
        """
        together = {**primary._settings, **(settings or {})}
        standby = cls(directory, settings=together, name=name, port=port, programs=primary._programs)
        make_server_directory(directory)
        source = f"host={LOOPBACK} port={primary.port} user={cls.SUPERUSER} application_name={name}"
        copy = ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--create-slot", f"--slot={name}"]
        standby._run("pg_basebackup", f"--dbname={source}", f"--pgdata={standby.data}", "--no-sync", *copy)
        return standby

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """All the server ever wrote to its log."""
        return self.directory / "server.log"

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; the same over restarts."""
        if self._port is None:
            raise RuntimeError(f"{self.name} has no port before its first start")
        return self._port

    @property
    def pid(self) -> int:
        """The postmaster's process id, while it runs."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """`postgresql://postgres@127.0.0.1:port/database`."""
        return f"postgresql://{self.SUPERUSER}@{LOOPBACK}:{self.port}/{quote(database, safe='')}"

    def is_running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.is_running()

    def start(self, timeout: float = 120.0) -> None:
        """Create the data directory at the first start; return when the server takes connections.

        Raises Permanent with the log's last FATAL line if it ends instead, Retryable after `timeout` seconds.
        """
        if self.is_running():
            return
        if not (self.data / "PG_VERSION").exists():
            self._create()
        for _ in range(3):
            first_time = self._port is None
            self._port = self._port or free_ports(1)[0]
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._launch()
            if self._wait_until_ready(log_start, timeout):
                return
            reason = self._last_fatal(log_start)
            if not (first_time and "could not create any TCP/IP sockets" in reason):
                break
            self._port = None  # another program took the port between our look and now
        raise Permanent(f"PostgreSQL server {self.name!r} did not start: {reason} (log: {self.log}).")

    def stop(self, immediate: bool = False, timeout: float = 60.0) -> None:
        """Shut down cleanly, ending sessions; with `immediate` without a checkpoint, so the next start recovers."""
        if self._process is not None:
            self._process.terminate(signal.SIGQUIT if immediate else signal.SIGINT, timeout)
            self._process = None

    def kill(self) -> None:
        """SIGKILL to all of the server's processes at once, as a crash would end them; the data stays."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop cleanly and start on the same port."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Kill the server and delete all it has."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def promote(self, timeout: int = 60) -> None:
        """Make this running standby a primary on a new timeline."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("select pg_promote(true, %s)", [timeout])

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _create(self) -> None:
        make_server_directory(self.directory)
        shutil.rmtree(self.data, ignore_errors=True)  # what an initdb that was killed left
        staging = self.directory / "data.new"
        shutil.rmtree(staging, ignore_errors=True)
        who = ["--auth=trust", f"--username={self.SUPERUSER}", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", f"--pgdata={staging}", "--no-sync", "--no-instructions", *who)
        with (staging / "postgresql.conf").open("a") as configuration:
            configuration.write("include_if_exists 'spanvault.conf'\n")
        staging.rename(self.data)

    def _launch(self) -> None:
        self._forget_dead_postmaster()
        self._write_settings()
        self._process = ServerProcess.launch(
            [tool("postgres", self._programs), "-D", self.data],
            directory=self.directory,
            log=self.log,
            environment=tool_environment(),
            identity=server_identity(),
            guard_signal=signal.SIGQUIT,
        )

    def _write_settings(self) -> None:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "200",
            "logging_collector": "off",
            "log_line_prefix": "%m [%p] ",
            **self._settings,
        }
        lines = [f"{key} = '{value.replace(chr(39), chr(39) * 2)}'\n" for key, value in settings.items()]
        file = self.data / "spanvault.conf"
        file.write_text("".join(lines))
        give_to_server(file)

    def _wait_until_ready(self, log_start: int, timeout: float) -> bool:
        # As pg_ctl does: by the file of this very process. A connection could be answered by another server on the port.
        deadline = time.monotonic() + timeout
        while self.is_running():
            lines = self._pid_file_lines()
            if len(lines) >= _STATUS_LINE and lines[0] == str(self.pid) and lines[_STATUS_LINE - 1].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                self.kill()
                reason = f"took no connection within {timeout:g} s: {self._last_fatal(log_start)}"
                raise Retryable(f"PostgreSQL server {self.name!r} {reason} (log: {self.log}).")
            time.sleep(0.01)
        self.kill()  # collects what is left of it
        return False

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _forget_dead_postmaster(self) -> None:
        # PostgreSQL takes a zombie for a running server, and where process 1 collects no orphans a killed one stays one.
        lines = self._pid_file_lines()
        if lines and lines[0].isdigit() and not runs(int(lines[0])):
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _last_fatal(self, log_start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(log_start)
            lines = log.read().decode(errors="replace").splitlines()
        told = [line for line in lines if re.search(r"\b(FATAL|PANIC):", line)] or lines or ["it wrote no log"]
        return re.sub(r"^.*?\b(FATAL|PANIC):\s*", "", told[-1]).strip().rstrip(".")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own program
            [str(tool(program, self._programs)), *arguments],
            env=tool_environment(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            **server_identity(),
        )
        if done.returncode:
            told = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            reason = next((line for line in told if "error" in line), told[-1])
            raise Permanent(f"{program} for server {self.name!r} failed: {reason}.")
