"""The COPY session and the loader: transactions, errors, cancellation and memory, on a real server."""

from __future__ import annotations

import asyncio.runners
import gc
import itertools
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import asyncpg
import pyarrow as pa
import pytest

from spanvault.columnar.read import read_batches, verified_file
from spanvault.columnar.types import file_schema
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres import copy_out
from spanvault.database.postgres.connect import connect, connection_parameters
from spanvault.database.postgres.copy_in import copy_batches
from spanvault.database.postgres.copy_out import CopySession, export_query
from spanvault.errors import BadInput, Busy, NotFound, Permanent, Retryable, SpanvaultError
from spanvault.storage.base import Writer
from spanvault.storage.local import LocalStorage
from tests.kit.copying import export, local_storage, table_shape
from tests.kit.servers import TestDatabase


def session(at: TestDatabase, **changes: object) -> CopySession:
    return CopySession(connection_parameters(at.endpoint.model_copy(update=changes), purpose="test"))


def test_one_transaction_around_copies_and_queries(database: TestDatabase) -> None:
    """What others commit meanwhile is not seen, whichever way rows are read."""
    database.execute("create table t (i integer); insert into t select generate_series(1, 1000)")
    received: list[bytes] = []
    with session(database) as copying:
        copying.execute("begin isolation level repeatable read read only; lock table only public.t in access share mode")
        assert copying.fetch_row("select count(*) from public.t") == (1000,)
        database.execute("insert into t values (0)")
        copying.copy_out("select i from only public.t order by i", received.append)
        assert copying.fetch_all("select min(i), max(i) from public.t") == [(1, 1000)]
        assert copying.fetch_row("select 1 where false") is None
        copying.execute("commit")
    assert b"".join(received) == b"".join(b"%d\n" % i for i in range(1, 1001))


def test_a_lock_that_is_held_is_busy(database: TestDatabase) -> None:
    database.execute("create table t (i integer)")
    with database.connect(autocommit=False) as other, session(database) as copying:
        other.execute("lock table t in access exclusive mode")
        copying.execute("begin; set local lock_timeout = '50ms'")
        with pytest.raises(Busy) as caught:
            copying.execute("lock table only public.t in access share mode")
        copying.execute("rollback")
    assert caught.value.sqlstate == "55P03"


@pytest.mark.parametrize(
    ("query", "kind", "sqlstates"),
    [
        ("table public.missing", NotFound, ("42P01",)),
        ("select 1 / 0", Permanent, ("22012",)),
        ("select pg_terminate_backend(pg_backend_pid())", Retryable, ("57P01", "08003", "08006")),
    ],
)
def test_server_errors_become_ours(
    database: TestDatabase, query: str, kind: type[SpanvaultError], sqlstates: tuple[str, ...]
) -> None:
    for read in ("fetch_row", "copy_out"):
        with pytest.raises(kind) as caught, session(database) as copying:
            if read == "fetch_row":
                copying.fetch_row(query)
            else:
                copying.copy_out(query, lambda data: None)
        assert type(caught.value) is kind
        assert caught.value.sqlstate in sqlstates


def test_missing_privileges_are_bad_input(database: TestDatabase) -> None:
    role = f"reader_{database.name}"
    database.execute(f"create role {role} login; create table t (i integer)")
    try:
        with pytest.raises(BadInput) as caught, session(database, user=role) as copying:
            copying.copy_out("select i from public.t", lambda data: None)
        assert caught.value.sqlstate == "42501"
    finally:
        database.execute(f"drop role {role}")


@pytest.mark.parametrize(
    ("changes", "kind"), [({"port": 1}, Retryable), ({"database": "nowhere"}, NotFound), ({"user": "nobody at all"}, BadInput)]
)
def test_failed_connections(database: TestDatabase, changes: dict[str, object], kind: type[SpanvaultError]) -> None:
    with pytest.raises(kind) as caught, session(database, **changes):
        pass
    assert type(caught.value) is kind


def test_what_the_sink_raises_comes_out(database: TestDatabase) -> None:
    class EnoughError(Exception):
        pass

    def sink(data: bytes) -> None:
        raise EnoughError

    with pytest.raises(EnoughError), session(database) as copying:
        copying.copy_out("select generate_series(1, 10000000)", sink)


def test_a_connection_lost_in_the_middle_is_retryable(database: TestDatabase) -> None:
    def sink(data: bytes) -> None:
        database.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'spanvault test'")

    with pytest.raises(Retryable), session(database) as copying:
        copying.copy_out("select generate_series(1, 10000000)", sink)


def test_a_session_that_the_server_ends_between_two_statements_is_retryable(database: TestDatabase) -> None:
    """The server's last words may be there before the connection's end is: asyncpg then calls the next query its own defect."""

    async def query() -> None:
        raise asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")

    with pytest.raises(Retryable, match="another operation"), session(database) as copying:
        copying._run(query(), "A query")


class InterruptAt:
    """Ctrl-C at the n-th instruction of CopySession or of asyncio's Runner; `struck` says whether there were so many."""

    def __init__(self, n: int) -> None:
        self.struck = False
        self._left = n

    def __call__(self, frame: FrameType, event: str, _: object) -> InterruptAt | None:
        if frame.f_code.co_filename not in {copy_out.__file__, asyncio.runners.__file__}:
            return None
        frame.f_trace_opcodes = True
        self._left -= event == "opcode"
        if not self._left:
            self.struck = True
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return self


