"""The commands that docs/cli.md shows are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spanvault.cli.main import run
from tests.kit.engine_double import EngineDouble

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
# Without variables of the shell before them and without redirections after them.
EXAMPLES = [words for line in LINES if (words := shlex.split(line.removeprefix("$ ")))[0] == "spanvault" and "<" not in words]


def test_there_are_examples_of_the_commands_that_take_most() -> None:
    assert {tuple(words[1:3]) for words in EXAMPLES} >= {("collection", "compact"), ("collection", "windows")}
    assert any("INTO LATEST IN" in words[-1] for words in EXAMPLES)


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_every_example_is_a_command(words: list[str], engine: EngineDouble, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words[1:]) == 0, capsys.readouterr().err
    assert len(engine.calls) == 1
