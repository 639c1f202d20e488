"""Reading rows out of PostgreSQL by COPY, in large pieces.

asyncpg hands over as many rows as arrived at a time; other drivers cost a call per row. asyncio stays inside this file.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

import asyncpg

from spanvault.columnar.text_reader import BLOCK_BYTES, ConversionNeeded, TextReader
from spanvault.columnar.whole_rows import whole_rows
from spanvault.columnar.write import DataFileWriter
from spanvault.database.postgres.connect import KEEPALIVE, NO_TRANSACTION_TIMEOUT
from spanvault.database.postgres.handover import Handover
from spanvault.database.postgres.sqlstate import translate
from spanvault.model.schema import Table
from spanvault.storage.base import Storage

_T = TypeVar("_T")

# asyncio reads at most 256 KiB at a time.
_SMALL_PIECE: Final = 128 << 10
_GATHERING_SECONDS: Final = 0.002
_PIECES_OF_FEW_ROWS: Final = 4
_SOCKET_BUFFER: Final = 4 << 20
# What libpq's parameters are called by the system, where it has them.
_TCP_OPTIONS: Final = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
# What asyncpg takes from a connection string only.
_SSL_PARAMETERS: Final = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")


class CopySession:
    """One synchronous session that can COPY at full speed; a context manager, used from one thread.

    `parameters` are those of connect.connection_parameters, so the session is pinned like every other. All errors are
    ours and keep the server's code in `.sqlstate`: Busy for a lock that could not be had in time, Retryable for a lost
    connection, BadInput for missing privileges or a refused login, NotFound for a missing table or database.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._where = f"{parameters['host']}:{parameters['port']}/{parameters['dbname']}"
        # A Runner turns Ctrl-C into the cancellation of what is awaited; raised anywhere inside asyncpg it could get lost.
        self._runner = asyncio.Runner()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def __enter__(self) -> Self:
        try:
            self._connection = self._run(_connect(self._parameters), "Connecting")
            self.execute(NO_TRANSACTION_TIMEOUT)
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                self._run(self._live.close(), "Closing the session")
        finally:
            # The server may be in the middle of a COPY; hanging up ends it and its transaction. What was waiting for the
            # server fails then, and asyncio would complain of failures that nobody looks at.
            self._runner.get_loop().set_exception_handler(lambda _loop, _context: None)
            self._live.terminate()
            self._connection = None
            self._runner.close()

    def execute(self, sql: str) -> None:
        """Run one or more statements."""
        self._run(self._live.execute(sql), "A statement")

    def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        """The first row, or None. Values of other than basic types should be cast to text in the query."""
        row = self._run(self._live.fetchrow(sql), "A query")
        return None if row is None else tuple(row)

    def fetch_all(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows."""
        return [tuple(row) for row in self._run(self._live.fetch(sql), "A query")]

    def copy_out(self, query: str, sink: Callable[[bytes], None]) -> None:
        """Run `COPY (query) TO STDOUT (FORMAT text)` and pass its bytes to `sink` in order, in pieces of a few hundred
        KiB (or one row, if that is longer).

        What `sink` raises cancels the COPY and comes out of here; the transaction is then lost.
        """

        pieces = 0

        async def receive(data: bytes) -> None:
            nonlocal pieces
            pieces += 1
            sink(data)
            if len(data) < _SMALL_PIECE and pieces > _PIECES_OF_FEW_ROWS:
                # We are faster than the server, which sends 8 KiB at a time: each piece costs the same, so let some
                # gather in the socket's buffer.
                await asyncio.sleep(_GATHERING_SECONDS)

        self._run(self._live.copy_from_query(query, output=receive, format="text"), "Reading rows")

    @property
    def _live(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is None:
            raise RuntimeError("the session is not open")
        return self._connection

    def _run(self, work: Coroutine[Any, Any, _T], what: str) -> _T:
        try:
            return self._runner.run(work)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None  # nothing else cancels; at some instructions the Runner leaves it at that
        except asyncpg.PostgresError as error:
            raise translate(error.sqlstate, str(error), f"{what} on {self._where}") from None
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise translate(None, str(error) or "no answer in time", f"{what} on {self._where}") from None


async def _connect(parameters: dict[str, Any]) -> asyncpg.Connection[asyncpg.Record]:
    ssl: dict[str, str] = {name: parameters[name] for name in _SSL_PARAMETERS if name in parameters}
    settings = {name: parameters[name] for name in ("application_name", "options") if name in parameters}
    connection = await asyncpg.connect(
        f"postgresql:///?{urlencode(ssl)}",
        host=parameters["host"],
        port=int(parameters["port"]),
        user=parameters["user"],
        password=parameters.get("password"),
        database=parameters["dbname"],
        timeout=float(parameters.get("connect_timeout", 15)),
        server_settings=settings,
        statement_cache_size=0,
    )
    _tune(connection._transport.get_extra_info("socket"), {**KEEPALIVE, **parameters})
    return connection


def _tune(connection: socket.socket, parameters: Mapping[str, Any]) -> None:
    """What asyncpg has no parameters for: a large receive buffer, and what libpq does with those of KEEPALIVE, without which
    a read from a host that vanished waits for ever."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    for name, option in _TCP_OPTIONS.items():
        value = int(parameters[name])
        if value and hasattr(socket, option):  # 0 stands for the system's own
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@dataclass(frozen=True)
class WrittenFile:
    """A data file on storage: digest (hexadecimal), size in bytes, rows, and the stored names kept as text."""

    sha256: str
    bytes: int
    rows: int
    text_columns: tuple[str, ...]


def export_query(
    session: CopySession, query: str, table: Table, storage: Storage, key: str, text_columns: Sequence[str] = ()
) -> WrittenFile:
    """Write the rows of `query`, which selects `table.data_columns` in their order, as a data file under `key`.

    Where values of a column do not convert exactly the query runs once more with that column as text: inside a
    REPEATABLE READ transaction, which the caller has begun, it sees the same rows. Raises what the session and the
    storage raise; then nothing is visible under `key`.
    """
    as_text = frozenset(text_columns)
    while True:
        try:
            return _export_once(session, query, table, storage, key, as_text)
        except ConversionNeeded as needed:
            as_text |= needed.columns


def _export_once(
    session: CopySession, query: str, table: Table, storage: Storage, key: str, as_text: frozenset[str]
) -> WrittenFile:
    with Handover(lambda chunks: write_rows(chunks, table, storage, key, as_text)) as handover:
        session.copy_out(query, handover.put)
    return handover.result()


def write_rows(chunks: Iterator[bytes], table: Table, storage: Storage, key: str, as_text: frozenset[str]) -> WrittenFile:
    """Write what CopySession.copy_out gave as a data file under `key`. Raises ConversionNeeded with all columns that must be
    text as well; what the storage raises."""
    reader = TextReader(table, as_text)
    blocks = whole_rows(chunks, BLOCK_BYTES)
    try:
        with DataFileWriter(storage, key, reader.schema) as file:
            # map, unlike a loop variable, does not keep a long row's block while it is written.
            for batch in map(reader.read_block, blocks):
                file.write_batch(batch)
    except ConversionNeeded as needed:
        raise ConversionNeeded(_survey(blocks, table, as_text | needed.columns) | needed.columns) from None
    return WrittenFile(file.sha256, file.bytes, file.rows, tuple(sorted(as_text)))


def _survey(blocks: Iterator[bytes], table: Table, as_text: frozenset[str]) -> frozenset[str]:
    """All columns that the remaining blocks force to be text, so that one more reading is enough."""
    found: frozenset[str] = frozenset()
    for block in blocks:
        try:
            TextReader(table, as_text | found).read_block(block)
        except ConversionNeeded as needed:
            found |= needed.columns
    return found
