"""Faults of the database: a point before and after every statement that the product sends, in its own words.

`faulty_database(faults)` lets every session that the product opens reach these points of `faults` (tests/kit/faults.py);
the key is `<purpose>: <statement>`, the purpose as in pg_stat_activity, the statement on one line and cut short:

    database.connect.before    nothing sent yet (the key has no statement)
    database.execute.before    the server knows nothing of the statement
    database.execute.after     it has done it, and the answer is lost
    database.copy.before, .chunk, .after    the same of a COPY in either direction; `chunk` is in the middle of its bytes
    database.commit.before, .after          the end of a transaction block: not committed; committed, and the answer lost
    tool.<program>.start       pg_dump, pg_dumpall or pg_restore is started

Where no session of the test's own shows up: those the product opens are named `spanvault ...`, and `spanvault test` is the
test's. Actions that harm the very session that reached the point are methods of what the block gives:

    with faulty_database(faults) as database:
        faults.add_fault("database.execute.before", key="seal: BEGIN*", action=database.terminate)   # pg_terminate_backend
        faults.add_fault("database.commit.after", action=database.lose)                              # the answer is lost
        faults.add_fault("tool.pg_dump.start", action=database.kill_tool)                            # SIGKILL
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from spanvault.database.postgres.copy_out import CopySession
from spanvault.errors import Retryable
from tests.kit.faults import Faults

_TEST = "spanvault test"
_TOOLS = frozenset({"pg_dump", "pg_dumpall", "pg_restore"})
_LOST = "server closed the connection unexpectedly"
_WORDS = 60
# Names that differ from run to run: ids, positions, numbers, slots.
_VARYING = re.compile(
    r"(?<=spanvault_)[0-9a-f]{6,}|[0-9A-F]{8}-[0-9A-F]{8}-\d+|[0-9a-f]{8}-[0-9a-f-]{8,}|[0-9A-F]+/[0-9A-F]+|\b[0-9a-f]{7,}\b|\d+"
)


@dataclass
class _Reached:
    """The session that reached a point: how the server ends it, how its connection breaks, and what is raised then."""

    terminate: Callable[[], None]
    hang_up: Callable[[], None]
    lost: Callable[[], BaseException]


class DatabaseFaults:
    """What can happen to the session that reached a point."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._here = threading.local()

    def terminate(self) -> None:
        """The server ends the session, as an administrator's pg_terminate_backend does. What is sent next fails."""
        self._session.terminate()

    def lose(self) -> None:
        """The connection breaks: what was done may be done, and its answer never comes."""
        self._session.hang_up()
        raise self._session.lost()

    def refuse(self) -> None:
        """Nobody listens there."""
        raise self._session.lost()

    def full(self) -> None:
        """The server has no room left, as it says then (53100)."""
        raise psycopg.errors.DiskFull("could not extend file: No space left on device")

    def kill_tool(self) -> None:
        """The program that is just started is killed at once."""
        self._here.kill_tool = True

    @property
    def _session(self) -> _Reached:
        return cast(_Reached, self._here.session)

    def reach(self, point: str, purpose: str, statement: object, session: _Reached) -> None:
        """A session reaches a point with a statement."""
        self._here.session = session
        self.faults.reach(f"database.{point}", f"{purpose}: {_words(statement)}".rstrip(": "))

    def starts(self, program: str) -> bool:
        """A tool is started; whether it is to be killed."""
        self._here.kill_tool = False
        self.faults.reach(f"tool.{program}.start", program)
        return bool(self._here.kill_tool)


def _words(statement: object) -> str:
    """A statement on one line, the same in every run."""
    if isinstance(statement, psycopg.sql.Composable):
        statement = statement.as_string(None)
    text = statement.decode() if isinstance(statement, bytes) else str(statement)
    return _VARYING.sub("N", " ".join(text.split()))[:_WORDS]


def kind_of(key: str) -> str:
    """The key without names that differ from test to test: what one kind of statement has in common."""
    return _VARYING.sub("N", key)


@contextmanager
def faulty_database(faults: Faults) -> Iterator[DatabaseFaults]:
    """While the block lasts every session of the product in this process reaches the points of `faults`."""
    harm = DatabaseFaults(faults)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg, "connect", _connecting(harm, psycopg.connect))
        patch.setattr(subprocess, "Popen", _starting(harm, subprocess.Popen))
        _patch_copy_session(patch, harm)
        yield harm


def _purpose(parameters: dict[str, Any]) -> str | None:
    """What a session of the product is for; None of any other."""
    name = str(parameters.get("application_name", ""))
    if not name.startswith("spanvault") or name == _TEST:
        return None
    return kind_of(name.removeprefix("spanvault").strip() or "plain")