def test_an_interrupt_at_any_instruction_is_only_that(database: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """It comes out as itself, and asyncio does not log what was waiting meanwhile. (Python's warnings of work that was never
    awaited are not shown by the command.)"""
    for n in itertools.count(1, 7):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the Runner's may be left of the round before
        interrupt, before = InterruptAt(n), sys.gettrace()
        with warnings.catch_warnings(), suppress(KeyboardInterrupt), session(database) as copying:
            warnings.simplefilter("ignore")
            sys.settrace(interrupt)
            try:
                copying.execute("select 1")
                copying.copy_out("select 1", lambda _: None)
            finally:
                sys.settrace(before)
        if not interrupt.struck:
            break
    gc.collect()
    assert [record.message for record in caplog.records] == []
    assert n > 100


class BreakingStorage(LocalStorage):
    """Fails at the first byte of a data file."""

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        class Broken:
            def write(self, data: bytes | memoryview, /) -> int:
                raise Retryable("the network is down.")

        with super().open_write(key):
            yield Broken()


def test_a_failing_storage_stops_the_copy(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (i integer, t text)")
    table, storage = table_shape(database, "t"), BreakingStorage(tmp_path, "file:///")
    with pytest.raises(Retryable, match="the network is down"), session(database) as copying:
        export_query(copying, "select i, repeat(md5(i::text), 100) from generate_series(1, 1000000) i", table, storage, "data")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("spanvault")] == []
    assert list(storage.list()) == []


def test_a_failing_copy_leaves_no_file(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (i integer)")
    table, storage = table_shape(database, "t"), local_storage(tmp_path)
    with pytest.raises(Permanent), session(database) as copying:
        export_query(copying, "select 1 / (100000 - i) from generate_series(1, 200000) i", table, storage, "data")
    assert list(storage.list()) == []


def test_text_that_is_not_utf8_is_refused(database: TestDatabase, tmp_path: Path) -> None:
    name = f"{database.name}_ascii"
    database.execute(f"create database {name} encoding sql_ascii locale 'C' template template0")
    try:
        other = TestDatabase(database.server, name)
        other.execute(r"create table t (v text); insert into t values (E'caf\xe9')")
        with pytest.raises(BadInput, match="invalid byte sequence"):
            export(other, table_shape(other, "t"), local_storage(tmp_path))
    finally:
        database.execute(f"drop database {name} with (force)")


def test_text_columns_that_are_asked_for(database: TestDatabase, tmp_path: Path) -> None:
    database.execute("create table t (d date, n integer); insert into t values ('2020-02-29', 5)")
    table, storage = table_shape(database, "t"), local_storage(tmp_path)
    with session(database) as copying:
        written = export_query(copying, "select d, n from public.t", table, storage, "data", ["d"])
    with verified_file(storage, "data", sha256=written.sha256, size=written.bytes) as file:
        assert [batch.to_pylist() for batch in read_batches(file)] == [[{"d": "2020-02-29", "n": 5}]]
    assert written.text_columns == ("d",)


def test_loading_is_part_of_the_transaction(database: TestDatabase) -> None:
    database.execute("create table t (i integer primary key)")
    table = table_shape(database, "t")
    batches = [pa.record_batch({"i": pa.array(values, pa.int32())}) for values in ([1, 2], [3])]
    with connect(database.endpoint, autocommit=False) as connection:
        assert copy_batches(connection, "public.t", table.data_columns, iter(batches)) == 3
        connection.rollback()
    assert database.execute("select count(*) from t") == [(0,)]


def test_loading_twice_says_which_constraint(database: TestDatabase) -> None:
    database.execute("create table t (i integer primary key)")
    table = table_shape(database, "t")
    batch = pa.record_batch([pa.array([1, 1], pa.int32())], schema=file_schema(table))
    with pytest.raises(Permanent, match="t_pkey") as caught, connect(database.endpoint) as connection:
        copy_batches(connection, "public.t", table.data_columns, iter([batch]))
    assert caught.value.sqlstate == "23505"


def test_an_error_of_the_batches_comes_out_and_loads_nothing(database: TestDatabase) -> None:
    database.execute("create table t (i integer)")
    table = table_shape(database, "t")

    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"i": pa.array([1], pa.int32())})
        raise Retryable("the storage is away.")

    with pytest.raises(Retryable, match="the storage is away"), connect(database.endpoint) as connection:
        copy_batches(connection, "public.t", table.data_columns, batches())
    assert database.execute("select count(*) from t") == [(0,)]


def test_an_endpoint_with_ssl_parameters_is_understood(database: TestDatabase) -> None:
    """The test server has no TLS: asking for it must fail for that reason, and `prefer` must do without."""
    endpoint: Endpoint = database.endpoint
    with CopySession(connection_parameters(endpoint.model_copy(update={"parameters": {"sslmode": "prefer"}}))) as copying:
        assert copying.fetch_row("select 1") == (1,)
    with (
        pytest.raises(Retryable, match="SSL"),
        CopySession(connection_parameters(endpoint.model_copy(update={"parameters": {"sslmode": "require"}}))),
    ):
        pass
