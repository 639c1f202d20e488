"""The bank test: money is moved while the backup runs; no more and no less of it is in the backup."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import psycopg

from spanvault.model.request import BackupOptions
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

ACCOUNTS = 5_000
BALANCE = 1_000


def test_transfers_during_the_whole_backup_keep_sum_and_count(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(
        f"""create table account (id int primary key, balance bigint not null, note text);
            insert into account select i, {BALANCE}, repeat('x', i % 300) from generate_series(1, {ACCOUNTS}) i"""
    )
    stop = threading.Event()
    counts = [0] * 4
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_transfer, args=(database, stop, index, counts, failures)) for index in range(4)]
    for thread in threads:
        thread.start()
    try:
        options = BackupOptions(span_bytes=64 << 10, workers=1, fingerprint=True)
        backup = Backup(database, tmp_path, options=options)
        manifest = backup.take()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert sum(counts) > 100, "the writers hardly wrote, so the test shows nothing"
    texts = backup.rows(manifest, "account")
    rows = [row.strip("()").split(",") for row in texts]
    assert len(rows) == ACCOUNTS
    assert sum(int(row[1]) for row in rows) == ACCOUNTS * BALANCE
    assert backup.capture(manifest, "account") == "log"
    (table,) = manifest.databases[0].tables
    hashed = database.execute("select sum(hashtextextended(row, 0)::numeric)::text from unnest(%s::text[]) as row", [texts])
    assert table.fingerprint is not None
    assert (table.rows, table.fingerprint.rows, table.fingerprint.hash) == (ACCOUNTS, ACCOUNTS, hashed[0][0])


def _transfer(
    database: TestDatabase, stop: threading.Event, index: int, counts: list[int], failures: list[BaseException]
) -> None:
    """Moves money, moves accounts to other ids and back (key changes), deletes and re-inserts, until told to stop."""
    chance = random.Random(index)
    try:
        with psycopg.connect(database.url, autocommit=True) as session:
            session.execute("set synchronous_commit = off" if index % 2 else "set synchronous_commit = on")
            while not stop.is_set():
                a, b = sorted(chance.sample(range(index + 1, ACCOUNTS + 1, 4), 2))
                with session.transaction():
                    session.execute("update account set balance = balance - 7 where id = %s", (a,))
                    session.execute("update account set balance = balance + 7, note = note || 'y' where id = %s", (b,))
                    if chance.random() < 0.2:
                        session.execute("update account set id = -id where id = %s", (a,))
                        session.execute("update account set id = -id where id = %s", (-a,))
                    if chance.random() < 0.2:
                        session.execute(
                            "with gone as (delete from account where id = %s returning *) insert into account select * from gone",
                            (b,),
                        )
                counts[index] += 1
    except BaseException as error:
        failures.append(error)
        raise
