"""Every page: what it links to and names is there, and it speaks of the product only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# The first part of a path into the checkout; what begins otherwise is a path of a collection or of a user.
FOLDERS = r"(?:include|plugins|dags|docs|tests|tools|benchmarks)"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_that_must_be_there_are() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    docs = ("architecture", "airflow", "cli", "dependencies", "format", "postgresql", "statements")
    assert names >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in docs)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`({FOLDERS}/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    # Only where it is typed: in quotes, or at the beginning of a line of a block; in a sentence `make` may be a word.
    text = page.read_text()
    named = re.findall(r"(?:`|^(?:\$ )?)make ([a-z][a-z -]*)", text, re.MULTILINE)
    words = {word for line in named for word in line.split() if line.strip()}
    assert sorted(words - TARGETS) == []


def test_what_must_be_covered_wholly_is_named() -> None:
    limits = re.search(r"^WHOLLY_COVERED := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert limits
    row = next(line for line in (ROOT / "docs/testing.md").read_text().splitlines() if line.startswith("| `make coverage` |"))
    *whole, last = re.findall(r"`(include/[\w/]+/)`", row)
    single = [last + name for name in re.findall(r"`(\w+\.py)`", row)]
    assert [*(f"{folder}*" for folder in whole), *single] == limits[1].split(",")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_machine_is_named(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|root|home|Users)/\w+", page.read_text()) == []


def test_every_page_is_reachable_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES if page.name != "README.md" and f"({page.relative_to(ROOT)})" not in text]
    assert missing == []
