"""Data files: what is written is read, checked first, and nothing is visible after a failure."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spanvault.columnar import write
from spanvault.columnar.hexadecimal import decode_hex, encode_hex
from spanvault.columnar.read import key_text, read_batches, verified_file
from spanvault.columnar.write import DataFileWriter, text_batch_to_typed
from spanvault.errors import Damaged
from spanvault.storage.local import LocalStorage

SCHEMA = pa.schema([("a", pa.int64()), ("A", pa.string()), ("a.b", pa.decimal128(12, 2)), ("c", pa.binary())])


def storage_in(folder: Path) -> LocalStorage:
    return LocalStorage(folder, f"file://{folder}")


def batch_of(rows: int) -> pa.RecordBatch:
    arrays = [
        pa.array(range(rows)),
        pa.array([f"v{n}" for n in range(rows)]),
        pa.array([None] * rows),
        pa.array([b"\x00"] * rows),
    ]
    return pa.RecordBatch.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA
    )


def written(folder: Path, *batches: pa.RecordBatch) -> DataFileWriter:
    with DataFileWriter(storage_in(folder), "data/x", SCHEMA) as file:
        for batch in batches:
            file.write_batch(batch)
    return file


@pytest.mark.parametrize("rows", [0, 1, 70_000])
def test_what_is_written_is_read(tmp_path: Path, rows: int) -> None:
    batch = batch_of(rows)
    file = written(tmp_path, batch)
    stored = storage_in(tmp_path).get("data/x")
    assert (file.rows, file.bytes, file.sha256) == (rows, len(stored), hashlib.sha256(stored).hexdigest())
    with verified_file(storage_in(tmp_path), "data/x", sha256=file.sha256, size=file.bytes) as local:
        assert pa.Table.from_batches(read_batches(local), SCHEMA).equals(pa.Table.from_batches([batch]))
        assert sum(one.num_rows for one in read_batches(local, [])) == rows
        assert {tuple(one.schema.names) for one in read_batches(local, ["c", "a"])} <= {("c", "a")}
    assert not local.exists()


def test_row_groups_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "ROW_GROUP_BYTES", 10_000)
    file = written(tmp_path, *[batch_of(500)] * 4)
    with verified_file(storage_in(tmp_path), "data/x", sha256=file.sha256, size=file.bytes) as local:
        assert pq.ParquetFile(local).metadata.num_row_groups == 4
        assert [one.num_rows for one in read_batches(local)] == [500] * 4


def test_dictionaries_only_where_values_repeat(tmp_path: Path) -> None:
    file = written(tmp_path, batch_of(5000))
    with verified_file(storage_in(tmp_path), "data/x", sha256=file.sha256, size=file.bytes) as local:
        group = pq.ParquetFile(local).metadata.row_group(0)
    encodings = {group.column(n).path_in_schema: group.column(n).encodings for n in range(4)}
    assert "RLE_DICTIONARY" in encodings["c"]
    assert "DELTA_LENGTH_BYTE_ARRAY" in encodings["A"]
    assert "DELTA_BINARY_PACKED" in encodings["a"]


def test_nothing_is_visible_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DataFileWriter(storage_in(tmp_path), "data/x", SCHEMA) as file:
        file.write_batch(batch_of(10))
        raise KeyError
    with pytest.raises(pa.ArrowInvalid), DataFileWriter(storage_in(tmp_path), "data/x", SCHEMA) as file:
        file.write_batch(pa.record_batch({"other": [1]}))
    assert list(storage_in(tmp_path).list()) == []


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_changed_byte_is_found_before_any_row(tmp_path: Path, place: int) -> None:
    file = written(tmp_path, batch_of(1000))
    data = bytearray(storage_in(tmp_path).get("data/x"))
    data[place] ^= 1
    storage_in(tmp_path).put("data/damaged", bytes(data))
    with (
        pytest.raises(Damaged, match="data/damaged"),
        verified_file(storage_in(tmp_path), "data/damaged", sha256=file.sha256, size=file.bytes),
    ):
        pytest.fail("the block was entered")


def test_a_short_or_missing_file_is_damage(tmp_path: Path) -> None:
    file = written(tmp_path, batch_of(10))
    storage_in(tmp_path).put("data/short", storage_in(tmp_path).get("data/x")[:-1])
    for key in ("data/short", "data/missing"):
        with (
            pytest.raises(Damaged, match=key),
            verified_file(storage_in(tmp_path), key, sha256=file.sha256, size=file.bytes, scratch=tmp_path),
        ):
            pytest.fail("the block was entered")
    assert list(tmp_path.glob("spanvault-*")) == []


def test_key_text_is_the_same_for_typed_and_text() -> None:
    typed = pa.record_batch({"i": pa.array([-5, 0, 12], pa.int16()), "t": ["a", "", "ü"]})
    text = pa.record_batch({"i": ["-5", "0", "12"], "t": ["a", "", "ü"]})
    assert key_text(typed, ["t", "i"]) == key_text(text, ["t", "i"])


def test_text_becomes_typed_where_it_can() -> None:
    schema = pa.schema([
        ("b", pa.bool_()),
        ("d", pa.date32()),
        ("x", pa.binary()),
        ("n", pa.decimal128(5, 1)),
        ("t", pa.string()),
    ])
    text = pa.record_batch({
        "t": ["q", None],
        "n": ["1.5", None],
        "x": [r"\x00ff", None],
        "d": ["infinity", None],
        "b": ["t", None],
    })
    typed, failed = text_batch_to_typed(text, schema)
    assert failed == {"d"}
    assert typed.schema.names == schema.names
    assert [str(type_) for type_ in typed.schema.types] == ["bool", "string", "binary", "decimal128(5, 1)", "string"]
    assert typed.column("x").to_pylist() == [b"\x00\xff", None]


@pytest.mark.parametrize("value", ["true", "T", "", "1"])
def test_other_booleans_stay_text(value: str) -> None:
    _, failed = text_batch_to_typed(pa.record_batch({"b": [value]}), pa.schema([("b", pa.bool_())]))
    assert failed == {"b"}


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=20)), st.integers(0, 5))
def test_hexadecimal_is_pythons(values: list[bytes | None], offset: int) -> None:
    sliced = pa.array(values, pa.binary())[offset:]
    text = encode_hex(sliced)
    assert text.to_pylist() == [None if value is None else "\\x" + value.hex() for value in values[offset:]]
    assert decode_hex(text).equals(sliced)
    assert decode_hex(pa.concat_arrays([pa.array(["\\x00"]), text])[1:]).equals(sliced)


@pytest.mark.parametrize("value", ["", "\\", "\\x0", "ab", "\\x0g", "\\x0G", "\\x00\\x11", "\\x 0", "a\\x0"])
def test_what_is_not_hexadecimal_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        decode_hex(pa.array(["\\x00", value, "\\xff"]))
