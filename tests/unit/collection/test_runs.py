"""Plans, receipts, seals and file lists: what a run leaves behind while it works."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spanvault.collection.files import SCHEMA, objects_of, read_files, write_files
from spanvault.collection.layout import object_key, receipt_key
from spanvault.collection.locks import end_of_newest
from spanvault.collection.plans import chain_subdirs, create_plan, read_plan
from spanvault.collection.receipts import put_receipt, read_receipts, spans_received
from spanvault.collection.seals import put_seal, read_seal
from spanvault.errors import Damaged, NotFound
from spanvault.model.cut import Lsn
from spanvault.model.manifest import DataFile, ObjectReference
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PLANNED_AT, ensure, make_plan, make_receipt, write_collection, write_uncommitted


def _file(path: str, **fields: object) -> DataFile:
    return DataFile.model_validate({
        "path": path,
        "sha256": "0" * 64,
        "bytes": 1,
        "rows": 1,
        "database": "shop",
        "table_oid": 1,
        "role": "base",
        **fields,
    })


def test_a_place_is_planned_once(storage: LocalStorage) -> None:
    collection = ensure(storage)
    plans = [make_plan(collection, planned_at=PLANNED_AT, run_key=f"run-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda plan: create_plan(storage, plan), plans))
    assert won.count(True) == 1
    stored = read_plan(storage, plans[0].subdir)
    assert stored == plans[won.index(True)]


def test_no_plan_is_none(storage: LocalStorage) -> None:
    assert read_plan(storage, "2026/11/22-143000.12") is None


def test_what_a_deleted_backup_left_behind_keeps_its_place_taken(storage: LocalStorage) -> None:
    plan = make_plan(ensure(storage), planned_at=PLANNED_AT, run_key="new")
    storage.put(receipt_key(plan.subdir, 0, "16384-16400-0000000000"), b"of an older run")
    assert not create_plan(storage, plan)
    assert read_plan(storage, plan.subdir) is None


def test_a_neighbouring_hundredth_is_another_place(storage: LocalStorage) -> None:
    collection = ensure(storage)
    assert create_plan(storage, make_plan(collection, planned_at=PLANNED_AT, run_key="a"))
    later = PLANNED_AT + timedelta(milliseconds=10)
    assert create_plan(storage, make_plan(collection, planned_at=later, run_key="b"))


def test_chains_are_listed_newest_first_and_foreign_folders_are_not(storage: LocalStorage) -> None:
    expected = ["2026/11/22-143000.13", "2026/11/22-143000.12", "2026/02/01-000000.00", "2025/12/31-235959.99"]
    for subdir in reversed(expected):
        storage.put(f"{subdir}/PLAN.json", b"{}")
    for foreign in (
        "notes/2026/x",
        "2026/notes/x",
        "2026/11/22-143000/x",
        "2026/11/99-999999.99/x",
        "2026/11/22-143000.12.bak/x",
    ):
        storage.put(foreign, b"")
    assert list(chain_subdirs(storage)) == expected
    assert list(chain_subdirs(storage, newest_first=False)) == expected[::-1]


def test_the_first_receipt_of_a_span_wins(storage: LocalStorage) -> None:
    plan = make_plan(ensure(storage), planned_at=PLANNED_AT, run_key="a")
    span = plan.batches[0].spans[0]
    first = make_receipt(plan, span, _file("000000/data/first.parquet"))
    second = make_receipt(plan, span, _file("000000/data/second.parquet"))
    assert put_receipt(storage, plan.subdir, 0, first) == first
    assert put_receipt(storage, plan.subdir, 0, second) == first
    assert read_receipts(storage, plan.subdir, 0) == {span.id: first}


def test_no_receipts_is_an_empty_mapping(storage: LocalStorage) -> None:
    assert read_receipts(storage, "2026/11/22-143000.12", 0) == {}


def test_the_lock_of_a_backup_that_is_gone_is_not_found(storage: LocalStorage) -> None:
    subdir = write_uncommitted(storage).plan.subdir
    with pytest.raises(NotFound, match=f"The backup {subdir} in file:///backups was deleted while it was looked at"):
        end_of_newest(storage, subdir)


def test_a_batch_asks_for_its_own_spans_and_reads_no_receipt(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(ensure(storage), planned_at=PLANNED_AT, run_key="a")
    done, missing = plan.batches[0].spans
    put_receipt(storage, plan.subdir, 0, make_receipt(plan, done, _file("000000/data/first.parquet")))
    monkeypatch.setattr(storage, "get", pytest.fail)
    assert spans_received(storage, plan.subdir, 0, [done.id, missing.id]) == {done.id}
    assert spans_received(storage, plan.subdir, 0, [missing.id]) == frozenset()


def test_a_receipt_under_another_spans_name_is_damage(storage: LocalStorage) -> None:
    plan = make_plan(ensure(storage), planned_at=PLANNED_AT, run_key="a")
    one, other = plan.batches[0].spans
    receipt = make_receipt(plan, one, _file("000000/data/first.parquet"))
    storage.put(receipt_key(plan.subdir, 0, other.id), receipt.to_json())
    with pytest.raises(Damaged, match="copied or renamed"):
        read_receipts(storage, plan.subdir, 0)


def test_seals_of_several_tries_stand_side_by_side(storage: LocalStorage) -> None:
    run = write_uncommitted(storage)
    record = read_seal(storage, run.seal_key)
    again = put_seal(storage, record)
    assert again != run.seal_key
    assert read_seal(storage, again) == record
    with pytest.raises(NotFound):
        read_seal(storage, run.seal_key + "x")


def test_a_file_list_returns_every_field_of_every_file(storage: LocalStorage) -> None:
    files = [
        _file("000000/data/b.parquet", role="change", sequence=3, as_of=Lsn(0x16B374D848), text_columns=("a,b", 'c"')),
        _file("000000/data/a.parquet", span="s", locality="region=us-east", database='ä"', bytes=2**40, rows=0),
    ]
    reference = write_files(storage, "2026/11/22-143000.12", 0, files)
    assert list(read_files(storage, "2026/11/22-143000.12", reference)) == files[::-1]


def test_a_file_list_may_be_empty(storage: LocalStorage) -> None:
    reference = write_files(storage, "2026/11/22-143000.12", 0, [])
    assert list(read_files(storage, "2026/11/22-143000.12", reference)) == []


def test_a_long_file_list_keeps_its_order(storage: LocalStorage) -> None:
    files = [_file(f"000000/data/{number:06d}.parquet") for number in range(20_000)]
    reference = write_files(storage, "2026/11/22-143000.12", 0, reversed(files))
    assert list(read_files(storage, "2026/11/22-143000.12", reference)) == files


def test_one_path_cannot_stand_twice_in_a_list(storage: LocalStorage) -> None:
    with pytest.raises(Damaged, match="twice"):
        write_files(storage, "2026/11/22-143000.12", 0, [_file("000000/data/a.parquet"), _file("000000/data/a.parquet")])


def test_a_changed_file_list_gives_no_row(storage: LocalStorage) -> None:
    subdir = "2026/11/22-143000.12"
    reference = write_files(storage, subdir, 0, [_file("000000/data/a.parquet")])
    key = object_key(subdir, reference.path)
    data = bytearray(storage.get(key))
    data[len(data) // 2] ^= 1
    storage.put(key, bytes(data))
    with pytest.raises(Damaged, match="SHA-256"):
        next(read_files(storage, subdir, reference))


def test_a_list_that_names_a_place_outside_the_chain_is_damage(storage: LocalStorage) -> None:
    subdir = "2026/11/22-143000.12"
    reference = write_files(storage, subdir, 0, [_file("../../../secret")])
    with pytest.raises(Damaged, match="not below its folder"):
        list(read_files(storage, subdir, reference))


def _listed(storage: LocalStorage, subdir: str, data: bytes) -> ObjectReference:
    """A file list of these bytes, and a reference whose digest is right."""
    path = "000000/files-00000000.parquet"
    storage.put(object_key(subdir, path), data)
    return ObjectReference(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _parquet(*rows: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize("second", ["a", "b"], ids=["descending", "twice"])
def test_a_file_list_out_of_order_is_damage_before_a_sweep_relies_on_it(storage: LocalStorage, second: str) -> None:
    """A merge of ascending streams would take what stands behind for unnamed, or a file's rows twice."""
    subdir = "2026/11/22-143000.12"
    rows = [_file(f"000000/data/{name}.parquet").model_dump(mode="json") for name in ("b", second)]
    files = read_files(storage, subdir, _listed(storage, subdir, _parquet(*rows)))
    assert next(files).path == "000000/data/b.parquet"
    with pytest.raises(Damaged, match=f"not in ascending order: '000000/data/b.parquet' stands before '000000/data/{second}"):
        next(files)


