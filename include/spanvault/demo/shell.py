"""The command line, as a person would call it after sourcing the demo's `env` file."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from spanvault.demo.cluster import CLUSTER
from spanvault.embedded.process import kill_tree
from spanvault.errors import Permanent

COMMAND = Path(sys.executable).with_name("spanvault")


class CommandLine:
    """`spanvault sql` with the demo's cluster and connections."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, statement: str, variables: Mapping[str, str], show: Callable[[str], None]) -> None:
        """Run a statement; `show` is given each line of its progress. Raises Permanent with its last words if it fails."""
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [COMMAND, "sql", "--cluster", CLUSTER, "--format", "csv", statement],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        last: deque[str] = deque(maxlen=3)
        if self._process.stderr is not None:
            for line in self._process.stderr:
                last.append(line.strip())
                show(line.strip())
        if self._process.wait():
            raise Permanent(f"`spanvault sql` ended with {self._process.returncode}: {' '.join(last)}")

    def stop(self) -> None:
        """Kill a statement that runs."""
        if self._process is not None and self._process.poll() is None:
            kill_tree(self._process.pid)


def shown_command(env_file: Path, statement: str) -> tuple[str, str]:
    """What a person types in the current folder to run `statement`: two lines."""
    return f". {shlex.quote(short(env_file))}", f'{shlex.quote(short(COMMAND))} sql --cluster {CLUSTER} "{statement}"'


def short(path: Path) -> str:
    """The path as somebody in the current folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
