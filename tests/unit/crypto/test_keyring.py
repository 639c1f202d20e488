"""The keys of chains in a folder: who opens them, who may change them, and that two writers never share a chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.crypto.keyring import Credentials, Keyring, change_keys, info_key
from spanvault.crypto.storage import decrypted
from spanvault.errors import AlreadyExists, Busy, Damaged, KeyMismatch
from spanvault.model.encryption import Argon2Parameters
from spanvault.storage.local import LocalStorage
from tests.kit.fake_key_service import FakeKeyService
from tests.kit.faults import Faults, FaultyStorage

SUBDIR = "2026/11/22-143000.12"
PLAN = f"{SUBDIR}/PLAN.json"
OLD, NEW = (Credentials(passphrase=SecretStr(text)) for text in ("hunter2 the old", "hunter2 the new"))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases at the smallest cost."""
    monkeypatch.setattr("spanvault.crypto.info.PARAMETERS", Argon2Parameters(memory_kib=8192, iterations=1, lanes=1))


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """An empty collection."""
    return LocalStorage(tmp_path, "file:///backups")


def by(*services: FakeKeyService) -> Credentials:
    return Credentials(services=services)


def ring(storage: LocalStorage, credentials: Credentials = Credentials()) -> Keyring:  # noqa: B008 - an immutable value
    return Keyring(storage, lambda: credentials)


def keys_of(storage: LocalStorage) -> list[str]:
    return [info.key for info in storage.list()]


