"""Commands that forms, pages, errors and documents name exist: whoever reads one will type it."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from spanvault.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
CODE = [
    file
    for folder in ("include", "plugins", "dags")
    for ext in ("py", "html", "yaml", "js")
    for file in ROOT.glob(f"{folder}/**/*.{ext}")
]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
NAMED = re.compile(r"(?:`|<code>|^(?:\$ )?)spanvault ((?:[a-z][a-z-]*[ `<]?)+)", re.MULTILINE)
# In the specification these are what ciphertexts are bound to.
BOUND = ("data key", "encryption info", "file key")


def known(words: list[str]) -> bool:
    """Whether the words lead through groups to a command; what follows a command are its arguments."""
    command: object = typer.main.get_command(app)
    for word in words:
        below = getattr(command, "commands", None)
        if not below:
            return True
        if word not in below:
            return False
        command = below[word]
    return True


def commands_in(file: Path) -> list[str]:
    return [found.rstrip("`< ") for found in NAMED.findall(file.read_text())]


def test_commands_that_are_named_exist() -> None:
    named = [(file.relative_to(ROOT), text) for file in CODE + PAGES for text in commands_in(file)]
    wrong = [(str(file), text) for file, text in named if not known(text.split())]
    assert [found for found in wrong if found[0] != "docs/format.md" or not found[1].startswith(BOUND)] == []


def test_names_are_found_where_they_stand() -> None:
    found = {text for file in CODE for text in commands_in(file)}
    assert {"collection windows", "collection compact", "storage check", "collection rebuild-index"} <= found
    assert not known(["collection", "restorable"])
    assert not known(["backup"])
    assert known(["cluster", "ddl-log", "install"])
    assert known(["sql"])
