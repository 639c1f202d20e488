"""Commit times that are not this server's now: transactions of a replication origin, and clocks that were set.

A transaction of an origin stamped by the test is a real one. Where its Origin message is kept from the decoder, it stands for
a local one that a wrong clock has stamped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spanvault.backup import cuts, layer_seal, seal
from spanvault.collection.commits import read_commits
from spanvault.database.postgres import snapshot
from spanvault.database.postgres.server import server_time
from spanvault.engine.schedule import plan_scheduled
from spanvault.errors import AlreadyCovered, Refused
from spanvault.model.cut import Lsn
from spanvault.model.manifest import Manifest
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase

pytestmark = pytest.mark.slow

FUTURE, PAST = datetime(2099, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[Backup]:
    database.execute("create table t (id int primary key, n int); insert into t select i, 0 from generate_series(1, 50) i")
    database.execute("select pg_replication_origin_create(current_database())")
    yield Backup(database, tmp_path / "collection")
    database.execute("select pg_replication_origin_drop(current_database())")


def now(backup: Backup) -> datetime:
    """The source's clock."""
    moment: datetime = backup.database.execute("select clock_timestamp()")[0][0]
    return moment.astimezone(UTC)


def write(backup: Backup, row: int, stamp: datetime | None = None) -> Lsn:
    """A transaction that changes a row, of now, or of a replication origin at another time; a position behind it."""
    with backup.database.connect(autocommit=False) as session:
        if stamp is not None:
            session.execute("select pg_replication_origin_session_setup(current_database())")
            session.execute("select pg_replication_origin_xact_setup('0/1', %s)", (stamp,))
        session.execute("update t set n = n + 1 where id = %s", (row,))
    return Lsn.parse(backup.database.execute("select pg_current_wal_insert_lsn()::text")[0][0])


def is_now(backup: Backup, moment: datetime) -> bool:
    return now(backup) - MINUTE < moment <= now(backup)


