"""Storage in a folder of the local or a shared file system: `file://` and `nodelocal://`.

An object is written to a temporary file below `<root>/.spanvault-tmp/`, flushed to the disk, and then linked
(create-only) or renamed to its name, and the folder flushed: a crash at any point leaves the old state or the new one,
and at most a temporary file, which only `list_unfinished` shows. Folders come and go with their objects. Symbolic links
and names that are not UTF-8 are nobody's objects and are not listed.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from spanvault.errors import AlreadyExists, BadInput, NotFound, Retryable, SpanvaultError
from spanvault.storage.base import ObjectInfo, Unfinished, Writer
from spanvault.storage.keys import RESERVED_PREFIX, check_folder, check_key, key_flaw

TEMPORARY_FOLDER = f"{RESERVED_PREFIX}tmp"
_BUFFER = 1 << 20
# A folder may vanish between its creation and its first file, when the last object in it is deleted at that moment.
_FOLDER_ATTEMPTS = 100

_MISSING = (NotFound, "There is no object {key!r} in {where}.")
_NO_LINKS = (BadInput, "{where} cannot hold backups: its file system refuses hard links, which commits need ({reason}).")
_UNREACHABLE = (BadInput, "{key!r} in {where} cannot be reached: {reason}.")
_FORBIDDEN = (
    BadInput,
    "{key!r} in {where} cannot be {done}: {reason}; let the user {user} read and write in that folder, or give another URI.",
)
_FULL = (Retryable, "{key!r} cannot be written to {where}: {reason}.")
_SENTENCES: dict[int, tuple[type[SpanvaultError], str]] = {
    errno.ENOENT: _MISSING,
    errno.EISDIR: (NotFound, "{key!r} in {where} is a folder, not an object."),
    errno.EEXIST: (AlreadyExists, "The object {key!r} exists already in {where}; nothing was overwritten."),
    errno.ENOTDIR: (BadInput, "{key!r} cannot lie in {where}: a part of its path is not a folder."),
    errno.EPERM: _NO_LINKS,
    errno.EOPNOTSUPP: _NO_LINKS,
    errno.EXDEV: _NO_LINKS,
    errno.EACCES: _FORBIDDEN,
    errno.EROFS: _UNREACHABLE,
    errno.ENAMETOOLONG: _UNREACHABLE,
    errno.ELOOP: _UNREACHABLE,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
}


class LocalStorage:
    """A Storage in the folder `root` (storage/base.py is the contract); the folder is created by the first write."""

    def __init__(self, root: Path, display_uri: str) -> None:
        self._root = root
        self._display_uri = display_uri
        self._durable_folders: set[Path] = set()

    @property
    def display_uri(self) -> str:
        """The root without secrets."""
        return self._display_uri

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Write a small object whole. Raises AlreadyExists with `create_only` if the key exists."""
        with self._temporary(check_key(key)) as (temporary, file), self._translated(key, "written"):
            file.write(data)
            _flush(file)
            self._publish(temporary, key, create_only=create_only)

    @contextmanager
    def open_write(self, key: str) -> Iterator[Writer]:
        """Stream an object; visible when the block ends without an exception."""
        with self._temporary(check_key(key)) as (temporary, file):
            yield _FileWriter(self, key, file)
            with self._translated(key, "written"):
                _flush(file)
                self._publish(temporary, key, create_only=False)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        return b"".join(self.read_chunks(key, _BUFFER))

    def read_chunks(self, key: str, chunk_size: int = 1 << 20) -> Iterator[bytes]:
        """The object's bytes in order. Raises NotFound."""
        with self._translated(check_key(key)), self._path(key).open("rb", buffering=0) as file:
            while chunk := file.read(chunk_size):
                yield chunk

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, or None."""
        with self._translated(check_key(key)):
            return self._info(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, ascending. Holds the names of one folder per level in memory."""
        folder, slash, start = prefix.rpartition("/")
        if not slash or not key_flaw(folder):
            yield from self._walk(folder + slash, start)

    def list_folders(self, prefix: str = "") -> Iterator[str]:
        """The folders directly below `prefix` that hold an object, ascending."""
        for name, is_folder in self._entries(check_folder(prefix)):
            if is_folder and next(self._walk(f"{prefix}{name}/"), None):
                yield f"{name}/"

    def delete(self, key: str) -> None:
        """Remove the object, and the folders that it leaves empty."""
        path = self._path(check_key(key))
        with self._translated(key, "deleted"):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                _flush_folder(path.parent)
            with suppress(OSError):
                for parent in path.parents:
                    if parent == self._root:
                        break
                    parent.rmdir()

    def list_unfinished(self) -> Iterator[Unfinished]:
        """Temporary files; the moment of the last write to each stands in for its beginning."""
        with self._translated(TEMPORARY_FOLDER):
            try:
                entries = sorted(os.scandir(self._root / TEMPORARY_FOLDER), key=lambda entry: entry.name)
            except FileNotFoundError:
                return
            for entry in entries:
                with suppress(FileNotFoundError):
                    yield Unfinished(key="", started=entry.stat(follow_symlinks=False).st_mtime, handle=entry.name)

    def remove_unfinished(self, unfinished: Unfinished) -> None:
        """Remove a temporary file. Raises BadInput for a handle that is not one."""
        if Path(unfinished.handle).name != unfinished.handle:
            raise BadInput(f"{unfinished.handle!r} is not a temporary file of {self._display_uri}.")
        with self._translated(unfinished.handle):
            (self._root / TEMPORARY_FOLDER / unfinished.handle).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / key

    def _info(self, key: str) -> ObjectInfo | None:
        try:
            status = self._path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectInfo(key=key, size=status.st_size, modified=status.st_mtime) if stat.S_ISREG(status.st_mode) else None

    def _walk(self, folder: str, start: str = "") -> Iterator[ObjectInfo]:
        for name, is_folder in self._entries(folder):
            if not name.startswith(start):
                continue
            if is_folder:
                yield from self._walk(f"{folder}{name}/")
            elif info := self._info(f"{folder}{name}"):
                yield info

    def _entries(self, folder: str) -> Sequence[tuple[str, bool]]:
        """(name, is a folder) of what lies directly in `folder`, in the order of the keys that begin so."""
        found = []
        with (
            self._translated(folder or ".", "listed"),
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self._root / folder) as entries,
        ):
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if (is_folder or entry.is_file(follow_symlinks=False)) and _is_name(entry.name):
                    found.append((entry.name, is_folder))
        return sorted(found, key=lambda item: f"{item[0]}/".encode() if item[1] else item[0].encode())

    @contextmanager
    def _temporary(self, key: str) -> Iterator[tuple[Path, BinaryIO]]:
        path = self._root / TEMPORARY_FOLDER / f"{uuid.uuid4()}"
        with self._translated(key, "written"):
            try:
                self._make_folder(path.parent)
            except FileNotFoundError as error:
                if self._root.is_dir():
                    raise
                # As in /proc, whose folders are the system's own.
                place = next(parent for parent in self._root.parents if parent.is_dir())
                raise BadInput(f"{self._display_uri} cannot hold backups: no folder can be made in {place}.") from error
            file = path.open("xb", buffering=_BUFFER)
        try:
            yield path, file
        finally:
            # After an exception the buffer's rest may find the disk full again; the file goes anyway.
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _publish(self, temporary: Path, key: str, *, create_only: bool) -> None:
        target = self._path(key)
        for _ in range(_FOLDER_ATTEMPTS):
            try:
                self._make_folder(target.parent)
                if create_only:
                    _link(temporary, target)
                else:
                    temporary.replace(target)
            except FileNotFoundError:
                self._durable_folders.clear()
                if not temporary.exists():
                    raise Retryable(f"The temporary file of {key!r} in {self._display_uri} was removed while written.") from None
            else:
                return _flush_folder(target.parent)
        raise Retryable(f"The folder of {key!r} in {self._display_uri} is deleted again and again.")

    def _make_folder(self, folder: Path) -> None:
        """Create the folder and its parents, each durably: also those whose creator may have died before its flush."""
        if folder in self._durable_folders or (self._root.is_relative_to(folder) and folder.is_dir()):
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
        _flush_folder(folder.parent)
        self._durable_folders.add(folder)

    @contextmanager
    def _translated(self, key: str, done: str = "read") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, key, done) from error

    def _translate(self, error: OSError, key: str, done: str) -> SpanvaultError:
        kind, sentence = _SENTENCES.get(error.errno or 0, (Retryable, "The file system failed on {key!r} in {where}: {reason}."))
        reason = error.strerror or type(error).__name__
        return kind(sentence.format(key=key, where=self._display_uri, reason=reason, done=done, user=_user()))


class _FileWriter:
    """Hands bytes to a file with the storage's own errors."""

    def __init__(self, storage: LocalStorage, key: str, file: BinaryIO) -> None:
        self._storage = storage
        self._key = key
        self._file = file

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of `data`."""
        with self._storage._translated(self._key, "written"):
            return self._file.write(data)


def _user() -> str:
    """Who runs this, by name if the system knows one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _is_name(name: str) -> bool:
    """Whether a directory entry can be part of a key: os.scandir escapes what is not UTF-8, which no key holds."""
    return key_flaw(name) is None


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _link(temporary: Path, target: Path) -> None:
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        _flush_folder(target.parent)  # Whoever is told of the other's object may build upon it.
        # NFS repeats a call whose answer was lost: then the link that is there is ours.
        if not target.samefile(temporary):
            raise


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder durable. One that has gone since then had its last object deleted."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
