"""The demo's knobs, folder, lock and leftovers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spanvault.demo import place
from spanvault.demo.place import MARKER, Knobs, clear, demo_folder, kill_leftovers, only_story, running_story
from spanvault.errors import BadInput, Busy


def test_knobs_have_defaults_and_are_read() -> None:
    assert Knobs.read({}) == Knobs(port=0, exits=False, megabytes=130)
    assert Knobs.read({"DEMO_EXIT": "1", "DEMO_MB": "20"}) == Knobs(port=0, exits=True, megabytes=20)
    assert not Knobs.read({"DEMO_EXIT": "0"}).exits


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DEMO_PORT", "http"),
        ("DEMO_PORT", "0"),
        ("DEMO_PORT", "65536"),
        ("DEMO_PORT", "-1"),
        ("DEMO_MB", "1"),
        ("DEMO_MB", "1e3"),
    ],
)
def test_wrong_number_is_one_sentence(name: str, text: str) -> None:
    with pytest.raises(BadInput, match=rf"^{name}={text} cannot be used: give a whole number from \d+ to \d+\.$"):
        Knobs.read({name: text})


def test_taken_port_is_one_sentence_and_a_lingering_connection_no_obstacle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BadInput, match=f"^DEMO_PORT={port} cannot be used: the port is taken"):
            Knobs.read({"DEMO_PORT": str(port)})
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first, so its port lingers
        client.close()
    assert Knobs.read({"DEMO_PORT": str(port)}).port == port


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="is not empty and no demo's folder"):
        demo_folder({"DEMO_FOLDER": str(tmp_path)})
    assert demo_folder({"DEMO_FOLDER": str(tmp_path / "demo")}) == tmp_path / "demo"
    with only_story(tmp_path / "demo"):
        pass
    assert demo_folder({"DEMO_FOLDER": str(tmp_path / "demo")}) == tmp_path / "demo"


def test_folder_is_in_the_checkout_or_where_servers_of_root_can_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "closed" / "checkout" / "dags").mkdir(parents=True)
    checkout = tmp_path / "closed" / "checkout"
    with pytest.raises(BadInput, match="needs Spanvault's checkout"):
        monkeypatch.setattr(place, "PROJECT", checkout)
        demo_folder({})
    (checkout / "dags" / "full_backup.py").touch()
    (tmp_path / "closed").chmod(0o700)
    folder = demo_folder({})
    if os.geteuid() == 0:
        assert folder.parent == Path("/var/cache/spanvault")
        assert folder != demo_folder_of(monkeypatch, tmp_path / "closed" / "other")
    else:
        assert folder == checkout / ".demo"


def demo_folder_of(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> Path:
    (checkout / "dags").mkdir(parents=True)
    (checkout / "dags" / "full_backup.py").touch()
    monkeypatch.setattr(place, "PROJECT", checkout)
    return demo_folder({})


def test_second_story_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    assert running_story(tmp_path) is None
    with only_story(tmp_path) as lock:
        lock.tell(airflow="http://127.0.0.1:1")
        found = running_story(tmp_path)
        assert found is not None
        assert (found.pid, found.airflow) == (os.getpid(), "http://127.0.0.1:1")
        with pytest.raises(Busy, match=f"runs already .process {os.getpid()}.*spanvault demo stop"), only_story(tmp_path):
            pass
    assert running_story(tmp_path) is None


def test_story_begins_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "primary").mkdir()
    (tmp_path / "primary" / "old").touch()
    (tmp_path / "env").touch()
    with only_story(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["story.json"]


def test_only_processes_of_this_folder_are_killed(tmp_path: Path) -> None:
    waiting = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    ours, other = (
        subprocess.Popen(
            waiting,
            env={**os.environ, MARKER: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for folder in (tmp_path / "ours", tmp_path / "other")
    )
    with ours, other:
        for process in (ours, other):
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        (tmp_path / "ours").mkdir()
        kill_leftovers(tmp_path / "ours")
        assert ours.wait(10) != 0
        assert other.poll() is None
        clear(tmp_path / "ours")
        other.kill()
