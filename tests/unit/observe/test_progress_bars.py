"""What a person sees of progress, on a terminal and elsewhere."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rich.console import Console

from spanvault.observe.progress_bars import shown_progress


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def plain() -> Console:
    return Console(file=StringIO(), soft_wrap=True, highlight=False)


def test_without_a_terminal_each_step_has_a_line_at_its_begin_and_its_end() -> None:
    console = plain()
    with shown_progress(console) as progress:
        progress.step("Exporting", total_bytes=5_000_000)
        progress.advance(rows=1200, bytes_=4_000_000)
        progress.advance(rows=1, bytes_=1_000_000)
        progress.note("orders [2026] was exported again")
        progress.step("Sealing")
    shown = [re.sub(r"\d+\.\d s", "N s", line) for line in lines(console)]
    assert shown == [
        "Exporting (5.0 MB) ...",
        "orders [2026] was exported again",
        "Exporting: done in N s, 1,201 rows, 5.0 MB",
        "Sealing ...",
        "Sealing: done in N s",
    ]


def test_units_count_where_bytes_are_not_known() -> None:
    console = plain()
    with shown_progress(console) as progress:
        progress.step("Checking files", total_units=3)
        progress.advance(units=2)
        progress.advance(units=1)
    assert lines(console)[-1].endswith("s, 3/3")


def test_a_step_that_failed_is_not_called_done() -> None:
    console = plain()
    with pytest.raises(KeyboardInterrupt), shown_progress(console) as progress:
        progress.step("Loading")
        raise KeyboardInterrupt
    assert lines(console) == ["Loading ..."]


@pytest.mark.parametrize("terminal", [False, True])
def test_threads_may_tell_progress_at_the_same_time(terminal: bool) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=200)
    with shown_progress(console) as progress:
        progress.step("Exporting", total_units=8000)

        def work() -> None:
            for _ in range(1000):
                progress.advance(rows=1, units=1)

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(work)
    assert "8,000 rows" in "".join(lines(console)[-2:])


def test_a_terminal_shows_a_bar_for_each_step_and_notes_above_them() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with shown_progress(console) as progress:
        progress.step("Exporting [shop]", total_bytes=1000)
        progress.advance(rows=5, bytes_=900)
        progress.note("a note with [brackets]")
        progress.step("Sealing")
    assert isinstance(console.file, StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert re.search(r"Exporting \[shop\] .*100 % 5 rows, 900 bytes", text)
    assert "a note with [brackets]" in text
    assert "Sealing" in text
