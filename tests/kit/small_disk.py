"""A disk that is really full, for programs that a test starts.

`on_small_disk(bytes, folder, command)` runs a command for which `folder` is a file system of that size, and nobody else sees
it: a mount namespace within a user namespace, which needs no privileges where the system allows these at all. Where it does
not, the test is skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.kit.command_line import environment

_MOUNT = 'mount -t tmpfs -o "size=$0" spanvault-test "$1" && shift && exec "$@"'
_ENTER = ("unshare", "--map-root-user", "--mount", "/bin/sh", "-c", _MOUNT)


@cache
def _possible(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_ENTER, "4096", str(folder), "true"], capture_output=True, check=False).returncode == 0


def on_small_disk(
    size: int, folder: Path, command: Sequence[str], more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end with `folder` (existing) as an empty disk of `size` bytes."""
    if not _possible(folder):
        pytest.skip("a disk of a test's own needs unshare of util-linux and user namespaces")
    return subprocess.run(
        [*_ENTER, str(size), str(folder), *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment(more),
        timeout=240,
    )
