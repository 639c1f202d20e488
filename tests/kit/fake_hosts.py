"""FakeHosts: an HTTPS proxy that answers for the hosts themselves, so that clients keep the real addresses and TLS names."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.kit.certificates import self_signed


@dataclass
class Answer:
    """What a host gives to a request; the body goes as JSON."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


Answering = Callable[[str, str, str, Mapping[str, str], bytes], Answer]


class FakeHosts:
    """A context manager. `answer` gets method, host, target (path and query), headers (lower-case names) and body."""

    def __init__(self, folder: Path, hosts: Sequence[str], answer: Answering) -> None:
        certificate, private = self_signed(hosts)
        self._certificate = folder / "fake-hosts.pem"
        self._certificate.write_bytes(certificate)
        chain = folder / "fake-hosts-with-key.pem"
        chain.write_bytes(certificate + private)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain)
        self._server = _Server(tls, answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> FakeHosts:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead clients here, for all but this machine's own addresses."""
        proxy = f"http://127.0.0.1:{self._server.server_port}"
        away = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return {"HTTPS_PROXY": proxy, "https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(self._certificate), **away}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext, answer: Answering) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = tls
        self.answer = answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that refuse the certificate or go away are part of tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    host = ""

    def do_CONNECT(self) -> None:
        """From here on the connection is what it would be at the host."""
        self.host = self.path.partition(":")[0]
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        """The server closes the connection as it was before TLS; what stands on it is ours to close."""
        super().finish()
        if self.host:
            self.connection.close()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = self.server.answer(
            self.command, self.host, self.path, {name.lower(): value for name, value in self.headers.items()}, body
        )
        text = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
