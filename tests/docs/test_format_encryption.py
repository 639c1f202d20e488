"""Whoever has docs/format.md, a passphrase and the objects of an encrypted chain needs no Spanvault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from spanvault.collection.layout import COLLECTION_KEY, INDEX_PREFIX, PLACE_KEY, README_KEY
from spanvault.crypto.info import new_data_key, passphrase_entry, sealed
from spanvault.crypto.stream import CHUNK_BYTES, encrypt
from spanvault.model.encryption import EncryptionDraft

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
CHAIN = "0f8fad5b-d9cb-469f-a165-70867728950e"
PATH = "000000/data/é.parquet"


def test_what_lies_beside_chains_is_told_to_be_in_the_clear() -> None:
    paragraph = TEXT.partition("In the clear are ")[2].partition("\n\n")[0]
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    table = page.partition("## What stays in the clear")[2].partition("\n## ")[0]
    for name in (COLLECTION_KEY, README_KEY, PLACE_KEY):
        assert f"`{name}`" in paragraph
        assert f"`{name}`" in table
    assert "the index" in paragraph
    assert f"`{INDEX_PREFIX}`" in table


@pytest.fixture(scope="module")
def data_key() -> bytes:
    return new_data_key()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, data_key: bytes) -> Path:
    """A chain's folder with two encryption infos, of which the second counts."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / PATH).parent.mkdir(parents=True)
    for number, words in enumerate(("an older one", "p\u00e4ssw\u00f6rd")):
        keys = (passphrase_entry(SecretStr(words), data_key, CHAIN),)
        draft = EncryptionDraft(chain=CHAIN, number=number, created_at=datetime(2026, 11, 22, tzinfo=UTC), keys=keys)
        (folder / f"ENCRYPTION-INFO-{number:06d}.json").write_bytes(sealed(draft, data_key).to_json())
    return folder


def run(chain: Path, passphrase: str) -> subprocess.CompletedProcess[bytes]:
    """The documented program."""
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    return subprocess.run(
        [sys.executable, "-I", "-c", program, chain, PATH],
        env={**os.environ, "PASSPHRASE": passphrase},
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("size", [0, 14, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_a_stranger_decrypts_with_the_documented_program(chain: Path, data_key: bytes, size: int) -> None:
    plain = os.urandom(size)
    (chain / PATH).write_bytes(encrypt(plain, data_key, PATH))
    done = run(chain, "pa\u0308sswo\u0308rd")  # as another keyboard writes it
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == plain


@pytest.mark.parametrize("cut", [0, 52, 52 + CHUNK_BYTES + 16, -1], ids=["all", "chunks", "last chunk", "last byte"])
def test_the_documented_program_finds_what_is_missing(chain: Path, data_key: bytes, cut: int) -> None:
    data = encrypt(bytes(2 * CHUNK_BYTES), data_key, PATH)
    (chain / PATH).write_bytes(data[:cut])
    assert run(chain, "p\u00e4ssw\u00f6rd").returncode != 0


def test_the_documented_program_wants_the_newest_passphrase(chain: Path, data_key: bytes) -> None:
    (chain / PATH).write_bytes(encrypt(b"", data_key, PATH))
    done = run(chain, "an older one")
    assert done.returncode != 0
    assert b"InvalidTag" in done.stderr
