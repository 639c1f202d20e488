"""The order of the rooms (pyproject.toml, [tool.importlinter]) holds, and the check that says so can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = str(Path(sys.executable).with_name("lint-imports"))


def lint(folder: Path, python_path: Path) -> subprocess.CompletedProcess[str]:
    command = [LINT, "--no-cache", "--config", str(folder / "pyproject.toml")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(python_path), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_room_imports_only_from_rooms_below() -> None:
    done = lint(ROOT, ROOT / "include")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("model", "from spanvault.config import settings"),
        ("storage", "import spanvault.collection"),
        ("engine", "def later():\n    import airflow.sdk"),
        ("verify", "import spanvault_airflow"),
    ],
)
def test_an_import_that_breaks_the_order_is_found(tmp_path: Path, room: str, statement: str) -> None:
    rooms = [path.name for path in (ROOT / "include" / "spanvault").iterdir() if (path / "__init__.py").exists()]
    package = tmp_path / "spanvault"
    for name in rooms:
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "errors.py").touch()
    (package / "config" / "settings.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert lint(tmp_path, tmp_path).returncode == 0
    (package / room / "wrong.py").write_text(statement + "\n")
    done = lint(tmp_path, tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"spanvault.{room}.wrong" in done.stdout
