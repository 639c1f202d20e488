"""What is asked of and said about encrypted collections: passphrases that are typed, chains that do not open."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.cli.main import run
from spanvault.config.clusters import cluster_from_url
from spanvault.engine.alter import alter_backup
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import collection_check
from spanvault.engine.steps import new_plan
from spanvault.errors import BadInput, KeyMismatch, Retryable
from spanvault.model.request import AlterBackupRequest, BackupRequest, EncryptionOptions
from tests.kit.collections import PLANNED_AT, write_collection
from tests.kit.harness import Notes

DAY = timedelta(days=1)
FIRST, SECOND = "2026/11/22-143000.12", "2026/11/23-143000.12"
TYPED = EncryptionOptions(passphrase_from="prompt")
NOWHERE = cluster_from_url("postgresql://backup@127.0.0.1:1/shop")


class Typist:
    """A person who types these in turn, and remembers what was asked."""

    def __init__(self, *typed: str) -> None:
        self.typed = iter(typed)
        self.asked: list[str] = []

    def __call__(self, question: str) -> SecretStr:
        self.asked.append(question)
        return SecretStr(next(self.typed))


def keys(passphrase: str) -> EncryptionOptions:
    return EncryptionOptions(passphrase=SecretStr(passphrase))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The URI of a collection with one chain, whose passphrase is `first`."""
    uri = f"file://{tmp_path}/c"
    write_collection(Context(encryption=keys("first")).storage(uri))
    return uri


def test_other_keys_are_asked_for_by_name_and_the_new_one_twice(uri: str) -> None:
    person = Typist("first", "second", "second")
    alter_backup(Context(ask=person), AlterBackupRequest(collection=uri, old=TYPED, new=TYPED))
    assert [question.split()[0] for question in person.asked] == ["Old", "New", "The"]
    Context(encryption=keys("second")).keyring(uri).require(FIRST)


def test_the_same_passphrase_is_no_change(uri: str) -> None:
    with pytest.raises(BadInput, match="The new passphrase is the old one"):
        alter_backup(Context(), AlterBackupRequest(collection=uri, old=keys("first"), new=keys("first")))
    with pytest.raises(KeyMismatch):
        alter_backup(Context(), AlterBackupRequest(collection=uri, old=keys("third"), new=keys("third")))


def test_a_slip_in_the_passphrase_of_a_full_stops_it_at_once(tmp_path: Path) -> None:
    request = BackupRequest(into=f"file://{tmp_path}/c", encryption=TYPED)
    with pytest.raises(BadInput, match="are not the same"):
        run_backup(Context(ask=Typist("second", "sceond")), NOWHERE, request, processes=False)
    assert not (tmp_path / "c").exists()


def test_an_incremental_asks_once_for_the_passphrase_of_its_chain(uri: str) -> None:
    person = Typist("wrong")
    with pytest.raises(Retryable, match="cannot be reached"):
        run_backup(Context(ask=person), NOWHERE, BackupRequest(into=uri, append="LATEST", encryption=TYPED), processes=False)
    assert person.asked == ["Passphrase of the backup"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A collection of two chains, whose passphrases are `first` and `second`; nobody changes it."""
    uri = f"file://{tmp_path_factory.mktemp('two')}/c"
    for number, passphrase in enumerate(("first", "second")):
        storage = Context(encryption=keys(passphrase)).storage(uri)
        write_collection(storage, planned_at=PLANNED_AT + number * DAY, run_key=passphrase)
    return uri


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (EncryptionOptions(), f"This backup is NOT encrypted, and the one before, {SECOND}, is"),
        (keys("secnod"), f"This backup has other keys than the one before; make sure that they are right. The backup {SECOND}"),
    ],
)
def test_a_full_with_other_keys_than_the_one_before_says_so(given: EncryptionOptions, words: str, two: str) -> None:
    notes = Notes()
    with pytest.raises(Retryable, match="cannot be reached"):
        new_plan(Context(encryption=given, progress=notes), NOWHERE, BackupRequest(into=two), run_key="run")
    (said,) = notes.notes
    assert said.startswith(words)
    assert said.endswith("The backup before is not brought up to the beginning of this one.")


@pytest.mark.parametrize("command", ["check", "windows", "rebuild-index"])
def test_a_lost_encryption_info_is_not_told_as_damaged_bits(
    command: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for info in tmp_path.rglob("ENCRYPTION-INFO-*"):
        info.unlink()
    assert run(["collection", command, uri]) == 1
    assert "is encrypted, and beside it is no encryption info" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"),
    [(["check"], 1), (["check", "--level", "checksums"], 2), (["windows"], 1), (["rebuild-index"], 1), (["sweep"], 1)],
)
def test_chains_that_open_are_looked_at_and_the_others_are_named(
    command: list[str], shown: int, two: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_KEY", "first")
    options = ["--passphrase-from", "env:BACKUP_KEY", "--format", "json"]
    assert run(["collection", command[0], two, *command[1:], *options]) == 1
    out, err = capsys.readouterr()
    assert err.count(f"The backup {SECOND} in {two}") == 1, "once, however many layers or files"
    assert "run it again with their own" in err
    assert FIRST not in err
    rows = json.loads(out)["rows"]
    assert len(rows) == shown
    assert SECOND not in out
    if command[0] == "windows":
        assert rows[0][0] == FIRST


def test_a_sweep_without_any_passphrase_is_no_success(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collection", "sweep", two]) == 1
    assert capsys.readouterr().err.count("is encrypted; give") == 2


def test_who_gives_a_passphrase_is_told_which_backup_needs_none(uri: str) -> None:
    write_collection(Context().storage(uri), planned_at=PLANNED_AT + DAY, run_key="second")
    (row,) = collection_check(Context(encryption=keys("first")), uri, "check_files").dicts()
    assert (row["outcome"], row["notes"]) == ("pass", f"Not encrypted: {SECOND}.")
