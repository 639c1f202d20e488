"""Waits for the end of the story that started it, however that ends, then kills what the story could not kill itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from spanvault.demo.place import MARKER, kill_leftovers


def start_janitor(folder: Path) -> subprocess.Popen[bytes]:
    """Start a janitor for the demo in `folder`; the caller keeps the returned pipe open and never writes to it."""
    return subprocess.Popen(  # noqa: S603 - this very module
        [sys.executable, "-m", "spanvault.demo.janitor", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, MARKER: str(folder)},
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.stdin.read()
    kill_leftovers(Path(sys.argv[1]))
