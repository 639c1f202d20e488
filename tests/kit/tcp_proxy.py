"""A TCP proxy before a server that breaks connections as networks do: between answers of HTTP, or after so many bytes."""

from __future__ import annotations

import ctypes
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_SIZE = 1 << 16


@dataclass
class Rule:
    """For the next `times` requests whose first line matches `pattern`: pass `answer_bytes` of the answer (0: nothing of
    it, though the server has done what was asked), then break the connection. `happened` counts."""

    pattern: re.Pattern[str]
    answer_bytes: int
    times: int
    happened: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def applies(self, line: str) -> bool:
        with self.lock:
            if self.happened >= self.times or not self.pattern.search(line):
                return False
            self.happened += 1
            return True


class TcpProxy:
    """Forwards 127.0.0.1:`port` to a port of 127.0.0.1, or to a Unix socket; a context manager."""

    def __init__(self, target: int | Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._rules: list[Rule] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._watch: tuple[int, Callable[[], object]] | None = None
        self.requests: list[str] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def lose(self, pattern: str, *, answer_bytes: int = 0, times: int = 1) -> Rule:
        """Break the answer to the next `times` requests whose first line (`PUT /path?query HTTP/1.1`) matches."""
        rule = Rule(re.compile(pattern), answer_bytes, times)
        self._rules.append(rule)
        return rule

    def after_bytes(self, count: int, call: Callable[[], object]) -> None:
        """Call once, when from now on so many bytes have passed in both directions."""
        with self._lock:
            self._watch = (count, call)

    def break_connections(self, *, reset: bool = False) -> None:
        """Close all connections that stand now, in good order or by a reset, as whoever has forgotten them answers."""
        with self._lock:
            standing, self._sockets = self._sockets, set()
        for one in standing:
            if reset:
                _reset(one)
            else:
                _close(one)

    def _passed(self, count: int) -> None:
        with self._lock:
            if self._watch is None:
                return
            left, call = self._watch
            self._watch = (left - count, call) if left > count else None
            if self._watch is not None:
                return
        call()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(self._target))
        return found

    def __enter__(self) -> TcpProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        _close(self._listener)
        self.break_connections()
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                with self._lock:
                    self._sockets |= {client, server}
                state = _Connection(client, server)
                self._start(self._requests, state)
                self._start(self._answers, state)

    def _requests(self, state: _Connection) -> None:
        """Client to server. HTTP/1.1 without pipelining: what comes after an answer begins with a request line."""
        with suppress(OSError):
            while data := state.client.recv(_SIZE):
                line = data.split(b"\r\n", 1)[0].decode("latin-1")
                if line.endswith(" HTTP/1.1"):
                    self.requests.append(line)
                    state.rule = next((rule for rule in self._rules if rule.applies(line)), None)
                    state.passed = 0
                state.server.sendall(data)
                self._passed(len(data))
        state.close()

    def _answers(self, state: _Connection) -> None:
        with suppress(OSError):
            while data := state.server.recv(_SIZE):
                rule = state.rule
                if rule is not None and not data.startswith(b"HTTP/1.1 100"):
                    data = data[: rule.answer_bytes - state.passed]
                    state.passed += len(data)
                    state.client.sendall(data)
                    if state.passed == rule.answer_bytes:
                        break
                else:
                    state.client.sendall(data)
                    self._passed(len(data))
        state.close()


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.rule: Rule | None = None
        self.passed = 0

    def close(self) -> None:
        _close(self.client)
        _close(self.server)


def _reset(one: socket.socket) -> None:
    # What Linux does when a TCP socket is connected to nothing; Python has no call for it. Whoever reads it here wakes up.
    ctypes.CDLL(None).connect(one.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)
    _close(one)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
