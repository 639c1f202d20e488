"""Encrypted chains on a real server: nothing stands in the clear, nothing is readable without the key, all of it is right."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from spanvault.config.settings import Settings
from spanvault.crypto.stream import MAGIC
from spanvault.embedded.ports import LOOPBACK, free_ports
from spanvault.engine.alter import alter_backup
from spanvault.engine.context import Context
from spanvault.engine.local import run_backup
from spanvault.engine.maintenance import collection_check, compact_backups, expire_backups, sweep, validate_backup
from spanvault.engine.restore_local import run_restore
from spanvault.errors import Damaged, KeyMismatch, Retryable
from spanvault.model.manifest import Manifest
from spanvault.model.request import AlterBackupRequest, BackupRequest, EncryptionOptions, RestoreOptions, RestoreRequest
from spanvault.model.target import DatabaseTarget
from tests.kit.harness import Backup
from tests.kit.servers import TestDatabase, drop_database

pytestmark = pytest.mark.slow

SECRET = "a very secret passphrase ü"
KEY = EncryptionOptions(passphrase=SecretStr(SECRET))
MARK = "unmistakable"


class EncryptedBackup(Backup):
    """A Backup whose context has a key."""

    key: EncryptionOptions = KEY

    @property
    def without_key(self) -> Context:
        """The context of somebody who has no key."""
        return super().context

    @property
    def context(self) -> Context:
        """The context with the key."""
        return replace(self.without_key, encryption=self.key)

    def take(self) -> Manifest:
        """A full backup with the key."""
        return run_backup(self.without_key, self.database.cluster, self._with_key(self.request), processes=False)

    def add(self, **options: object) -> Manifest:
        """An incremental with the key."""
        changed = self.options.model_copy(update=options)
        request = self.request.model_copy(update={"append": "LATEST", "options": changed})
        return run_backup(self.without_key, self.database.cluster, self._with_key(request), processes=False)

    def _with_key(self, request: BackupRequest) -> BackupRequest:
        return request.model_copy(update={"encryption": self.key})


@pytest.fixture
def backup(database: TestDatabase, tmp_path: Path) -> Iterator[EncryptedBackup]:
    database.execute(
        f"create table t (id int primary key, v text); insert into t select i, '{MARK}' || i from generate_series(1, 3000) i;"
        f"create table keyless (v text); insert into keyless select '{MARK}' || i from generate_series(1, 50) i"
    )
    yield EncryptedBackup(database, tmp_path / "collection")


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_full_incrementals_and_history_are_restored_equal(backup: EncryptedBackup) -> None:
    database = backup.database
    full = backup.take()
    before = backup.source_rows("t")
    database.execute(f"update t set v = '{MARK} changed' where id % 7 = 0; delete from t where id % 11 = 0")
    first = backup.add()
    changed = backup.source_rows("t")
    database.execute("insert into t values (9001, 'later')")
    second = backup.add(revision_history=True)
    assert backup.rows(full, "t") == before
    assert backup.rows(first, "t") == changed
    assert backup.rows(second, "t") == backup.source_rows("t")
    options = RestoreOptions(new_db_name=f"{database.name}_restored")
    request = RestoreRequest(
        target=DatabaseTarget(names=(database.name,)), collection=backup.uri, options=options, encryption=KEY
    )
    restored = replace(database, name=f"{database.name}_restored")
    try:
        run_restore(backup.without_key, database.cluster, request, processes=False)
        assert sorted(restored.execute("select t::text from t")) == sorted(database.execute("select t::text from t"))
    finally:
        drop_database(database.server, restored.name)


def test_everything_but_the_documented_is_encrypted(backup: EncryptedBackup) -> None:
    backup.take()
    backup.database.execute("update t set v = 'x' where id = 1")
    backup.add(revision_history=True)
    plain = set()
    named = [backup.database.name.encode(), b"keyless"]
    for path in files(backup.folder):
        data = path.read_bytes()
        assert SECRET.encode() not in data
        assert MARK.encode() not in data
        if not data.startswith(MAGIC):
            assert not any(name in data for name in named), path
            plain.add(path.name if path.suffix == ".txt" else path.name.split("-0")[0])
        else:
            with pytest.raises(Exception, match=r"magic bytes|Parquet"):
                pq.ParquetFile(io.BytesIO(data))
    index = {path.name.split("-0")[0] for path in (backup.folder / "metadata" / "index").iterdir()}
    assert len(index) == 2
    assert plain - index == {"COLLECTION.json", "README.txt", "ENCRYPTION-INFO"}


def test_without_the_key_or_with_another_one_there_is_one_sentence(backup: EncryptedBackup) -> None:
    full = backup.take()
    request = RestoreRequest(target=DatabaseTarget(names=(backup.database.name,)), collection=backup.uri)
    context = backup.without_key
    with pytest.raises(KeyMismatch, match=rf"{full.subdir}.*is encrypted; give its encryption_passphrase"):
        run_restore(context, backup.database.cluster, request, processes=False)
    wrong = request.model_copy(update={"encryption": EncryptionOptions(passphrase=SecretStr("guessed"))})
    with pytest.raises(KeyMismatch, match=r"cannot be decrypted with this passphrase") as caught:
        run_restore(context, backup.database.cluster, wrong, processes=False)
    assert "guessed" not in str(caught.value)
    with pytest.raises(KeyMismatch, match="is encrypted"):
        validate_backup(context, backup.uri, "LATEST", level="checksums")


def test_a_plain_backup_does_not_pass_for_an_encrypted_one(backup: EncryptedBackup) -> None:
    """Who can write to the storage must not be able to make later backups, or a restore, go without encryption."""
    Backup.take(backup)
    with pytest.raises(KeyMismatch, match="does not appear to be encrypted"):
        backup.add()
    request = RestoreRequest(target=DatabaseTarget(names=(backup.database.name,)), collection=backup.uri, encryption=KEY)
    with pytest.raises(KeyMismatch, match="does not appear to be encrypted"):
        run_restore(backup.context, backup.database.cluster, request, processes=False)
    encrypted = backup.take()
    for info in backup.folder.glob("*/*/*/ENCRYPTION-INFO-*"):
        info.unlink()
    with pytest.raises((KeyMismatch, Damaged)):
        backup.add()
    assert encrypted.number == 0


def test_plain_and_encrypted_fulls_live_in_one_collection(backup: EncryptedBackup) -> None:
    plain = Backup.take(backup)
    encrypted = backup.take()
    backup.database.execute("update t set v = 'x' where id = 1")
    later = Backup.take(backup)
    assert backup.rows(encrypted, "t") == Backup.rows(backup, plain, "t")
    assert [manifest.subdir for manifest in (plain, encrypted, later)] == sorted({plain.subdir, encrypted.subdir, later.subdir})
    assert backup.rows(later, "t") == backup.source_rows("t")


def test_maintenance_of_encrypted_chains(backup: EncryptedBackup) -> None:
    backup.take()
    for value in range(3):
        backup.database.execute(f"update t set v = '{value}' where id <= 500")
        backup.add()
    context = backup.context
    compact_backups(context, backup.uri, "LATEST", first=1, number=3)
    assert validate_backup(context, backup.uri, "LATEST", level="checksums")
    collection_check(context, backup.uri, "checksums")
    newest = backup.resolved().manifest
    assert backup.rows(newest, "t") == backup.source_rows("t")
    sweep(context, backup.uri, dry_run=False)
    collection_check(context, backup.uri, "checksums")
    backup.take()
    expire_backups(context, backup.uri, keep_last=1, window=None, dry_run=False)
    assert len(list(backup.folder.glob("*/*/*/ENCRYPTION-INFO-*"))) == 1
    collection_check(context, backup.uri, "checksums")


def test_data_at_an_incremental_location_is_encrypted_too(backup: EncryptedBackup, tmp_path: Path) -> None:
    backup.take()
    backup.database.execute(f"update t set v = '{MARK} there' where id <= 500")
    manifest = backup.add(incremental_location=f"file://{tmp_path}/elsewhere")
    there = files(tmp_path / "elsewhere")
    assert there
    assert all(path.read_bytes().startswith(MAGIC) for path in there)
    assert backup.rows(manifest, "t") == backup.source_rows("t")


def test_another_passphrase_opens_the_chain_and_the_old_one_no_more(backup: EncryptedBackup) -> None:
    full = backup.take()
    before = {path: path.read_bytes() for path in files(backup.folder) if "ENCRYPTION" not in path.name}
    new = EncryptionOptions(passphrase=SecretStr("another one"))
    context = backup.without_key
    with pytest.raises(KeyMismatch):
        alter_backup(context, AlterBackupRequest(collection=backup.uri, old=new, new=new))
    alter_backup(context, AlterBackupRequest(collection=backup.uri, old=KEY, new=new))
    assert {path: path.read_bytes() for path in files(backup.folder) if "ENCRYPTION" not in path.name} == before
    with pytest.raises(KeyMismatch, match="cannot be decrypted with this passphrase"):
        backup.rows(full, "t")
    backup.key = new
    assert backup.rows(full, "t") == backup.source_rows("t")
    backup.add()


def test_an_objects_bytes_or_place_cannot_be_changed(backup: EncryptedBackup) -> None:
    manifest = backup.take()
    data = sorted(backup.folder.glob("*/*/*/000000/data/*.parquet"))
    chain = backup.folder / manifest.subdir
    kept = {path: path.read_bytes() for path in (*data[:2], chain / "chain" / "000000.json")}
    data[0].write_bytes(kept[data[1]])
    with pytest.raises(Damaged, match=data[0].name):
        validate_backup(backup.context, backup.uri, "LATEST", level="checksums")
    data[0].write_bytes(kept[data[0]])
    path = chain / "chain" / "000000.json"
    flipped = bytearray(kept[path])
    flipped[200] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(Damaged, match=r"chain/000000\.json"):
        backup.rows(manifest, "t")


def test_a_key_service_that_fails_leaves_nothing_behind(backup: EncryptedBackup) -> None:
    """It is asked before the source is protected and the collection begun."""
    (port,) = free_ports(1)
    keys = f"AWS_ACCESS_KEY_ID=a&AWS_SECRET_ACCESS_KEY=b&AWS_ENDPOINT=http%3A%2F%2F{LOOPBACK}%3A{port}"
    uri = f"aws:///11111111-2222-3333-4444-555555555555?AUTH=specified&REGION=us-east-1&{keys}"
    request = backup.request.model_copy(update={"encryption": EncryptionOptions(kms=(SecretStr(uri),))})
    context = replace(backup.without_key, settings=Settings(storage_attempts=1, storage_connect_timeout=2))
    with pytest.raises(Retryable):
        run_backup(context, backup.database.cluster, request, processes=False)
    slots = "select count(*) from pg_replication_slots where database = current_database()"
    assert backup.database.execute(slots) == [(0,)]
    assert files(backup.folder) == []
