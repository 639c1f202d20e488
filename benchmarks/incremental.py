"""Incremental backups against a full, and restores of a chain against that of a full, on one database in one run.

    python -m benchmarks.incremental [--rows 4000000] [--layers 10] [--folder DIR]

The database of `full_backup`, and fifty small tables. Each layer holds the changes of one per cent of all rows, picked at
random: updates, some deletions and insertions. What is compared is the time of commands, their start included.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import psycopg

from benchmarks.full_backup import SERVER_SETTINGS, aim, run_statement
from benchmarks.measure import Measurement
from benchmarks.shapes import DATABASE, SHAPES, load
from spanvault.embedded.postgres import PostgresServer

SMALL_TABLES = 50
CHURN = 0.01
DECODED = (200_000, 600_000, 1_800_000)


def main() -> int:
    """Measure, print, and return 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incremental", description="Incrementals against a full.")
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the largest table, of about 150 bytes each")
    parser.add_argument("--layers", type=int, default=10, help="incremental layers of the chain")
    parser.add_argument("--folder", type=Path, help="where server and backups are kept meanwhile (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spanvault-benchmark-", dir=arguments.folder) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "server", settings=SERVER_SETTINGS) as server:
            load(server, SHAPES["lines"], arguments.rows)
            bench = Chain(server, folder / "collection", arguments.rows)
            bench.make_small_tables()
            bench.compare(arguments.layers)
            bench.decode()
    return 0


class Chain:
    """One database and one collection."""

    def __init__(self, server: PostgresServer, folder: Path, rows: int) -> None:
        self._server = server
        self._folder = folder
        self._rows = rows
        self._random = random.Random(1)

    def make_small_tables(self) -> None:
        """Tables that a restore of one table has to tell apart."""
        rows = max(1000, self._rows // 200)
        for number in range(SMALL_TABLES):
            self._execute(f"create table small_{number} (id int primary key, note text)")
            self._execute(f"insert into small_{number} select i, md5(i::text) from generate_series(1, {rows}) i")

    def compare(self, layers: int) -> None:
        """A full, its restore, the layers, and the restore of all."""
        shutil.rmtree(self._folder, ignore_errors=True)
        full = self._run(f"BACKUP DATABASE {DATABASE} INTO '{self._uri}'")
        plain = self._restore()
        incremental: list[Measurement] = []
        for _ in range(layers):
            self._churn()
            incremental.append(self._run(f"BACKUP DATABASE {DATABASE} INTO LATEST IN '{self._uri}'"))
        merged = self._restore()
        one = self._restore_one()
        times = sorted(measured.seconds for measured in incremental)
        print(f"\nfull backup {_told(full)}; an incremental after 1 % of churn {_told(incremental[-1])}")
        print(f"  {layers} incrementals: {times[0]:.1f} to {times[-1]:.1f} s")
        print(f"restore of the full {_told(plain)}, of the full and {layers} incrementals {_told(merged)}")
        print(f"restore of one of {SMALL_TABLES} small tables {_told(one)}")
        aim("of the full's time for an incremental after 1 % of churn", times[len(times) // 2] / full.seconds, 0.05, at_most=True)
        aim("of the full's CPU time for it", incremental[-1].cpu / full.cpu, 0.05, at_most=True)
        aim(f"times a full's restore for a full and {layers} incrementals", merged.seconds / plain.seconds, 1.2, at_most=True)
        aim("of the whole restore's time for one small table", one.seconds / merged.seconds, 0.2, at_most=True)

    def decode(self) -> None:
        """How the time of a layer grows with its changes."""
        print("\nchanges in one layer")
        for changes in DECODED:
            changed = min(changes, self._rows)
            self._execute(f"update lineitem set l_tax = l_tax + 0.01 where l_orderkey <= {changed // 4}")
            measured = self._run(f"BACKUP DATABASE {DATABASE} INTO LATEST IN '{self._uri}'")
            rate, wall = changed / measured.client_cpu, changed / measured.seconds
            print(f"  {changed:>10,}: {rate:,.0f} a CPU second, {wall:,.0f} a second; {_told(measured)}")

    @property
    def _uri(self) -> str:
        return f"file://{self._folder}"

    def _churn(self) -> None:
        orders = self._rows // 4  # of four line items each
        with psycopg.connect(self._server.url(DATABASE)) as connection:
            connection.execute(f"select setseed({self._random.random()})".encode())
            connection.execute("create temp table picked (id bigint) on commit drop")
            pick = f"insert into picked select 1 + (random() * {orders})::bigint from generate_series(1, {int(orders * CHURN)})"
            connection.execute(pick.encode())
            chosen = "in (select id from picked)"
            connection.execute(f"update lineitem set l_quantity = l_quantity + 1 where l_orderkey {chosen}".encode())
            connection.execute(f"update orders set o_updated = now() where o_orderkey {chosen}".encode())
            connection.execute(f"delete from events where id {chosen} and id % 10 = 0".encode())
            connection.execute(f"update events set amount = coalesce(amount, 0) + 1 where id {chosen}".encode())

    def _restore(self) -> Measurement:
        self._execute("drop database if exists restored with (force)", database="postgres")
        self._execute("checkpoint")
        return self._run(f"RESTORE DATABASE {DATABASE} FROM LATEST IN '{self._uri}' WITH new_db_name = 'restored'")

    def _restore_one(self) -> Measurement:
        self._execute("drop database if exists restored with (force)", database="postgres")
        self._execute("create database restored", database="postgres")
        table = f"{DATABASE}.public.small_{SMALL_TABLES // 2}"
        return self._run(f"RESTORE TABLE {table} FROM LATEST IN '{self._uri}' WITH into_db = 'restored'")

    def _run(self, statement: str) -> Measurement:
        return run_statement(self._server, statement)

    def _execute(self, statement: str, database: str = DATABASE) -> None:
        with psycopg.connect(self._server.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())


def _told(measured: Measurement) -> str:
    return f"{measured.seconds:.1f} s (CPU {measured.cpu:.1f} s, {measured.peak_memory / 2**20:.0f} MiB)"


if __name__ == "__main__":
    sys.exit(main())
