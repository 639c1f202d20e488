"""docs/cli.md and docs/statements.md name every command, option, result column and exit code that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from spanvault.cli.main import app
from spanvault.engine.estimate import COLUMNS as ESTIMATE_COLUMNS
from spanvault.engine.estimate_layer import COLUMNS as LAYER_COLUMNS
from spanvault.engine.execute import BACKUP_COLUMNS
from spanvault.engine.restore_local import RESTORE_COLUMNS
from spanvault.observe.show_backup import COLUMNS as SHOW_COLUMNS
from spanvault.observe.show_backup import WINDOW_COLUMNS

DOCS = Path(__file__).resolve().parents[3] / "docs"
CLI = (DOCS / "cli.md").read_text()
STATEMENTS = (DOCS / "statements.md").read_text()


def commands() -> list[tuple[str, ...]]:
    """Every command's names and options, flattened: ("spanvault collection sweep", "--dry-run", ...)."""

    def walk(command: object, path: str) -> list[tuple[str, ...]]:
        below = getattr(command, "commands", None)
        if below:
            return [found for name, inner in below.items() for found in walk(inner, f"{path} {name}")]
        options = [option for parameter in command.params for option in parameter.opts]  # type: ignore[attr-defined]
        return [(path, *(option for option in options if option.startswith("--") and option != "--help"))]

    return walk(typer.main.get_command(app), "spanvault")


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[0])
def test_every_command_and_option_is_documented(command: tuple[str, ...]) -> None:
    path, *options = command
    short = path.removeprefix("spanvault ")
    assert (
        re.search(rf"`spanvault {short}( [A-Z]+)?`", CLI) or ("demo" in short and f"`{short.split()[1]}`" in CLI) or path in CLI
    )
    assert [option for option in options if option not in CLI] == []


def test_every_exit_code_is_documented() -> None:
    assert re.findall(r"^\| (\d+) \|", CLI, re.MULTILINE) == ["0", "1", "2", "130"]


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("BACKUP", BACKUP_COLUMNS),
        ("BACKUP", ESTIMATE_COLUMNS),
        ("BACKUP", LAYER_COLUMNS),
        ("SHOW BACKUPS", ("path",)),
        ("SHOW BACKUP", (*SHOW_COLUMNS, *WINDOW_COLUMNS, "file_bytes", "manifest")),
        ("RESTORE", RESTORE_COLUMNS),
    ],
)
def test_every_result_column_is_documented(heading: str, columns: tuple[str, ...]) -> None:
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", STATEMENTS, re.DOTALL | re.MULTILINE)
    assert section
    assert [column for column in columns if f"`{column}`" not in section[1]] == []
