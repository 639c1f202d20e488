"""Makefile, requirements and .ci/run say what they must."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.lstrip().startswith("#")]
    return dict(line.split("==", 1) for line in lines)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_help_names_every_target_and_knob() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(phony.split()) == targets
    assert set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)) == targets
    assert {knob for knob in knobs() if f"\n  {knob}=" not in done.stdout} == set()


def knobs() -> set[str]:
    """Variables that a person may set: those of the Makefile, the demo's, and those that tests read."""
    found = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
    for folder, name in (("include/spanvault/demo", "DEMO_[A-Z]+"), ("tests", "SPANVAULT_(?:FAULTS|TEST_[A-Z_]+)|SOAK_[A-Z]+")):
        for file in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(f"[\"']({name})[\"']", file.read_text()))
    assert {"JOBS", "DEMO_PORT", "SOAK_SEED", "SPANVAULT_FAULTS", "SPANVAULT_TEST_LIVE_AWS_KMS"} <= found
    return found - {"SPANVAULT_TEST_WORKER"}  # by which the tests' own workers know each other


def test_every_run_time_requirement_is_pinned() -> None:
    wanted = [line for line in (ROOT / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    names = {re.split(r"[\[=<]", line)[0] for line in wanted}
    assert names <= set(pins("requirements.txt"))
    assert all(re.match(r"[\w.+!]+( ;.*)?$", pin) for pin in pins("requirements.txt").values())


def test_the_development_set_is_the_run_time_set_and_more() -> None:
    run_time, development = pins("requirements.txt"), pins("requirements-dev.txt")
    version = {name: pin.split(" ")[0] for name, pin in run_time.items()}
    assert {name: development.get(name, "").split(" ")[0] for name in version} == version
    assert {"pytest", "ruff", "mypy", "import-linter"} <= set(development) - set(run_time)


@pytest.mark.parametrize("name", ["requirements.in", "requirements.txt", "requirements-dev.in", "requirements-dev.txt"])
def test_requirements_name_no_place(name: str) -> None:
    assert not re.search(r"://|file:|--index|--find-links|--extra", (ROOT / name).read_text())


def test_ci_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert "make lint test-all" in script.read_text()
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
