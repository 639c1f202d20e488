"""`spanvault demo start`, `stop` and `status`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from spanvault.demo.janitor import start_janitor
from spanvault.demo.narrator import Narrator
from spanvault.demo.place import (
    MARKER,
    Knobs,
    demo_folder,
    kill_leftovers,
    leftovers,
    only_story,
    running_story,
)
from spanvault.demo.story import Story
from spanvault.embedded.binaries import PG_BIN_VARIABLE
from spanvault.errors import Retryable

_PATIENCE = 60.0  # seconds that a story may need to stop its servers
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start() -> None:
    """Tell the story, then stay up until Ctrl-C, or end with DEMO_EXIT=1; nothing of it runs afterwards.

    Raises BadInput for wrong knobs, Busy if a demo runs already, and what fails in the story.
    """
    knobs = Knobs.read(os.environ)
    folder = demo_folder(os.environ)
    with only_story(folder) as lock, _signals(_interrupt):
        _use_only_own_settings()
        os.environ[MARKER] = str(folder)
        janitor = start_janitor(folder)
        story = Story(folder, knobs, Narrator())
        try:
            story.tell()
            if not knobs.exits:
                lock.tell(**story.facts())
                story.stay()
        except KeyboardInterrupt:
            if not story.told:
                raise
        finally:
            with _signals(signal.SIG_IGN):
                story.stop()
                janitor.communicate()  # closes its pipe: it looks once more, and ends
    Console(highlight=False).print("  Stopped; nothing of the demo runs any more.")


def stop() -> None:
    """End a running story, kill what a lost one left, and delete the demo's folder. Harmless if there is nothing."""
    folder = demo_folder(os.environ)
    story = running_story(folder)
    if story is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(story.pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while running_story(folder) is not None:
            if time.monotonic() > deadline:
                raise Retryable(f"The demo's process {story.pid} does not end; kill it and try again.")
            time.sleep(0.05)
    if not folder.exists():
        return
    kill_leftovers(folder)
    shutil.rmtree(folder)


def status() -> None:
    """Print what runs, and where."""
    console = Console(highlight=False)
    folder = demo_folder(os.environ)
    story, parts = running_story(folder), leftovers(folder)
    if story is None and not parts:
        console.print("No demo runs.")
        return
    console.print(
        f"A demo runs (process {story.pid})." if story else "Parts of a lost demo run; `spanvault demo stop` ends them."
    )
    for name, value in (("Airflow", story and story.airflow), ("PostgreSQL", story and story.postgres)):
        if value:
            console.print(f"  {name:<11} {value}", soft_wrap=True)
    console.print(f"  {'Running':<11} {', '.join(parts) or 'nothing yet'}", soft_wrap=True)
    console.print(f"  {'Folder':<11} {folder}", soft_wrap=True)


def _use_only_own_settings() -> None:
    """The person's own Spanvault (its clusters, its allowed destinations) has no say in the demo."""
    for name in [name for name in os.environ if name.startswith("SPANVAULT_") and name != PG_BIN_VARIABLE]:
        del os.environ[name]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _signals(handler: object) -> Iterator[None]:
    """What Ctrl-C, a kill and a closed terminal do while the block runs."""
    before = {number: signal.signal(number, handler) for number in _STOP_SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
