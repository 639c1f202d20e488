"""Damaged collections: each verification finds what it promises to find, and says so in a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanvault.collection.chain import no_locations, resolve
from spanvault.collection.commit import commit
from spanvault.collection.files import read_files, write_files
from spanvault.collection.layout import COLLECTION_KEY, README_KEY, index_key, manifest_key, object_key
from spanvault.errors import BadInput, Damaged, NotFound, Permanent, Refused, Retryable
from spanvault.model.manifest import DataFile, Manifest
from spanvault.storage.local import LocalStorage
from spanvault.verify.collection import check_collection
from spanvault.verify.data import check_data
from spanvault.verify.files import check_files
from tests.kit.collections import ORDERS, PLANNED_AT, put_table, write_collection, write_uncommitted
from tests.kit.faults import Faults, FaultyStorage


def _data_key(storage: LocalStorage, manifest: Manifest, role: str = "base") -> str:
    files = read_files(storage, manifest.subdir, manifest.files)
    return object_key(manifest.subdir, next(file.path for file in files if file.role == role))


def _flip(storage: LocalStorage, key: str) -> None:
    data = bytearray(storage.get(key))
    data[len(data) // 2] ^= 0x10
    storage.put(key, bytes(data))


def test_a_sound_backup_passes_every_level(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    files = check_files(storage)
    assert (files.outcome, files.objects) == ("pass", 7)
    data = check_data(storage)
    assert (data.outcome, data.objects, data.rows) == ("pass", 7, 8)  # 4 base, 2 change and 2 exact rows
    assert manifest.globals_dump is not None
    own = manifest.files.bytes + manifest.databases[0].schema_dump.bytes + manifest.globals_dump.bytes
    assert files.bytes == data.bytes == manifest.totals.file_bytes + own
    whole = check_collection(storage)
    assert (whole.outcome, whole.notes) == ("pass", ())
    for result in (files, data, whole):
        result.require_pass()


class _Watcher:
    """Adds up what progress is told."""

    def __init__(self) -> None:
        self.promised = [0, 0]
        self.done = [0, 0]

    def step(self, name: str, total_bytes: int = 0, total_units: int = 0) -> None:
        self.promised = [self.promised[0] + total_bytes, self.promised[1] + total_units]

    def advance(self, *, rows: int = 0, bytes_: int = 0, units: int = 0) -> None:
        self.done = [self.done[0] + bytes_, self.done[1] + units]

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_reaches_what_it_promised(storage: LocalStorage) -> None:
    write_collection(storage)
    files, data = _Watcher(), _Watcher()
    check_files(storage, progress=files)
    assert files.done[1] == files.promised[1] == 7
    check_data(storage, workers=1, progress=data)
    assert data.done == data.promised


Victim = Callable[[LocalStorage, Manifest], str]
VICTIMS: dict[str, Victim] = {
    "base": _data_key,
    "change": lambda storage, manifest: _data_key(storage, manifest, "change"),
    "exact": lambda storage, manifest: _data_key(storage, manifest, "exact"),
    "schema": lambda _, manifest: object_key(manifest.subdir, manifest.databases[0].schema_dump.path),
    "globals": lambda _, manifest: object_key(manifest.subdir, manifest.globals_dump.path if manifest.globals_dump else ""),
    "files": lambda _, manifest: object_key(manifest.subdir, manifest.files.path),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_missing_file_fails_every_level_and_is_named(storage: LocalStorage, victim: str) -> None:
    manifest = write_collection(storage)
    key = VICTIMS[victim](storage, manifest)
    storage.delete(key)
    files = check_files(storage)
    assert files.outcome == "fail"
    assert files.missing == (key,)
    with pytest.raises(Damaged, match=rf"The following files are missing from the backup:\n\t{key}\nPut it back"):
        files.require_pass()
    assert check_data(storage).outcome == "fail"
    assert key in " ".join(check_data(storage).failures)
    assert check_collection(storage).outcome == "fail"


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_truncated_file_fails_every_level(storage: LocalStorage, victim: str) -> None:
    manifest = write_collection(storage)
    key = VICTIMS[victim](storage, manifest)
    storage.put(key, storage.get(key)[:-1])
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert key in " ".join(result.failures)


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_flipped_bit_is_found_by_reading(storage: LocalStorage, victim: str) -> None:
    manifest = write_collection(storage)
    key = VICTIMS[victim](storage, manifest)
    _flip(storage, key)
    result = check_data(storage)
    assert result.outcome == "fail"
    assert key in " ".join(result.failures)
    # Sizes are right, so check_files promises nothing here, except for the list that it reads itself.
    assert check_files(storage).outcome == ("fail" if victim == "files" else "pass")


def test_two_files_swapped_are_found_by_reading(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    one, other = _data_key(storage, manifest, "base"), _data_key(storage, manifest, "exact")
    first, second = storage.get(one), storage.get(other)
    storage.put(one, second)
    storage.put(other, first)
    result = check_data(storage)
    assert result.failure_count == 2
    assert one in " ".join(result.failures)
    assert other in " ".join(result.failures)


@pytest.mark.parametrize(
    "old_new",
    [(b'"rows": 3', b'"rows": 4'), (b'"schema_name": "public"', b'"schema_name": "Public"'), (b"0/00000200", b"0/00000300")],
)
def test_an_edited_manifest_fails_every_level(storage: LocalStorage, old_new: tuple[bytes, bytes]) -> None:
    manifest = write_collection(storage)
    key = manifest_key(manifest.subdir)
    storage.put(key, storage.get(key).replace(*old_new))
    for result in (check_files(storage), check_data(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert "is not the one that was committed" in result.failures[0]


def test_a_manifest_of_a_newer_format_is_neither_good_nor_bad(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    key = manifest_key(manifest.subdir)
    storage.put(key, storage.get(key).replace(b'"format_version": 2', b'"format_version": 3', 1))
    with pytest.raises(Refused, match="newer Spanvault"):
        resolve(storage, open_location=no_locations)
    result = check_files(storage)
    assert result.outcome == "could not verify"
    with pytest.raises(Permanent, match="newer Spanvault"):  # no further try of this version reads it
        result.require_pass()


def test_a_lost_index_is_a_note(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.delete(index_key(manifest.subdir, 0))
    result = check_collection(storage)
    assert result.outcome == "pass"
    assert any("rebuild the index" in note for note in result.notes)
    assert check_data(storage).outcome == "pass"


def test_a_lost_readme_and_an_unfinished_run_are_notes(storage: LocalStorage) -> None:
    write_collection(storage)
    run = write_uncommitted(storage, planned_at=PLANNED_AT + timedelta(days=1), run_key="b")
    storage.delete(README_KEY)
    result = check_collection(storage)
    assert result.outcome == "pass"
    assert any(README_KEY in note for note in result.notes)
    assert any(run.plan.subdir in note for note in result.notes)


def test_a_lost_manifest_that_the_index_remembers_is_damage(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.delete(manifest_key(manifest.subdir))
    result = check_collection(storage)
    assert result.outcome == "fail"
    assert f"The manifest {manifest_key(manifest.subdir)} is missing; the index remembers layer 0" in result.failures[0]


def test_an_index_entry_that_contradicts_its_manifest_is_damage(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    key = index_key(manifest.subdir, 0)
    storage.put(key, storage.get(key).replace(b'"rows": 5', b'"rows": 50'))
    result = check_collection(storage)
    assert result.outcome == "fail"
    assert key in result.failures[0]
    assert check_data(storage).outcome == "pass"


def test_a_backup_of_another_collection_is_damage(storage: LocalStorage, tmp_path: Path) -> None:
    foreign = LocalStorage(tmp_path / "foreign", "file:///foreign")
    manifest = write_collection(foreign, planned_at=PLANNED_AT + timedelta(days=1))
    write_collection(storage)
    for info in foreign.list(manifest.subdir):
        storage.put(info.key, foreign.get(info.key))
    for result in (check_files(storage), check_collection(storage)):
        assert result.outcome == "fail"
        assert "copied in from another collection" in result.failures[0]


def test_another_clusters_identity_is_damage(storage: LocalStorage) -> None:
    write_collection(storage)
    storage.put(COLLECTION_KEY, storage.get(COLLECTION_KEY).replace(b"7431234567890123456", b"42"))
    assert check_collection(storage).outcome == "fail"


@pytest.mark.parametrize("number", [1, 10, 11])
def test_at_most_ten_missing_files_are_named(storage: LocalStorage, number: int) -> None:
    run = write_uncommitted(storage)
    listed = list(read_files(storage, run.plan.subdir, run.manifest.files))
    missing = [listed[0].model_copy(update={"path": f"000000/data/missing-{count:02d}.parquet"}) for count in range(number)]
    reference = write_files(storage, run.plan.subdir, 0, [*listed, *missing])
    commit(storage, run.manifest.model_copy(update={"files": reference}))
    result = check_files(storage)
    assert result.failure_count == number
    assert result.missing == tuple(object_key(run.plan.subdir, file.path) for file in missing[:10])
    head = "The following files are missing" if number == 1 else "Multiple files cannot be read from the backup including:"
    with pytest.raises(Damaged, match=head):
        result.require_pass()


def _with_file(storage: LocalStorage, table: pa.Table, **fields: Any) -> None:
    """A committed backup whose list has one more file of public.orders."""
    run = write_uncommitted(storage)
    extra = put_table(storage, run.plan, table, ORDERS, **{"role": "base", **fields})
    _commit_with(storage, run.manifest, [extra])


def _commit_with(storage: LocalStorage, manifest: Manifest, extra: list[DataFile]) -> None:
    files = [*read_files(storage, manifest.subdir, manifest.files), *extra]
    totals = manifest.totals.model_copy(update={"files": len(files), "file_bytes": sum(file.bytes for file in files)})
    reference = write_files(storage, manifest.subdir, 0, files)
    commit(storage, manifest.model_copy(update={"files": reference, "totals": totals}))


@pytest.mark.parametrize(
    ("table", "fields", "sentence"),
    [
        (pa.table({"id": [1], "note": ["x"]}), {"rows": 2}, "holds 1 rows, and 2 were written"),
        (pa.table({"id": [1], "other": ["x"]}), {}, "has the columns"),
        (pa.table({"id": [1]}), {"role": "change"}, "has the columns"),
        (pa.table({"id": [1], "note": ["x"]}), {"table_oid": 99}, "which the manifest does not have"),
    ],
)
def test_files_that_do_not_hold_what_the_list_says(
    storage: LocalStorage, table: pa.Table, fields: dict[str, object], sentence: str
) -> None:
    _with_file(storage, table, **fields)
    result = check_data(storage)
    assert result.outcome == "fail"
    assert sentence in result.failures[0]


def test_bytes_that_are_no_parquet_fail_although_their_digest_is_right(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    extra = put_table(storage, run.plan, pa.table({"id": [1], "note": ["x"]}), ORDERS, role="base")
    key = object_key(run.plan.subdir, extra.path)
    broken = bytearray(storage.get(key))
    footer = pq.ParquetFile(storage._root / key).metadata.serialized_size
    broken[len(broken) - 8 - footer : len(broken) - 8] = b"\xff" * footer
    other = put_table(storage, run.plan, pa.table({"id": [1], "note": ["x"]}), ORDERS, role="base")
    storage.put(object_key(run.plan.subdir, other.path), bytes(broken))
    digest = hashlib.sha256(bytes(broken)).hexdigest()
    _commit_with(storage, run.manifest, [other.model_copy(update={"sha256": digest, "bytes": len(broken)})])
    result = check_data(storage)
    assert "cannot be decoded as Parquet, although its digest is right" in result.failures[0]


def test_a_file_that_the_list_forgot_shows_in_totals_and_rows(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    files = [file for file in read_files(storage, run.plan.subdir, run.manifest.files) if file.role != "exact"]
    commit(storage, run.manifest.model_copy(update={"files": write_files(storage, run.plan.subdir, 0, files)}))
    result = check_data(storage)
    assert result.outcome == "fail"
    assert any("has 3 files" in sentence for sentence in result.failures)
    assert any("hold 0 rows, and the manifest says 2" in sentence for sentence in result.failures)


def test_a_storage_that_does_not_answer_is_not_damage(storage: LocalStorage) -> None:
    write_collection(storage)
    for point in ("storage.read_chunks.before", "storage.read_chunks.chunk"):
        faults = Faults()
        faults.add_fault(point, key="*/data/*", action=Retryable("The network is gone."), times=None)
        result = check_data(FaultyStorage(storage, faults))
        assert result.outcome == "could not verify"
        assert result.unverified_count == 4
        with pytest.raises(Retryable, match=r"could not be verified: The network is gone\."):
            result.require_pass()
    faults = Faults()
    faults.add_fault("storage.read_chunks.before", key="*/data/*", action=Retryable("The network is gone."))
    faults.add_fault("storage.read_chunks.before", key="*/data/*", action=BadInput("Access is denied."))
    with pytest.raises(Permanent, match=r"Access is denied\."):  # one reason that stays is enough
        check_data(FaultyStorage(storage, faults)).require_pass()
    faults = Faults()
    faults.add_fault("storage.list.before", key="*/000000/*", action=Retryable("The network is gone."), times=None)
    assert check_files(FaultyStorage(storage, faults)).outcome == "could not verify"


def test_damage_outweighs_what_could_not_be_looked_at(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    storage.delete(_data_key(storage, manifest, "exact"))
    faults = Faults()
    faults.add_fault("storage.read_chunks.before", key=_data_key(storage, manifest), action=Retryable("Gone."))
    result = check_data(FaultyStorage(storage, faults))
    assert (result.outcome, result.unverified_count, result.failure_count) == ("fail", 1, 1)


def test_what_is_not_there_cannot_be_checked(storage: LocalStorage) -> None:
    for check in (check_files, check_data, check_collection):
        with pytest.raises(NotFound):
            check(storage)
