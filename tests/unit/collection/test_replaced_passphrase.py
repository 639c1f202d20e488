"""A passphrase that is being replaced when the process is killed: what the old one opens goes with the next change or sweep."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.sweep import sweep
from spanvault.crypto.keyring import Credentials, Keyring, change_keys
from spanvault.crypto.storage import decrypted
from spanvault.errors import KeyMismatch
from spanvault.storage.local import LocalStorage
from spanvault.verify.data import check_data
from tests.kit.collections import write_collection
from tests.kit.faults import KILLED, Faults, FaultyStorage, Killed

OLD, NEW = (Credentials(passphrase=SecretStr(text)) for text in ("the old one", "the new one"))


class Story:
    """A chain whose passphrase was about to be replaced: both encryption infos are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = LocalStorage(folder, "file:///backups")
        self.subdir = write_collection(decrypted(self.storage, Keyring(self.storage, lambda: OLD))).subdir
        faults = Faults()
        faults.add_fault("storage.delete.before", key="*/ENCRYPTION-INFO-000000.json", action=KILLED)
        with pytest.raises(Killed):
            change_keys(FaultyStorage(self.storage, faults), self.subdir, OLD, NEW)

    def infos(self) -> list[str]:
        return [info.key.rsplit("-", 1)[1] for info in self.storage.list(f"{self.subdir}/ENCRYPTION-INFO-")]

    def sweep(self, credentials: Credentials, age: timedelta) -> tuple[int, tuple[str, ...]]:
        """Objects removed by a sweep that finds everything this old, and its problems."""
        now = datetime.now(UTC)
        for info in self.storage.list():
            os.utime(self.folder / info.key, ((now - age).timestamp(),) * 2)
        report = sweep(decrypted(self.storage, Keyring(self.storage, lambda: credentials)), now=now, dry_run=False)
        return report.objects, report.problems

    def check(self) -> None:
        """The new passphrase opens the chain, and the old one does not."""
        seen = decrypted(self.storage, Keyring(self.storage, lambda: NEW))
        assert check_data(seen, self.subdir).outcome == "pass"
        with pytest.raises(KeyMismatch):
            Keyring(self.storage, lambda: OLD).unlock(self.subdir)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path / "collection")
    assert story.infos() == ["000000.json", "000001.json"]
    story.check()
    return story


def test_the_old_info_is_worth_removing(story: Story) -> None:
    (story.folder / story.subdir / "ENCRYPTION-INFO-000001.json").unlink()
    assert Keyring(story.storage, lambda: OLD).unlock(story.subdir) is not None


def test_a_sweep_removes_it_when_it_is_a_day_old(story: Story) -> None:
    assert story.sweep(NEW, timedelta(hours=23)) == (0, ())
    assert story.infos() == ["000000.json", "000001.json"]
    assert story.sweep(NEW, timedelta(hours=25)) == (1, ())
    assert story.infos() == ["000001.json"]
    story.check()


def test_a_sweep_without_the_new_passphrase_removes_nothing(story: Story) -> None:
    objects, problems = story.sweep(OLD, timedelta(hours=25))
    assert (objects, len(problems)) == (0, 1)
    assert story.infos() == ["000000.json", "000001.json"]


def test_the_same_change_again_removes_it(story: Story) -> None:
    """Who does not know whether it went through says it with the new passphrase as the old one."""
    assert change_keys(story.storage, story.subdir, NEW, NEW).number == 2
    assert story.infos() == ["000002.json"]
    story.check()
