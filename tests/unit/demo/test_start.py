"""What a demo does when its story is told. The story is a double here; tests/demo tells the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from spanvault.demo import commands
from spanvault.demo.place import Knobs
from spanvault.errors import Damaged


class StoryDouble:
    """Notes what is asked of it. `wrong` is raised instead of an end; a person presses Ctrl-C as soon as it stays."""

    calls: list[str]
    wrong: Exception | None = None
    told = False

    def __init__(self, folder: Path, knobs: Knobs, narrator: object) -> None:
        type(self).calls = []

    def tell(self) -> None:
        self.calls.append("tell")
        if self.wrong:
            raise self.wrong
        self.told = True

    def facts(self) -> dict[str, str]:
        return {"airflow": "http://127.0.0.1:1", "postgres": "postgresql://127.0.0.1:2"}

    def stay(self) -> None:
        self.calls.append("stay")
        raise KeyboardInterrupt

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture(autouse=True)
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StoryDouble]]:
    """The double's class. A demo changes the environment of its process, which is put back."""

    class Own(StoryDouble):
        pass

    monkeypatch.setattr(commands, "Story", Own)
    with mock.patch.dict(os.environ, {"DEMO_FOLDER": str(tmp_path / "demo"), "DEMO_EXIT": ""}):
        yield Own


def test_it_stays_until_ctrl_c(story: type[StoryDouble]) -> None:
    commands.start()
    assert story.calls == ["tell", "stay", "stop"]


def test_demo_exit_ends_it(story: type[StoryDouble], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_EXIT", "1")
    commands.start()
    assert story.calls == ["tell", "stop"]


def test_a_wrong_restore_is_its_end(story: type[StoryDouble]) -> None:
    story.wrong = Damaged("The restored shop is not the one at the cut.")
    with pytest.raises(Damaged):
        commands.start()
    assert story.calls == ["tell", "stop"]
