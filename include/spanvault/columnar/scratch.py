"""Files and folders for the time of a step. What needs them may be killed, and nobody tidies a temporary folder by hand:
files have no name, so they go with their process, and a folder that a killed one left is deleted by the next that makes one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def scratch_file(folder: Path | None, suffix: str) -> Iterator[tuple[IO[bytes], Path]]:
    """An empty file to write to, and a path to read it by while the block lasts, also for programs that this process starts.

    `folder` is where its bytes lie (default: the system's temporary folder). Without Linux's /proc it has a name there that
    ends in `suffix`, and a killed process leaves it.
    """
    with tempfile.TemporaryFile(dir=folder) as nameless:
        # Opening it makes a reader of its own: https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html
        path = Path(f"/proc/{os.getpid()}/fd/{nameless.fileno()}")
        if os.access(path, os.R_OK):
            yield nameless, path
            return
    with tempfile.NamedTemporaryFile(prefix="spanvault-", suffix=suffix, dir=folder) as named:
        yield named, Path(named.name)


@contextmanager
def scratch_folder(kind: str, parent: Path | None) -> Iterator[Path]:
    """A new folder below `parent` (default: the system's temporary folder), deleted when the block ends.

    First those of the same `kind` are deleted whose processes are gone: each holds a lock on its folder.
    """
    above = Path(parent or tempfile.gettempdir())
    _sweep(above, f"spanvault-{kind}-")
    while (made := _locked(above, kind)) is None:
        pass  # another process took it for a left one before it was locked
    folder, descriptor = made
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(above: Path, kind: str) -> tuple[Path, int] | None:
    folder = Path(tempfile.mkdtemp(prefix=f"spanvault-{kind}-", dir=above))
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: nobody else can lock it either, so nobody deletes it
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if folder.exists():
        return folder, descriptor
    os.close(descriptor)
    return None


def _sweep(above: Path, prefix: str) -> None:
    for left in above.glob(f"{prefix}*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # its process is at work
        finally:
            os.close(descriptor)
