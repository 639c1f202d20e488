"""Files and folders for the time of a step. What needs them may be killed, and nobody tidies a temporary folder by hand:
files have no name, so they go with their process, and a folder that a killed one left is deleted by the next that makes one.

A folder that is full, or that cannot be written to, is a sentence that names it and the setting.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from spanvault.errors import BadInput, Retryable

# EFBIG: the limit that a shell or a service manager sets on the size of files.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNUSABLE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})


class ScratchFile:
    """A file to write to; what the file system refuses comes out as one of our errors."""

    def __init__(self, file: IO[bytes], folder: Path) -> None:
        self._file = file
        self.folder = folder

    def fileno(self) -> int:
        """For programs that write to it themselves."""
        return self._file.fileno()

    def write(self, data: bytes) -> None:
        """Take all of `data`. Raises as `scratch_faults`, as `flush` does."""
        with scratch_faults(self.folder):
            self._file.write(data)

    def flush(self) -> None:
        """Let whoever opens the file's path see what was written."""
        with scratch_faults(self.folder):
            self._file.flush()

    def close(self) -> None:
        """What is still to be written is lost then: the block is over, and after a failure the folder may be full yet."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def scratch_faults(folder: Path) -> Iterator[None]:
    """For what is done with files in a scratch folder, and for nothing else. Raises Retryable when the folder is full, BadInput
    when it is not there or may not be written to."""
    try:
        yield
    except OSError as error:
        raise _problem(error, folder) from error


def full_folder(folder: Path, reason: str) -> Retryable:
    """What to say when a scratch folder has no room left."""
    return Retryable(
        f"The folder for temporary files {folder} is full: {reason}; make room there, or let SPANVAULT_SCRATCH_DIR name a folder"
        " with more."
    )


def _problem(error: OSError, folder: Path) -> Retryable | BadInput:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _FULL:
        return full_folder(folder, reason)
    if error.errno in _UNUSABLE:
        return BadInput(
            f"The folder for temporary files {folder} cannot be used: {reason}; let SPANVAULT_SCRATCH_DIR name a folder in which"
            " this process may write."
        )
    return Retryable(f"The file system failed on the folder for temporary files {folder}: {reason}.")


def _place(folder: Path | None) -> Path:
    """The folder, by default the system's. Python looks for that one by writing a file into some, once in a process."""
    try:
        return folder or Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise Retryable(
            f"{error.strerror}; make room in one of these, or let SPANVAULT_SCRATCH_DIR name a folder that has it."
        ) from error


@contextmanager
def scratch_file(folder: Path | None, suffix: str) -> Iterator[tuple[ScratchFile, Path]]:
    """An empty file to write to, and a path to read it by while the block lasts, also for programs that this process starts.

    `folder` is where its bytes lie (default: the system's temporary folder). Without Linux's /proc it has a name there that
    ends in `suffix`, and a killed process leaves it. Raises as `scratch_faults`.
    """
    place = _place(folder)
    with scratch_faults(place):
        nameless = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - ScratchFile closes it
    with closing(ScratchFile(nameless, place)) as file:
        # Opening it makes a reader of its own: https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html
        path = Path(f"/proc/{os.getpid()}/fd/{nameless.fileno()}")
        if os.access(path, os.R_OK):
            yield file, path
            return
    with scratch_faults(place):
        named = tempfile.NamedTemporaryFile(prefix="spanvault-", suffix=suffix, dir=place)  # noqa: SIM115
    with closing(ScratchFile(named, place)) as file:
        yield file, Path(named.name)


@contextmanager
def scratch_folder(kind: str, parent: Path | None) -> Iterator[Path]:
    """A new folder below `parent` (default: the system's temporary folder), deleted when the block ends.

    First those of the same `kind` are deleted whose processes are gone: each holds a lock on its folder. Raises as
    `scratch_faults` if none can be made.
    """
    above = _place(parent)
    with scratch_faults(above):
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