def refusal(kind: type[Exception], call: Callable[[], object]) -> str:
    """The one line of the error, which holds no secret."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "hunter2" not in text
    assert "\n" not in text
    return text


def test_a_worker_that_is_handed_open_chains_asks_no_key_service(storage: LocalStorage) -> None:
    service = FakeKeyService("backups")
    begun = ring(storage, by(service)).begin(SUBDIR)
    parent = ring(storage, by(service))
    assert parent.unlock(SUBDIR) == begun
    assert service.unwrapped == 1
    worker = ring(storage, by(service))
    worker.take(parent.opened())
    assert worker.unlock(SUBDIR) == begun
    assert service.unwrapped == 1


@pytest.mark.parametrize("second", [OLD, NEW, Credentials()], ids=["same_key", "another_key", "no_key"])
def test_a_run_never_writes_into_an_encrypted_chain_that_another_has_begun(storage: LocalStorage, second: Credentials) -> None:
    """docs/format.md, section 3: whoever creates the info owns the place, and anybody else takes another."""
    late = ring(storage, second)
    assert not late.is_encrypted(SUBDIR)
    begun = ring(storage, OLD).begin(SUBDIR)
    text = refusal(AlreadyExists, lambda: decrypted(storage, late).put(PLAN, b"late", create_only=True))
    assert text == f"There is a backup {SUBDIR} already, and it is encrypted."
    assert keys_of(storage) == [info_key(SUBDIR, 0)]
    assert ring(storage, OLD).unlock(SUBDIR) == begun


def test_a_plain_run_withdraws_when_an_encrypted_one_began_in_the_same_instant(storage: LocalStorage) -> None:
    """docs/architecture.md, Encryption."""
    faults = Faults()
    faults.add_fault("storage.put.before", key=PLAN, action=lambda: storage.put(info_key(SUBDIR, 0), b"of the other run"))
    plain = FaultyStorage(storage, faults)
    text = refusal(AlreadyExists, lambda: decrypted(plain, Keyring(plain)).put(PLAN, b"in the clear", create_only=True))
    assert text == f"There is a backup {SUBDIR} already, and it is encrypted."
    assert keys_of(storage) == [info_key(SUBDIR, 0)]


def test_a_plain_run_that_is_alone_keeps_its_plan(storage: LocalStorage) -> None:
    decrypted(storage, ring(storage)).put(PLAN, b"in the clear", create_only=True)
    assert storage.get(PLAN) == b"in the clear"


def test_keys_for_a_chain_with_a_passphrase_are_answered_with_the_option_that_opens_it(storage: LocalStorage) -> None:
    ring(storage, OLD).begin(SUBDIR)
    text = refusal(KeyMismatch, lambda: ring(storage, by(FakeKeyService("backups"))).unlock(SUBDIR))
    assert f"The backup {SUBDIR} in file:///backups is encrypted with a passphrase" in text
    assert "encryption_passphrase" in text
    assert "instead of kms" in text


def test_an_info_without_bounds_is_refused_before_it_is_read(storage: LocalStorage) -> None:
    """Who can write to the storage cannot make a reader take memory: docs/security.md."""
    ring(storage, OLD).begin(SUBDIR)
    key = info_key(SUBDIR, 1)
    storage.put(key, b" " * (1 << 20) + storage.get(info_key(SUBDIR, 0)))
    faults = Faults()
    seen = Keyring(FaultyStorage(storage, faults), lambda: OLD)
    assert f"{key} has " in refusal(Damaged, lambda: seen.unlock(SUBDIR))
    assert faults.count("storage.get.*") == 0


def test_an_older_info_that_was_renamed_to_count_again_is_found(storage: LocalStorage) -> None:
    """docs/format.md, EncryptionInfo: `number` is the number in its name."""
    ring(storage, OLD).begin(SUBDIR)
    before = storage.get(info_key(SUBDIR, 0))
    change_keys(storage, SUBDIR, OLD, NEW)
    storage.put(info_key(SUBDIR, 2), before)
    for credentials in (OLD, NEW):
        text = refusal(Damaged, partial(ring(storage, credentials).unlock, SUBDIR))
        assert f"{info_key(SUBDIR, 2)} says that it is number 0" in text


def test_keys_are_not_added_to_a_chain_that_is_not_encrypted(storage: LocalStorage) -> None:
    decrypted(storage, ring(storage)).put(PLAN, b"in the clear", create_only=True)
    text = refusal(KeyMismatch, lambda: change_keys(storage, SUBDIR, OLD, NEW))
    assert f"The backup {SUBDIR} in file:///backups does not appear to be encrypted, so there is no key to change" in text
    assert keys_of(storage) == [PLAN]


@pytest.mark.parametrize("from_passphrase", [True, False])
def test_a_chain_never_gets_a_key_of_the_other_kind(storage: LocalStorage, from_passphrase: bool) -> None:
    """docs/format.md, EncryptionInfo: either one PassphraseKey, or one or more KmsKeys."""
    service = by(FakeKeyService("backups"))
    old, new = (OLD, service) if from_passphrase else (service, OLD)
    begun = ring(storage, old).begin(SUBDIR)
    assert "either with a passphrase or with keys" in refusal(KeyMismatch, lambda: change_keys(storage, SUBDIR, old, new))
    assert keys_of(storage) == [info_key(SUBDIR, 0)]
    assert ring(storage, old).unlock(SUBDIR) == begun


def test_of_two_who_change_the_keys_at_once_one_is_told_and_changes_nothing(storage: LocalStorage) -> None:
    first, mine, theirs = (FakeKeyService(name) for name in ("first", "mine", "theirs"))
    begun = ring(storage, by(first)).begin(SUBDIR)
    assert begun is not None
    faults = Faults()
    faults.add_fault(
        "storage.put.before", key="*-000001.json", action=lambda: change_keys(storage, SUBDIR, by(first), by(theirs))
    )
    text = refusal(Busy, lambda: change_keys(FaultyStorage(storage, faults), SUBDIR, by(first), by(mine)))
    assert f"The keys of the backup {SUBDIR} were changed by somebody else just now; try again." == text
    stored = json.loads(storage.get(info_key(SUBDIR, 1)))
    assert [entry["key_id"] for entry in stored["keys"]] == [first.key_id, theirs.key_id]
    assert keys_of(storage) == [info_key(SUBDIR, 0), info_key(SUBDIR, 1)]
    change_keys(storage, SUBDIR, by(first), by(mine))
    for service in (first, mine, theirs):
        unlocked = ring(storage, by(service)).unlock(SUBDIR)
        assert unlocked is not None
        assert unlocked.data_key == begun.data_key
