"""Transfers among many accounts through a full and ten incrementals with revision history: at every time in between the
backup holds every account once, and all the money."""

from __future__ import annotations

import random
import threading
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pyarrow.compute as pc
import pytest

from spanvault.engine.restore_local import run_restore
from spanvault.merge.history import histories
from spanvault.merge.table import table_at
from spanvault.model.request import BackupOptions, RestoreOptions, RestoreRequest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, drop_database

ACCOUNTS, BALANCE, LAYERS, TIMES = 50_000, 1_000, 10, 100
RESTORED = 0.04  # of the times; at the others the rows are read that a restore would load


@pytest.mark.slow
def test_the_sum_holds_at_every_time(database: TestDatabase, tmp_path: Path) -> None:
    database.execute(
        f"create table account (id int primary key, balance bigint not null);"
        f"insert into account select i, {BALANCE} from generate_series(1, {ACCOUNTS}) i"
    )
    backup = Backup(database, tmp_path, options=BackupOptions(workers=1, revision_history=True))
    stop = threading.Event()
    counts, failures = [0] * 3, list[BaseException]()
    threads = [threading.Thread(target=_transfer, args=(database, stop, number, counts, failures)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        first = backup.take()
        for _ in range(LAYERS):
            stop.wait(0.2)
            last = backup.increment()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert sum(counts) > 300, "the writers hardly wrote, so the test shows nothing"
    chance = random.Random(7)
    length = (last.end.time - first.end.time) / timedelta(microseconds=1)
    states = set()
    for number in range(TIMES):
        moment = first.end.time + timedelta(microseconds=chance.randint(0, int(length)))
        resolved = backup.resolved(as_of=moment)
        (history,) = histories(backup.storage, resolved, lambda *_: True).values()
        batches = list(table_at(history, None))
        assert sum(batch.num_rows for batch in batches) == ACCOUNTS, f"at {moment}"
        assert sum(pc.sum(batch.column("balance")).as_py() for batch in batches) == ACCOUNTS * BALANCE, f"at {moment}"
        states.add(resolved.cut.lsn)
        if number < TIMES * RESTORED:
            _restore(backup, moment)
    assert len(states) > TIMES // 2, "most of the times are one state, so the test shows little"


def _restore(backup: Backup, moment: datetime) -> None:
    """The same of a database that is restored as of that time."""
    database = backup.database
    restored = TestDatabase(database.server, f"{database.name}_then")
    options = RestoreOptions(new_db_name=restored.name, workers=1)
    request = RestoreRequest(target=backup.request.target, collection=backup.uri, as_of=moment, options=options)
    try:
        run_restore(backup.context, database.cluster, request, processes=False)
        found = restored.execute("select count(*), count(distinct abs(id)), sum(balance)::int8 from account")
        assert found == [(ACCOUNTS, ACCOUNTS, ACCOUNTS * BALANCE)], f"at {moment}"
    finally:
        drop_database(database.server, restored.name)


def _transfer(
    database: TestDatabase, stop: threading.Event, number: int, counts: list[int], failures: list[BaseException]
) -> None:
    chance = random.Random(number)
    try:
        with psycopg.connect(database.url, autocommit=True) as session:
            while not stop.is_set():
                poor, rich = sorted(chance.sample(range(number + 1, ACCOUNTS + 1, 3), 2))
                amount = chance.randint(1, 50)
                with session.transaction():
                    session.execute("update account set balance = balance - %s where id = %s", (amount, poor))
                    if chance.random() < 0.1:
                        session.execute("update account set id = -id where id = %s", (poor,))
                        session.execute("update account set id = -id where id = %s", (-poor,))
                    if chance.random() < 0.1:
                        session.execute("with gone as (delete from account where id = %s returning *) insert into account"
                                        " select * from gone", (poor,))  # fmt: skip
                    session.execute("update account set balance = balance + %s where id = %s", (amount, rich))
                counts[number] += 1
                stop.wait(0.01)  # a slow machine's layers are to hold no more for it
    except BaseException as error:
        failures.append(error)
        raise
