"""A TCP proxy before an HTTP server that loses answers and breaks connections, as networks do."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

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
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target_port`, as a context manager."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._rules: list[Rule] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.requests: list[str] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def lose(self, pattern: str, *, answer_bytes: int = 0, times: int = 1) -> Rule:
        """Break the answer to the next `times` requests whose first line (`PUT /path?query HTTP/1.1`) matches."""
        rule = Rule(re.compile(pattern), answer_bytes, times)
        self._rules.append(rule)
        return rule

    def break_connections(self) -> None:
        """Close all connections that stand now."""
        with self._lock:
            standing, self._sockets = self._sockets, set()
        for one in standing:
            _close(one)

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
                server = socket.create_connection(("127.0.0.1", self._target_port))
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


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
