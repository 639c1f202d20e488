"""The commands of README.md and of the pages beside it can be typed as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from spanvault import __version__
from spanvault.cli.main import app
from spanvault.statement.parse import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/architecture.md", "docs/postgresql.md", "docs/cli.md", "docs/airflow.md", "docs/demo.md")
KEYWORDS = ("BACKUP", "RESTORE", "SHOW")


def commands() -> list[str]:
    """Each `spanvault ...` line of a console block, and each `spanvault ...` in quotes."""
    found: dict[str, None] = {}
    for text in ((ROOT / page).read_text() for page in PAGES if (ROOT / page).exists()):
        joined = text.replace("\\\n", " ")
        lines = re.findall(r"^\s*\$ (.*\bspanvault .*)$", joined, re.MULTILINE)
        quoted = re.findall(r"`(spanvault [^`]+)`", re.sub(r"^```.*?^```", "", joined, flags=re.MULTILINE | re.DOTALL))
        found |= dict.fromkeys([*lines, *(" ".join(one.split()) for one in quoted)])
    return [line for line in found if " COMMAND" not in line]


def arguments_of(line: str) -> list[str]:
    """What stands behind `spanvault`, without redirections; placeholders such as `...` count as words."""
    words = shlex.split(line)
    start = next(index for index, word in enumerate(words) if word.rpartition("/")[2] == "spanvault") + 1
    words = words[start:]
    return words[: words.index("<")] if "<" in words else words


def complaint(arguments: list[str]) -> str | None:
    """Why the command line would not take these, None if it would. A group, or a command without its argument, may be
    named alone."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in command.commands:
            return f"There is no command {name}."
        command = command.commands[name]
    if hasattr(command, "commands"):
        return None if set(arguments) <= {"--help", "--version"} else f"{command.name} has no {arguments}."
    try:
        command.make_context(command.name, list(arguments))
    except Exception as error:
        # By name: typer brings a click of its own.
        return None if type(error).__name__ in {"Exit", "MissingParameter"} else str(error)
    return None


COMMANDS = commands()


def test_the_readme_has_a_tour() -> None:
    text = (ROOT / "README.md").read_text()
    for needed in (
        "cluster preflight",
        "BACKUP DATABASE",
        "SHOW BACKUPS",
        "RESTORE DATABASE",
        "collection check",
        "protection list",
    ):
        assert any(needed in line for line in re.findall(r"^\$ .*$", text, re.MULTILINE)), needed


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_exist(line: str) -> None:
    assert complaint(arguments_of(line)) is None


@pytest.mark.parametrize("line", [line for line in COMMANDS if any(word.startswith(KEYWORDS) for word in arguments_of(line))])
def test_statements_are_understood(line: str) -> None:
    statements = [word for word in arguments_of(line) if word.startswith(KEYWORDS)]
    for statement in statements:
        parse(statement)


@pytest.mark.parametrize(
    "line", ["spanvault bakcup", "spanvault sql --dryrun x", "spanvault sql a b", "spanvault collection nothing x"]
)
def test_the_check_can_fail(line: str) -> None:
    assert complaint(arguments_of(line)) is not None


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{__version__}]" in text
    assert "### Behaviour" in text
    assert f"version {__version__}" in (ROOT / "README.md").read_text()


def test_the_dags_are_those_of_the_folder() -> None:
    section = re.search(r"^## In Airflow\n(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section
    assert set(re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)) == {file.stem for file in (ROOT / "dags").glob("*.py")}
