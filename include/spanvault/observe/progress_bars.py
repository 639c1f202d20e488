"""Progress for a person: bars on a terminal, a line per step elsewhere. Always on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from spanvault.model import progress as model


@contextmanager
def shown_progress(console: Console | None = None) -> Iterator[model.Progress]:
    """Progress on `console` (default: standard error) while the block runs; what is left is closed at its end."""
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        lines = ProgressLines(lambda line: console.print(line, markup=False))
        try:
            yield lines
        except BaseException:
            lines.stop()
            raise
        lines.end_step()
        return
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), _Done(), TimeElapsedColumn(), _Remaining(), console=console
    )
    with bars:
        shown = ProgressBars(bars)
        yield shown
        shown.end_step()


class _Counts:
    """The current step's name, size and work done so far."""

    def __init__(self, name: str, total_bytes: int, total_units: int) -> None:
        self.name = name
        self.total_bytes = total_bytes
        self.total_units = total_units
        self.rows = self.bytes = self.units = 0
        self.started = time.monotonic()

    def advance(self, rows: int, bytes_: int, units: int) -> None:
        self.rows += rows
        self.bytes += bytes_
        self.units += units

    @property
    def done(self) -> int:
        """In bytes where the step's bytes are known, else in units."""
        return self.bytes if self.total_bytes else self.units

    def text(self) -> str:
        """What was done: `1,204 rows, 3.2 MB`."""
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}" if self.rows else ""
        size = decimal(self.bytes) if self.bytes else ""
        units = f"{self.units}/{self.total_units}" if self.total_units and not self.total_bytes else ""
        return ", ".join(filter(None, (units, rows, size)))


class ProgressBars:
    """A bar per step on a live display."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._lock = Lock()
        self._task: TaskID | None = None
        self._counts = _Counts("", 0, 0)

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """Begin a bar; the one before it is complete."""
        with self._lock:
            self._end()
            self._counts = _Counts(name, total_bytes, total_units)
            self._task = self._bars.add_task(name, total=total_bytes or total_units or None, counts=self._counts)

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Move the bar by bytes where their total is known, else by units."""
        with self._lock:
            self._counts.advance(rows, bytes_, units)
            if self._task is not None:
                self._bars.update(self._task, completed=self._counts.done)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, markup=False)

    def end_step(self) -> None:
        """The current step, if any, is complete."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._task is not None:
            done = max(1, self._counts.done)  # sizes are estimates: a complete step is full
            self._bars.update(self._task, total=done, completed=done)
            self._task = None


class ProgressLines:
    """A line when a step begins and one with its work and time when it ends."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = Lock()
        self._counts: _Counts | None = None

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        """Write that the step begins, after the end of the one before it."""
        with self._lock:
            self._end()
            self._counts = _Counts(name, total_bytes, total_units)
            self._write(f"{name} ({decimal(total_bytes)}) ..." if total_bytes else f"{name} ...")

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        """Count; shown when the step ends."""
        with self._lock:
            if self._counts is not None:
                self._counts.advance(rows, bytes_, units)

    def note(self, text: str) -> None:
        """A line of its own."""
        self._write(text)

    def end_step(self) -> None:
        """The current step, if any, is complete."""
        with self._lock:
            self._end()

    def stop(self) -> None:
        """The current step, if any, did not end: nothing more is written about it."""
        with self._lock:
            self._counts = None

    def _end(self) -> None:
        if self._counts is not None:
            seconds = f"{time.monotonic() - self._counts.started:.1f} s"
            self._write(f"{self._counts.name}: done in {', '.join(filter(None, (seconds, self._counts.text())))}")
            self._counts = None


class _Done(ProgressColumn):
    """Percentage, rows and bytes of a step."""

    def render(self, task: Task) -> Text:
        counts: _Counts = task.fields["counts"]
        percent = f"{min(100, int(task.percentage))} %" if task.total else ""
        return Text(" ".join(filter(None, (percent, counts.text()))))


class _Remaining(TimeRemainingColumn):
    """The time left, said only while it can be known."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total and not task.finished else Text("")