@pytest.fixture
def as_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Origin messages do not reach the decoder: stamps look like those of this server."""

    def without(real: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
        @contextmanager
        def peek(*given: Any, **options: Any) -> Iterator[Iterator[bytes]]:
            with real(*given, **options) as messages:
                yield (message for message in messages if message[:1] != b"O")

        return peek

    for module in (cuts, seal, layer_seal):
        monkeypatch.setattr(module, "peek", without(module.peek))


STAMPS = {"future": [FUTURE], "past": [PAST], "both": [FUTURE, PAST]}


@pytest.mark.parametrize("stamps", STAMPS.values(), ids=STAMPS)
def test_replicated_transactions_do_not_say_when_a_full_is_of(backup: Backup, stamps: Sequence[datetime]) -> None:
    """A full of the year 2099 would cover every interval up to then."""
    backup.at = {"export.all": lambda: [write(backup, 1, stamp) for stamp in stamps]}
    full = backup.take()
    assert is_now(backup, full.end.time)
    write(backup, 2)
    due = now(backup)
    rows = backup.source_rows("t")
    write(backup, 2)
    assert backup.rows(backup.increment(as_of=due), "t") == rows


@pytest.mark.parametrize("stamps", STAMPS.values(), ids=STAMPS)
@pytest.mark.parametrize("history", [False, True])
def test_nor_when_a_layer_by_hand_is_of(backup: Backup, stamps: Sequence[datetime], history: bool) -> None:
    backup.take()
    for stamp in stamps:
        write(backup, 1, stamp)
    layer = backup.increment(revision_history=history)
    assert is_now(backup, layer.end.time)
    window = layer.databases[0].window
    assert window.first_time is not None and window.newest_time is not None
    assert backup.resolved().layers[0].manifest.end.time <= window.first_time <= window.newest_time <= layer.end.time
    assert backup.rows(layer, "t") == backup.source_rows("t")


def test_inside_a_layer_replicated_transactions_have_the_time_of_what_came_before(backup: Backup) -> None:
    full = backup.take()
    held = []
    for row, stamp in enumerate((FUTURE, None, PAST, None, FUTURE), start=1):
        write(backup, row, stamp)
        held.append((now(backup), backup.source_rows("t")))
        write(backup, 50)
    layer = backup.increment(revision_history=True)
    reference = layer.databases[0].commits
    assert reference is not None
    times = [commit.time for commit in read_commits(backup.storage, layer.subdir, reference)]
    assert all(full.end.time <= time <= layer.end.time for time in times)
    for moment, rows in held:
        assert backup.rows(layer, "t", at=moment) == rows


def test_the_end_for_a_time_is_a_commit_of_this_server(backup: Backup) -> None:
    """Neither a replicated transaction of the future nor one of the past ends a layer."""
    backup.take()
    held = []
    for row in (1, 2, 3):
        write(backup, row, FUTURE)
        write(backup, row, PAST)
        held.append((now(backup), backup.source_rows("t")))
        write(backup, row)
    for due, rows in held:
        layer = backup.increment(as_of=due, revision_history=True)
        assert layer.end.time == due
        assert backup.rows(layer, "t") == rows


def test_a_full_and_a_plain_layer_go_on_where_a_clock_was_ahead(backup: Backup, as_local: None) -> None:
    """They are the way out, so they do not refuse; but neither is of a time that has not come."""
    backup.at = {"export.all": lambda: write(backup, 1, FUTURE)}
    assert is_now(backup, backup.take().end.time)
    write(backup, 1, FUTURE)
    layer = backup.increment()
    assert is_now(backup, layer.end.time)
    newest = layer.databases[0].window.newest_time
    assert newest is not None
    assert newest <= layer.end.time
    write(backup, 2)
    due, rows = now(backup), backup.source_rows("t")
    write(backup, 2)
    assert backup.rows(backup.increment(as_of=due), "t") == rows


def test_a_clock_that_is_ahead_by_less_than_is_allowed_counts(backup: Backup, as_local: None) -> None:
    """No commit of a layer is later than its end."""
    ahead = now(backup) + 2 * MINUTE
    backup.at = {"export.all": lambda: write(backup, 1, ahead)}
    assert backup.take().end.time == ahead
    write(backup, 1, ahead + MINUTE)
    assert backup.increment(revision_history=True).end.time == ahead + MINUTE


@pytest.mark.parametrize("step", ["ahead", "back"])
@pytest.mark.parametrize("what", ["history", "time"])
def test_where_times_matter_a_clock_that_was_set_is_refused(backup: Backup, as_local: None, step: str, what: str) -> None:
    """In the window itself, with a commit of right time before and, of the step back, none behind it."""
    backup.take()
    before = write(backup, 1)
    behind = write(backup, 2, now(backup) + HOUR if step == "ahead" else now(backup) - HOUR)
    due = now(backup)
    sentence = r"later than the source's clock" if step == "ahead" else r"clock was set back: .* and a later one at"
    with pytest.raises(Refused, match=sentence) as refused:
        backup.increment(revision_history=True) if what == "history" else backup.increment(as_of=due)
    positions = [Lsn.parse(word) for word in str(refused.value).split() if "/" in word and word[:2] == "0/"]
    assert any(before <= position < behind for position in positions)
    assert backup.rows(backup.increment(), "t") == backup.source_rows("t")


def taken_ahead(backup: Backup, monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> Manifest:
    """A full while the source's clock was ahead."""
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "server_time", lambda connection: server_time(connection) + ahead)
        full = backup.take()
    assert full.end.time > now(backup) + ahead - MINUTE
    return full


def test_a_chain_that_ends_in_the_future_covers_nothing(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every run would be skipped, and green, until that time has come."""
    ahead = taken_ahead(backup, monkeypatch, DAY)
    write(backup, 1)
    sentence = r"ends at .*, which the source's clock .* has not reached: .* new full backup"
    with pytest.raises(Refused, match=sentence):
        backup.increment(as_of=now(backup))
    with pytest.raises(Refused, match=r"clock was set back"):
        backup.increment(revision_history=True)
    request = backup.request.model_copy(update={"append": "LATEST"})
    for full_every in (timedelta(0), timedelta(days=7)):
        with pytest.raises(Refused, match=sentence):
            plan_scheduled(
                backup.context,
                backup.database.cluster,
                request,
                run_key="run",
                due=now(backup),
                interval_end=now(backup),
                missed=lambda after, upto: [],
                full_every=full_every,
            )
    plain = backup.increment()
    assert backup.rows(plain, "t") == backup.source_rows("t")
    assert plain.end.time == ahead.end.time, "a time in a later layer would be looked for in the earlier one"
    with pytest.raises(Refused, match=sentence):
        backup.increment(as_of=now(backup))
    full = backup.take()
    assert is_now(backup, full.end.time)
    due, rows = now(backup), backup.source_rows("t")
    write(backup, 2)
    assert backup.rows(backup.increment(as_of=due), "t") == rows


def test_an_end_that_is_ahead_by_less_than_is_allowed_covers(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_ahead(backup, monkeypatch, MINUTE * 2)
    with pytest.raises(AlreadyCovered):
        backup.increment(as_of=now(backup))
