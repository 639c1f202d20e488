from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/bootstrap.py, with everything it makes below a folder of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, path in {"VENV": ".venv", "TOOLS": ".tools", "UV": ".tools/bin/uv", "STAMP": ".venv/stamp"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    return module


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 10, 13), (3, 15, 0)])
def test_a_python_that_airflow_does_not_run_on_is_one_sentence(bootstrap: ModuleType, version: tuple[int, ...]) -> None:
    with pytest.raises(bootstrap.SetupError) as error:
        bootstrap.check_python(version, "/usr/bin/python3")
    have = ".".join(map(str, version))
    assert str(error.value) == (
        f"Spanvault needs Python 3.11 to 3.14 (Airflow 3.3 runs on no other) and /usr/bin/python3 is {have}: "
        "install one of them and run `make setup PYTHON=python3.13`, for example."
    )


def test_the_supported_versions_are_those_of_the_package(bootstrap: ModuleType) -> None:
    for minor in range(11, 15):
        bootstrap.check_python((3, minor, 0), "python3")
    assert 'requires-python = ">=3.11,<3.15"' in (ROOT / "pyproject.toml").read_text()


def test_a_python_without_pip_is_told_what_to_install(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "output_of", lambda *command: "")
    with pytest.raises(bootstrap.SetupError, match=r"has no pip: install it .*apt-get install python3-pip"):
        bootstrap.get_uv()


def test_a_command_that_fails_names_itself(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"`false \.\.\.` failed .*goes on from here"):
        bootstrap.run("false")


def test_it_is_done_only_with_what_it_was_done_for(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not bootstrap.is_done()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    bootstrap.STAMP.write_text(bootstrap.fingerprint())
    assert not bootstrap.is_done(), "the command is missing"
    (tmp_path / ".venv" / "bin" / "spanvault").touch()
    assert bootstrap.is_done()
    changed = tmp_path / "requirements-dev.txt"
    changed.write_text("ruff==1.0\n")
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", changed)
    assert not bootstrap.is_done(), "the requirements changed"


def test_what_is_installed_is_byte_compiled_wherever_that_is_switched_off(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    environment = bootstrap.environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"


def test_a_second_set_up_does_nothing(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "is_done", lambda: True)
    monkeypatch.setattr(bootstrap, "run", lambda *command: pytest.fail("it ran something"))
    assert bootstrap.main() == 0
    assert capsys.readouterr().out == ""


def test_an_old_python_gets_an_exit_code(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    assert bootstrap.main() == 1
