"""docs/dependencies.md lists every direct dependency, and what it says of their use is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "dependencies.md").read_text()


def required(name: str) -> set[str]:
    """The packages that a requirements file names itself."""
    lines = (ROOT / name).read_text().splitlines()
    return {re.split(r"[\[=<>~! ]", line)[0] for line in lines if line and not line.startswith(("#", "-r"))}


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(heading: str) -> dict[str, str]:
    """Each package of a section's table, with its last cell."""
    found = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", section(heading), re.MULTILINE)
    return {name: cells.rpartition("|")[2].strip() for name, cells in found}


USED = rows("To run") | rows("To test and check")


def test_every_direct_dependency_is_listed_and_nothing_else() -> None:
    assert set(rows("To run")) == required("requirements.in")
    assert set(rows("To test and check")) == required("requirements-dev.in")


@pytest.mark.parametrize("package", sorted(USED))
def test_it_is_used_where_the_page_says(package: str) -> None:
    place = re.fullmatch(r"`([\w./-]+)`: `(.+)`", USED[package])
    assert place, USED[package]
    assert place[2] in (ROOT / place[1]).read_text()
