"""Full backup and restore against pg_dump and pg_restore, on the same database in one run.

    python -m benchmarks.full_backup [--shape lines|tables|documents] [--size 4000000] [--rounds 3] [--folder DIR]

Every tool runs as a command of its own with two processes, its start included, on a scratch server (without fsync). The
tools take turns, and the best of each tool's rounds counts. What matters are the ratios: seconds say more about the
machine than about the tools, and on a machine that does other work too CPU time (of both sides) says more than seconds.
Small tables measure little but the start of the commands.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from benchmarks.measure import Measurement, folder_bytes, run
from benchmarks.shapes import DATABASE, SHAPES, load
from spanvault.embedded.binaries import tool, tool_environment
from spanvault.embedded.postgres import PostgresServer

SERVER_SETTINGS = {
    "wal_level": "logical",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "autovacuum": "off",
    "max_locks_per_transaction": "512",  # thousands of tables are made in one transaction
}
DUMPS = {"pg_dump -Fd -j2 (gzip, its default)": "gzip", "pg_dump -Fd -j2 -Z1": "1"}
OURS = "spanvault"
ENCRYPTED = "spanvault, encrypted"
_KEY = "encryption_passphrase = 'what only a benchmark may have here'"
_OTHER_SESSIONS = "select from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
DEFAULT_DUMP, FAST_DUMP = DUMPS


def main() -> int:
    """Measure, print, and return 0."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="spanvault-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "server", settings=SERVER_SETTINGS) as server:
            shape = SHAPES[arguments.shape]
            load(server, shape, arguments.size or shape.size)
            bench = Bench(server, folder, arguments.rounds)
            bench.backups()
            bench.restores()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_backup", description="Full backup against pg_dump.")
    parser.add_argument("--shape", choices=SHAPES, default="lines", help="what the database looks like")
    parser.add_argument("--size", type=int, help=", ".join(f"{name}: {one.unit}" for name, one in SHAPES.items()))
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs; the best counts")
    parser.add_argument("--folder", type=Path, help="where server and backups are kept meanwhile (default: the system's)")
    return parser.parse_args()


