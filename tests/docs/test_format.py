"""docs/format.md is the specification: its field lists are the models', and its SQL restores a table."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest
from pydantic import BaseModel

from spanvault.collection.layout import object_key
from spanvault.model import cut, encryption, manifest, request, schema, span, target
from spanvault.model.base import Value
from spanvault.storage.local import LocalStorage
from tests.kit.collections import write_collection

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, flags=re.MULTILINE | re.DOTALL))
ROOTS: tuple[type[BaseModel], ...] = (
    manifest.CollectionDocument,
    manifest.PlaceDocument,
    manifest.PartDocument,
    manifest.Plan,
    manifest.Receipt,
    manifest.SealRecord,
    manifest.Manifest,
    manifest.IndexEntry,
    manifest.IndexedTotals,
    encryption.EncryptionInfo,
)


def _reachable() -> dict[str, type[BaseModel]]:
    """All models that the stored documents consist of."""
    known = {
        name: value
        for module in (cut, encryption, manifest, request, schema, span, target)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Value)
    }
    found: dict[str, type[BaseModel]] = {}
    waiting = list(ROOTS)
    while waiting:
        model = waiting.pop()
        if found.setdefault(model.__name__, model) is model:
            written = (field for field in model.model_fields.values() if not field.exclude)
            names = {name for field in written for name in re.findall(r"\w+", repr(field.annotation))}
            waiting += [known[name] for name in names if name in known and name not in found]
    return found


MODELS = _reachable()


def test_the_documents_consist_of_more_than_their_roots() -> None:
    assert {"Column", "Span", "TablePattern", "Totals", "PublicationRow", "BackupOptions"} <= set(MODELS)


def test_every_document_is_specified_and_nothing_else() -> None:
    assert set(SECTIONS) == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_fields_are_those_of_the_model(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", SECTIONS[name], flags=re.MULTILINE)
    assert rows == [name for name, field in MODELS[name].model_fields.items() if not field.exclude]


def test_the_versions_are_those_of_the_code() -> None:
    said = re.findall(r"^\| `format_version` \| (\d+)\b(:?)", TEXT, re.MULTILINE)
    assert {version for version, infos in said if not infos} == {str(manifest.FORMAT_VERSION)}
    assert [version for version, infos in said if infos] == [str(encryption.ENCRYPTION_VERSION)]
    assert f"format version {manifest.FORMAT_VERSION}." in TEXT
    assert f"`format_version` is {manifest.FORMAT_VERSION};" in TEXT


def test_every_link_leads_to_a_section() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors


def test_a_stranger_restores_with_the_documented_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path, "file:///backups")
    subdir = write_collection(storage).subdir
    monkeypatch.chdir(tmp_path / object_key(subdir, "x").removesuffix("/x"))
    sql, _ = re.findall(r"^```sql\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)  # the other is of a chain
    with duckdb.connect() as database:
        database.execute(sql)
        state = database.execute("SELECT * FROM state ORDER BY id").fetchall()
    assert state == [(1, "one"), (2, "TWO"), (3, None)]
