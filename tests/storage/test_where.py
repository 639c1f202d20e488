"""Sentences name an object by a URI that can be copied: at the place that has it, the key in the path."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.columnar.read import verified_file
from spanvault.engine.context import Context
from spanvault.errors import Damaged
from spanvault.model.request import EncryptionOptions
from spanvault.model.uri import StorageUri
from spanvault.storage.base import Storage
from spanvault.storage.limit import limited
from spanvault.storage.where import object_uri

CHAIN = "2026/11/22-143000.00"
PLAN = f"{CHAIN}/PLAN.json"
EU = f"{CHAIN}/000000/data/region=eu/1.parquet"
ASIA = f"{CHAIN}/000000/data/region=asia/1.parquet"  # No place is given for it.


def places(folder: Path, *names: str) -> str:
    uris = [f"file://{folder}/def?COCKROACH_LOCALITY=default"]
    return "\n".join(uris + [f"file://{folder}/{name}?COCKROACH_LOCALITY=region%3D{name}" for name in names])


def path_in(text: str) -> Path:
    """The file that a sentence's URI, up to its parameters, names."""
    (word,) = [word for word in text.split() if "://" in word]
    assert word.index(".parquet?COCKROACH_LOCALITY=") > 0
    return Path("/" + StorageUri.parse(word).path)


def read(storage: Storage, key: str, content: bytes) -> None:
    with verified_file(storage, key, sha256=hashlib.sha256(content).hexdigest(), size=len(content)):
        pass


def test_what_is_missing_or_damaged_is_named_where_it_lies(tmp_path: Path) -> None:
    storage = limited(Context().storage(places(tmp_path, "eu", "us")), 1 << 30)
    file = tmp_path / "eu" / EU
    with pytest.raises(Damaged, match="is missing, but the backup needs it") as missing:
        read(storage, EU, b"rows")
    assert path_in(str(missing.value)) == file
    storage.put(EU, b"rows")
    for damaged in (b"row", b"ruws"):
        file.write_bytes(damaged)
        with pytest.raises(Damaged, match="the stored file is damaged") as found:
            read(storage, EU, b"rows")
        assert path_in(str(found.value)) == file
    moved = tmp_path / "us" / EU
    moved.parent.mkdir(parents=True)
    file.rename(moved)
    with pytest.raises(Damaged) as found:
        read(storage, EU, b"rows")
    assert path_in(str(found.value)) == moved
    with pytest.raises(Damaged, match=r"is missing, and no URI is given for its locality region=asia: give"):
        read(storage, ASIA, b"rows")


def test_an_encrypted_object_that_was_changed_is_named_where_it_lies(tmp_path: Path) -> None:
    keys = EncryptionOptions(passphrase=SecretStr("five words of no use"))
    storage = replace(Context(), encryption=keys).storage(places(tmp_path, "eu"))
    storage.put(PLAN, b"{}")
    storage.put(EU, b"rows")
    file = tmp_path / "eu" / EU
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(Damaged, match="is not what was written") as found:
        storage.get(EU)
    assert path_in(str(found.value)) == file


@pytest.mark.parametrize("slash", ["", "/"], ids=["plain", "slash"])
def test_a_place_of_its_own_is_named_as_it_is(tmp_path: Path, slash: str) -> None:
    storage = Context().storage(f"file://{tmp_path}{slash}")
    assert object_uri(storage, EU) == f"file://{tmp_path}/{EU}"
    assert object_uri(storage, "a b?") == f"file://{tmp_path}/a%20b%3F"