class Bench:
    """The tools taking turns on one server."""

    def __init__(self, server: PostgresServer, folder: Path, rounds: int) -> None:
        self._server = server
        self._folder = folder
        self._rounds = rounds

    def backups(self) -> None:
        """Back the database up with every tool, and print the comparison."""
        tools: dict[str, Callable[[], Measurement]] = {OURS: self._backup, ENCRYPTED: self._backup_encrypted}
        tools |= {name: lambda name=name: self._dump(name) for name in DUMPS}  # type: ignore[misc]
        best = self._best(tools)
        sizes = {name: folder_bytes(self._place(name)) for name in tools}
        print("\nbackup")
        for name, measured in best.items():
            _print(name, measured, best[OURS], sizes[name])
        aim("as fast as pg_dump's default", best[DEFAULT_DUMP].seconds / best[OURS].seconds, 3.0)
        aim("as fast as pg_dump -Z1", best[FAST_DUMP].seconds / best[OURS].seconds, 1.2)
        aim("bytes of pg_dump's default", sizes[OURS] / sizes[DEFAULT_DUMP], 0.7, at_most=True)
        aim("times as long with encryption", best[ENCRYPTED].seconds / best[OURS].seconds, 1.05, at_most=True)
        aim("times the CPU with encryption", best[ENCRYPTED].cpu / best[OURS].cpu, 1.05, at_most=True)
        aim("MiB in one process", best[OURS].peak_memory / 2**20, 512, at_most=True)

    def restores(self) -> None:
        """Restore each backup into a new database, and print the comparison."""
        best = self._best({OURS: self._restore, ENCRYPTED: self._restore_encrypted, DEFAULT_DUMP: self._restore_dump})
        print("\nrestore")
        for name, measured in best.items():
            _print(name.replace("pg_dump -Fd", "pg_restore"), measured, best[OURS])
        aim("as fast as pg_restore", best[DEFAULT_DUMP].seconds / best[OURS].seconds, 1.0)
        aim("times as long with encryption", best[ENCRYPTED].seconds / best[OURS].seconds, 1.05, at_most=True)
        aim("MiB in one process", best[OURS].peak_memory / 2**20, 512, at_most=True)

    def _best(self, tools: dict[str, Callable[[], Measurement]]) -> dict[str, Measurement]:
        measured: dict[str, list[Measurement]] = {name: [] for name in tools}
        for _ in range(self._rounds):
            for name, work in tools.items():
                self._checkpoint()
                measured[name].append(work())
        return {name: min(runs, key=lambda one: one.seconds) for name, runs in measured.items()}

    def _checkpoint(self) -> None:
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            connection.execute("drop database if exists restored with (force)")
            connection.execute("checkpoint")
            # Until the sessions before have ended: their CPU time is the server's only then.
            while connection.execute(_OTHER_SESSIONS).fetchone():
                time.sleep(0.1)
            time.sleep(0.5)

    def _place(self, name: str) -> Path:
        return self._folder / "-".join(name.replace(",", "").split()[:4]).rstrip("(")

    def _dump(self, name: str) -> Measurement:
        place = self._place(name)
        shutil.rmtree(place, ignore_errors=True)
        command: list[str | Path] = [tool("pg_dump"), "-Fd", "-j2", f"-Z{DUMPS[name]}", "-f", place, self._server.url(DATABASE)]
        return run(command, self._server.pid, tool_environment())

    def _backup(self, place: str = OURS, options: str = "protection = 'none'") -> Measurement:
        shutil.rmtree(self._place(place), ignore_errors=True)
        return self._statement(f"BACKUP DATABASE {DATABASE} INTO 'file://{self._place(place)}' WITH {options}")

    def _backup_encrypted(self) -> Measurement:
        return self._backup(ENCRYPTED, f"protection = 'none', {_KEY}")

    def _restore(self, place: str = OURS, options: str = "new_db_name = 'restored'") -> Measurement:
        source = f"'file://{self._place(place)}'"
        return self._statement(f"RESTORE DATABASE {DATABASE} FROM LATEST IN {source} WITH {options}")

    def _restore_encrypted(self) -> Measurement:
        return self._restore(ENCRYPTED, f"new_db_name = 'restored', {_KEY}")

    def _restore_dump(self) -> Measurement:
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            connection.execute("create database restored")
        target = self._server.url("restored")
        command: list[str | Path] = [tool("pg_restore"), "-j2", "-d", target, self._place(DEFAULT_DUMP)]
        return run(command, self._server.pid, tool_environment())

    def _statement(self, statement: str) -> Measurement:
        return run_statement(self._server, statement)


def run_statement(server: PostgresServer, statement: str) -> Measurement:
    """Run a statement as a command of its own."""
    command: list[str | Path] = [Path(sys.executable).with_name("spanvault"), "sql", "--url", server.url(), statement]
    return run(command, server.pid)


def _print(name: str, measured: Measurement, ours: Measurement, size: int | None = None) -> None:
    written = f"{size / 1e6:10,.1f} MB" if size is not None else ""
    times = measured.seconds / ours.seconds
    client = measured.client_cpu / ours.client_cpu
    print(
        f"  {name:38} time x {times:5.2f}  CPU x {measured.cpu / ours.cpu:5.2f} (client x {client:5.2f})"
        f"  {measured.peak_memory / 2**20:6.0f} MiB{written}  ({measured.seconds:.1f} s, CPU {measured.cpu:.1f} s)"
    )


def aim(what: str, value: float, limit: float, *, at_most: bool = False) -> None:
    """Print a ratio, and whether it is what it should be."""
    met = value <= limit if at_most else value >= limit
    print(f"  {'met   ' if met else 'missed'}  {value:,.2f} {what} (aim: {'at most' if at_most else 'at least'} {limit:g})")


if __name__ == "__main__":
    sys.exit(main())