def _connecting(harm: DatabaseFaults, original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(*arguments: Any, **parameters: Any) -> Any:
        purpose = _purpose(parameters)
        if purpose is None:
            return original(*arguments, **parameters)
        harm.reach("connect.before", purpose, "", _Reached(_nothing, _nothing, _Connection.lost))
        connection = _Connection.connect(*arguments, **parameters)
        connection.harm, connection.purpose = harm, purpose
        return connection

    return connect


class _Cursor(psycopg.Cursor[Any]):
    """A cursor whose statements reach points."""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        one = cast(_Connection, self.connection)
        one.reach("execute.before", query)
        found = super().execute(query, *arguments, **options)
        one.reach("execute.after", query)
        return found

    @contextmanager
    def copy(self, statement: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        one = cast(_Connection, self.connection)
        one.reach("copy.before", statement)
        with super().copy(statement, *arguments, **options) as copy:
            yield copy
            one.reach("copy.chunk", statement)
        one.reach("copy.after", statement)


class _Connection(psycopg.Connection[Any]):
    """A connection whose statements and transactions reach points."""

    harm: DatabaseFaults | None = None
    purpose = ""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _Cursor

    def reach(self, point: str, statement: object) -> None:
        """Reach a point, once the connection is handed over."""
        if self.harm is not None:
            session = _Reached(self._end, self.close, self.lost)
            self.harm.reach(point, self.purpose, statement, session)

    @contextmanager
    def transaction(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        with super().transaction(*arguments, **options) as block:
            yield block
            self.reach("commit.before", "")
        self.reach("commit.after", "")

    def _end(self) -> None:
        parameters = {**self.info.get_parameters(), "application_name": _TEST, "password": self.info.password}
        for name in ("replication", "options"):
            parameters.pop(name, None)
        _terminate(parameters, self.info.backend_pid)

    @staticmethod
    def lost() -> BaseException:
        """What psycopg raises when the connection is gone."""
        return psycopg.OperationalError(_LOST)


def _nothing() -> None:
    """There is no connection yet."""


def _terminate(parameters: dict[str, Any], process: int) -> None:
    with psycopg.Connection.connect(autocommit=True, **parameters) as control:
        control.execute("select pg_terminate_backend(%s, 10000)", [process])


def _lost_copy(session: Any) -> Retryable:
    return Retryable(f"A statement on {session._where} failed: {_LOST}.")


def _patch_copy_session(patch: pytest.MonkeyPatch, harm: DatabaseFaults) -> None:
    def reach(session: Any, point: str, statement: str) -> None:
        parameters = session._parameters
        live = session._connection
        reached = _Reached(
            terminate=lambda: _terminate(
                {name: parameters[name] for name in ("host", "port", "user", "dbname")}, live.get_server_pid()
            ),
            hang_up=live._transport.abort,
            lost=lambda: _lost_copy(session),
        )
        harm.reach(point, _purpose(parameters) or "", statement, reached)

    def around(name: str) -> None:
        original = getattr(CopySession, name)

        def method(session: Any, sql: str) -> Any:
            reach(session, "execute.before", sql)
            found = original(session, sql)
            reach(session, "execute.after", sql)
            return found

        patch.setattr(CopySession, name, method)

    for name in ("execute", "fetch_row", "fetch_all"):
        around(name)
    original_enter, original_copy = CopySession.__enter__, CopySession.copy_out

    def enter(session: CopySession) -> CopySession:
        gone = _Reached(_nothing, _nothing, lambda: _lost_copy(session))
        harm.reach("connect.before", _purpose(session._parameters) or "", "", gone)
        return original_enter(session)

    def copy_out(session: CopySession, query: str, sink: Callable[[bytes], None]) -> None:
        def put(data: bytes) -> None:
            reach(session, "copy.chunk", query)
            sink(data)

        reach(session, "copy.before", query)
        original_copy(session, query, put)
        reach(session, "copy.after", query)

    patch.setattr(CopySession, "__enter__", enter)
    patch.setattr(CopySession, "copy_out", copy_out)


def _starting(harm: DatabaseFaults, original: type[subprocess.Popen[Any]]) -> type[subprocess.Popen[Any]]:
    class Popen(original):  # type: ignore[valid-type,misc]
        """Starts programs, and kills those that a fault is armed for."""

        def __init__(self, arguments: Any, *more: Any, **options: Any) -> None:
            program = Path(str(arguments[0])).name if isinstance(arguments, (list, tuple)) else ""
            kill = program in _TOOLS and harm.starts(program)
            super().__init__(arguments, *more, **options)
            if kill:
                with suppress(ProcessLookupError):
                    self.kill()

    return Popen
