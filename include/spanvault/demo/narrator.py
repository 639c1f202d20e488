"""How the story is told: a line per step with the time since the start, and a spinner that says what is awaited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text


class Narrator:
    """Prints to standard output; callable from several threads. Off a terminal there are only lines, no spinner."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._awaited: list[str] = []
        self._spinner = self._console.status("") if self._console.is_terminal else None

    @property
    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._started

    def title(self, text: str, detail: str) -> None:
        """The first lines."""
        self._print(Text(f"\n{text}", style="bold"), Text(f"{detail}\n", style="dim"))

    def say(self, text: str, *, style: str = "") -> None:
        """A line with the time since the start."""
        self._print(self._line("  ", text, style))

    @contextmanager
    def awaiting(self, what: str) -> Iterator[None]:
        """Show in the spinner what is awaited while the block runs."""
        with self._lock:
            self._awaited.append(what)
            self._show_awaited()
        try:
            yield
        finally:
            with self._lock:
                if what in self._awaited:
                    self._awaited.remove(what)
                self._show_awaited()

    @contextmanager
    def step(self, awaited: str, done: str = "") -> Iterator[Step]:
        """Something that takes time: the spinner shows `awaited` meanwhile, then a line says what was done."""
        step = Step(done or awaited)
        began = time.monotonic()
        with self.awaiting(awaited):
            yield step
        self.finished(step.text, time.monotonic() - began)

    def finished(self, text: str, seconds: float | None) -> None:
        """A line for something that is done, and took so many seconds."""
        line = self._line("✓ ", text, "")
        if seconds is not None:
            line.append(f"  {seconds:.1f} s", style="dim")
        self._print(line)

    def summary(self, rows: Sequence[tuple[str, str]]) -> None:
        """The end: names and what they are. Lines are left to the terminal to fold, so that they can be copied."""
        width = max(len(name) for name, _ in rows) + 2
        self._print(
            Text(""), *(Text(f"  {name:<{width}}", style="bold").append(text, style="none") for name, text in rows), Text("")
        )

    def close(self) -> None:
        """Take the spinner away."""
        with self._lock:
            self._awaited.clear()
            self._show_awaited()

    def _line(self, mark: str, text: str, style: str) -> Text:
        seconds = int(self.elapsed)
        line = Text(f"  {seconds // 60}:{seconds % 60:02d}  ", style="dim")
        line.append(mark, style="green")
        line.append(text, style=style or "none")
        return line

    def _print(self, *lines: Text) -> None:
        with self._lock:
            for line in lines:
                self._console.print(line, soft_wrap=True)

    def _show_awaited(self) -> None:
        if self._spinner is None:
            return
        if self._awaited:
            self._spinner.update(Text(" · ".join(self._awaited) + " ..."))
            self._spinner.start()
        else:
            self._spinner.stop()


class Step:
    """A step under way; `text` becomes its line and may be changed until it ends."""

    def __init__(self, text: str) -> None:
        self.text = text
