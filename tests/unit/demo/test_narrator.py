"""How the story is told off a terminal and on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from spanvault.demo.narrator import Narrator


def told(*, terminal: bool) -> tuple[Narrator, io.StringIO]:
    text = io.StringIO()
    return Narrator(Console(file=text, force_terminal=terminal, width=60, highlight=False)), text


def test_each_step_is_one_line_when_it_is_done() -> None:
    narrator, text = told(terminal=False)
    with narrator.step("filling") as step:
        assert text.getvalue() == ""
        step.text = "Filled: " + "a long line that is not folded " * 5
    lines = text.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("  0:00  ✓ Filled: a long line")
    assert lines[0].endswith(" s")


def test_failed_step_is_not_told_as_done() -> None:
    narrator, text = told(terminal=True)
    with pytest.raises(ValueError, match="no"), narrator.step("working"):
        raise ValueError("no")
    assert "✓" not in text.getvalue()
    narrator.close()


def test_spinner_names_all_that_is_awaited() -> None:
    narrator, text = told(terminal=True)
    with narrator.awaiting("one thing"), narrator.awaiting("another"):
        narrator.say("a line above it")  # draws the spinner anew
    assert "one thing" in text.getvalue()
    assert "another" in text.getvalue()


def test_summary_keeps_commands_on_one_line() -> None:
    narrator, text = told(terminal=False)
    command = "spanvault sql " + "x" * 100
    narrator.summary([("Short", "words"), ("Command", command)])
    assert command in text.getvalue()
