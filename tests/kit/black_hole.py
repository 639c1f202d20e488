"""A network that swallows everything: no answer, no reset, as when a host loses power or a firewall forgets.

`python -m tests.kit.black_hole SOCKET BYTES RUN...` runs in a network namespace of its own, in which 127.0.0.1 is its own,
too: a proxy before the server's Unix socket, and each RUN (a `spanvault` command as JSON, with `{port}` for the proxy's port)
twice. While it runs for the first time the interface goes down after so many BYTES; then it is up again. `runs` starts that
and gives what came of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pytest

from spanvault.cli.main import run
from tests.kit.command_line import environment
from tests.kit.tcp_proxy import TcpProxy

_ENTER = ("unshare", "--map-root-user", "--net")
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP of netdevice(7)


@dataclass(frozen=True)
class Run:
    """What came of one run of a command."""

    code: int
    seconds: float
    errors: str


def runs(server: Path, count: int, commands: Sequence[Sequence[str]]) -> list[tuple[Run, Run]]:
    """Each command, first into the hole after `count` bytes and then to its end. Skips where no namespace can be had."""
    if not _possible():
        pytest.skip("a network of a test's own needs unshare of util-linux and user namespaces")
    program = [sys.executable, "-m", "tests.kit.black_hole", str(server), str(count), *map(json.dumps, commands)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*_ENTER, *program], capture_output=True, text=True, check=False, env=environment(), cwd=root, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [(Run(**first), Run(**second)) for first, second in json.loads(done.stdout)]


@cache
def _possible() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*_ENTER, "true"], capture_output=True, check=False).returncode == 0
    )


def _set_up(up: bool) -> None:
    with socket.socket() as any_socket:
        found = fcntl.ioctl(any_socket, _GET_FLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xh", found)
        flags = flags | _UP if up else flags & ~_UP
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags))


def _run(arguments: Sequence[str]) -> Run:
    start, out, errors = time.monotonic(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run(arguments)
    return Run(code, time.monotonic() - start, errors.getvalue())


def _main(server: str, count: str, *commands: str) -> None:
    found = []
    _set_up(True)
    with TcpProxy(Path(server)) as proxy:
        for command in commands:
            arguments = [part.replace("{port}", str(proxy.port)) for part in json.loads(command)]
            proxy.after_bytes(int(count), lambda: _set_up(False))
            first = _run(arguments)
            _set_up(True)
            proxy.break_connections()
            found.append((asdict(first), asdict(_run(arguments))))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
