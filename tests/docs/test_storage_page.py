"""The page on storage names every parameter and every setting, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spanvault.config.settings import Settings
from spanvault.errors import BadInput
from spanvault.model.uri import STORAGE_CLASSES, StorageUri
from spanvault.model.uri_parameters import AZURE_ENVIRONMENTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "storage.md").read_text()
SCHEMES = {"s3": "s3://bucket/", "gs": "gs://bucket/", "azure-blob": "azure://box/", "nodelocal": "nodelocal://self/"}
NAMED = {
    name for line in PAGE.splitlines() if re.match(r"\| `[A-Zc]", line) for name in re.findall(r"`(\w+)`", line.split("|")[1])
}
WORDS = {name for name in NAMED if not name.startswith("SPANVAULT_")}


def takes(scheme: str, name: str) -> bool:
    with pytest.raises(BadInput) as caught:
        StorageUri.parse(f"{SCHEMES[scheme]}?{name}=")
    return "unknown query parameters" not in str(caught.value) and "cannot be read" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_what_the_tables_say_a_scheme_takes_it_takes(scheme: str) -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if re.match(r"\| `[A-Zc]", line) and "SPANVAULT_" not in line]
    said = {name for names, schemes in rows if f"`{scheme}`" in schemes for name in re.findall(r"`(\w+)`", names)}
    assert said == {name for name in WORDS if takes(scheme, name)}


def test_every_parameter_of_the_module_is_named() -> None:
    source = (Path(__file__).resolve().parents[2] / "include/spanvault/model/uri_parameters.py").read_text()
    used = set(re.findall(r'"((?:AWS|AZURE|S3|OBJECT|GOOGLE|ASSUME)_\w+|AUTH|CREDENTIALS|conn_id)"', source))
    assert used == WORDS


def test_every_setting_of_storage_is_named() -> None:
    ours = {name for name in Settings.model_fields if name.startswith(("storage_", "external_io_", "allowed_"))}
    assert {name for name in NAMED if name.startswith("SPANVAULT_")} == {f"SPANVAULT_{name.upper()}" for name in ours}


def test_the_values_that_are_named_exist() -> None:
    assert {"GLACIER", "DEEP_ARCHIVE"} <= set(STORAGE_CLASSES)
    assert set(re.findall(r"`(AZURE\w+CLOUD)`", PAGE)) == set(AZURE_ENVIRONMENTS)
