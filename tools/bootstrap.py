"""Make `.venv` with everything pinned in requirements-dev.txt and the `spanvault` command, from nothing but Python and pip.

Run by `make setup` with the system's python3, so it must load on older versions (to say that they are too old) and use the
standard library only. uv does the work: it needs neither `venv` nor `ensurepip`, which Debian leaves out, and
`pip install --target` is allowed where PEP 668 forbids a plain `pip install`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TOOLS = ROOT / ".tools"
UV = TOOLS / "bin" / "uv"
STAMP = VENV / "spanvault-setup"
REQUIREMENTS = ROOT / "requirements-dev.txt"
OLDEST, NEWEST = (3, 11), (3, 14)
UV_VERSION = "0.13.9"


class SetupError(Exception):
    """The set-up cannot go on; the text is one sentence for a person."""


def check_python(version: "tuple[int, ...]", executable: str) -> None:
    """Refuse what Airflow 3.3 does not run on. Raises SetupError."""
    if not OLDEST <= version[:2] <= NEWEST:
        have = ".".join(str(part) for part in version[:3])
        raise SetupError(
            f"Spanvault needs Python 3.11 to 3.14 (Airflow 3.3 runs on no other) and {executable} is {have}: "
            "install one of them and run `make setup PYTHON=python3.13`, for example."
        )


def fingerprint() -> str:
    """What the set-up depends on; equal to the stamp when there is nothing to do."""
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for file in (REQUIREMENTS, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_done() -> bool:
    """Whether an earlier run made exactly what this one would."""
    try:
        return STAMP.read_text() == fingerprint() and (VENV / "bin" / "spanvault").exists()
    except OSError:
        return False


def environment() -> "dict[str, str]":
    """Ours, with byte-compiling allowed, and pip's index, if one is set, told to uv, which does not read pip's settings."""
    result = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    for name in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"):
        result.pop(name, None)
    index = os.environ.get("PIP_INDEX_URL") or output_of(sys.executable, "-m", "pip", "config", "get", "global.index-url")
    if index:
        result.setdefault("UV_DEFAULT_INDEX", index)
    return result


def output_of(*command: str) -> str:
    """What a command prints, or an empty text if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def run(*command: str) -> None:
    """Run one command; its own output says what went wrong. Raises SetupError."""
    if subprocess.run(command, cwd=str(ROOT), env=environment(), check=False).returncode:
        raise SetupError(f"`{' '.join(command[:4])} ...` failed (its message stands above); `make setup` goes on from here.")


def get_uv() -> None:
    """uv in .tools, where it touches nothing of the system's."""
    if UV.exists():
        return
    if not output_of(sys.executable, "-m", "pip", "--version"):
        hint = "install it (Debian and Ubuntu: apt-get install python3-pip)"
        raise SetupError(f"{sys.executable} has no pip: {hint} and run `make setup` again.")
    shutil.rmtree(TOOLS, ignore_errors=True)  # what an interrupted run left
    quiet = ("--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
    run(sys.executable, "-m", "pip", "install", *quiet, "--target", str(TOOLS), f"uv=={UV_VERSION}")


def make_venv() -> None:
    """An empty .venv of this Python; one of another Python is replaced."""
    if PYTHON.exists() and output_of(str(PYTHON), "-c", "import sys; print(sys.version)") == sys.version.strip():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    run(str(UV), "venv", "--quiet", "--no-project", "--python", sys.executable, str(VENV))


def install_packages() -> None:
    """Everything pinned, compiled to byte code (which halves Airflow's start)."""
    run(str(UV), "pip", "sync", "--python", str(PYTHON), "--compile-bytecode", str(REQUIREMENTS))


def install_spanvault() -> None:
    """The project itself, editable: the `spanvault` command and the import names."""
    run(str(UV), "pip", "install", "--quiet", "--python", str(PYTHON), "--no-deps", "--editable", str(ROOT))


def set_up() -> None:
    """All steps, a line for each. Raises SetupError."""
    check_python(tuple(sys.version_info[:3]), sys.executable)
    if is_done():
        return
    started = time.monotonic()
    print("Setting up .venv: the first time takes some minutes and about 3 GB.", flush=True)
    steps = (
        ("getting uv", get_uv),
        (f"making .venv with Python {sys.version_info[0]}.{sys.version_info[1]}", make_venv),
        (f"installing {REQUIREMENTS.name}", install_packages),
        ("installing the spanvault command", install_spanvault),
    )
    for number, (title, step) in enumerate(steps, 1):
        print(f"[{time.monotonic() - started:4.0f} s] {number}/{len(steps)} {title}", flush=True)
        step()
    STAMP.write_text(fingerprint())
    print(f"[{time.monotonic() - started:4.0f} s] ready: .venv/bin/spanvault", flush=True)


def main() -> int:
    """The exit code: 0, 1 for a set-up that failed, 130 after Ctrl-C."""
    try:
        set_up()
    except SetupError as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; `make setup` goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
