"""Where the demo lives: its folder, its knobs, the lock of the one story, and what an earlier one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from spanvault.embedded.binaries import ROOT_CACHE
from spanvault.embedded.ports import LOOPBACK
from spanvault.embedded.process import PROCESS_FILE, kill_tree, stop_leftover
from spanvault.embedded.run_as import closed_folder, server_identity
from spanvault.embedded.seaweed import forget_sockets
from spanvault.errors import BadInput, Busy

PROJECT = Path(__file__).resolve().parents[3]

# In the environment of every process that a story starts, with the demo's folder as its value: Airflow gives each task a
# process group of its own, and a task whose parents were killed is found by nothing else.
MARKER = "SPANVAULT_DEMO_FOLDER"

OBJECT_STORE = "s3"
"""The folder of the object store below the demo's."""

_LOCK = "story.json"


@dataclass(frozen=True)
class Knobs:
    """What the environment asks for. `port` 0: any free one. `megabytes`: what the shop takes in the database."""

    port: int = 0
    exits: bool = False
    megabytes: int = 130

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Knobs:
        """DEMO_PORT, DEMO_EXIT and DEMO_MB. Raises BadInput for a value that cannot be used, also a port that is taken."""
        knobs = cls(
            port=_number(environment, "DEMO_PORT", 0, 1, 65535),
            exits=environment.get("DEMO_EXIT", "") not in {"", "0"},
            megabytes=_number(environment, "DEMO_MB", cls.megabytes, 5, 10_000),
        )
        if knobs.port and not _can_listen(knobs.port):
            raise BadInput(
                f"DEMO_PORT={knobs.port} cannot be used: the port is taken, or not allowed to you;"
                " choose another, or none for a free one."
            )
        return knobs


@dataclass(frozen=True)
class StoryFacts:
    """What a running story tells about itself."""

    pid: int
    airflow: str = ""
    postgres: str = ""


def demo_folder(environment: Mapping[str, str]) -> Path:
    """DEMO_FOLDER, or `.demo` in the checkout; where root's servers, which run as `nobody`, cannot enter that, a folder
    in the cache.

    Raises BadInput if this is not a checkout, or if DEMO_FOLDER holds something else: it is going to be emptied.
    """
    if not (PROJECT / "dags" / "full_backup.py").is_file():
        raise BadInput("The demo needs Spanvault's checkout with its folders dags and plugins; run `make demo` there.")
    asked = environment.get("DEMO_FOLDER", "")
    if asked:
        folder = Path(asked).expanduser().absolute()
        if folder.exists() and not (folder / _LOCK).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"DEMO_FOLDER={asked} is not empty and no demo's folder; name a new one.")
        return folder
    folder = PROJECT / ".demo"
    if server_identity() and closed_folder(folder):
        return ROOT_CACHE / f"demo-{hashlib.sha256(bytes(PROJECT)).hexdigest()[:12]}"
    return folder


class Lock:
    """The story's hold on the demo's folder. The kernel lets go of it when the process ends, in whatever way."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def tell(self, **facts: str) -> None:
        """Write what `running_story` answers."""
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), **facts}, self._file)
        self._file.flush()


@contextmanager
def only_story(folder: Path) -> Iterator[Lock]:
    """Hold the folder, cleaned of what an earlier story left, while the block runs. Raises Busy if another story runs."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            facts = running_story(folder)
            who = f" (process {facts.pid})" if facts else ""
            raise Busy(f"A demo runs already{who}; end it by Ctrl-C there, or with `spanvault demo stop`.") from None
        lock = Lock(file)
        lock.tell()
        clear(folder)
        yield lock


def running_story(folder: Path) -> StoryFacts | None:
    """The story that holds the folder, if one does."""
    try:
        with (folder / _LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return StoryFacts(**json.load(file))
    except (OSError, ValueError, TypeError):
        pass
    return None


def clear(folder: Path) -> None:
    """Kill what a lost story left running, and delete what it wrote; the lock's file stays."""
    kill_leftovers(folder)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def kill_leftovers(folder: Path) -> None:
    """Kill every process that belongs to the demo in `folder`, but not this one."""
    for process in _marked(folder):
        kill_tree(process.pid)
    for file in folder.glob(f"*/{PROCESS_FILE}"):
        stop_leftover(file.parent)
    forget_sockets(folder / OBJECT_STORE)


def leftovers(folder: Path) -> list[str]:
    """The parts of the demo that run, by name."""
    found = []
    for file in folder.glob(f"*/{PROCESS_FILE}"):
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.NoSuchProcess):
            known = json.loads(file.read_text())
            if psutil.Process(known["pid"]).create_time() == known["created"]:
                found.append(file.parent.name)
    return sorted(found)


def _marked(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARKER) == str(folder):
                yield process


def _number(environment: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise BadInput(f"{name}={text} cannot be used: give a whole number from {low} to {high}.")
    return int(text)


def _can_listen(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier demo that still linger are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True