def test_a_file_list_of_another_version_is_damage_that_shows_the_row(storage: LocalStorage) -> None:
    subdir = "2026/11/22-143000.12"
    row = {**_file("000000/data/a.parquet").model_dump(mode="json"), "role": "of the future"}
    with pytest.raises(Damaged, match=r"has a row that this version cannot read: .*000000/data/a\.parquet.*of the future"):
        list(read_files(storage, subdir, _listed(storage, subdir, _parquet(row))))


def test_a_file_list_that_was_never_parquet_is_damage_that_names_it(storage: LocalStorage) -> None:
    subdir = "2026/11/22-143000.12"
    reference = _listed(storage, subdir, b"PAR1, and then nothing that a reader of Parquet knows. PAR1")
    with pytest.raises(Damaged, match=f"The file list {subdir}/{reference.path} cannot be decoded as Parquet"):
        list(read_files(storage, subdir, reference))


def test_other_tools_read_the_file_list(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    path = storage._root / object_key(manifest.subdir, manifest.files.path)
    with duckdb.connect() as database:
        query = f"SELECT role, count(*) FROM read_parquet('{path}') GROUP BY role ORDER BY role"
        roles = database.execute(query).fetchall()
    assert roles == [("base", 2), ("change", 1), ("exact", 1)]


def test_the_lists_columns_are_the_models_fields() -> None:
    assert SCHEMA.names == list(DataFile.model_fields)


def test_all_objects_of_a_layer_come_in_order(storage: LocalStorage) -> None:
    manifest = write_collection(storage)
    paths = [reference.path for reference in objects_of(storage, manifest)]
    assert paths == sorted(paths)
    own = {manifest.files.path, manifest.databases[0].schema_dump.path}
    assert manifest.globals_dump is not None
    assert own | {manifest.globals_dump.path} < set(paths)
    assert len(paths) == 7
