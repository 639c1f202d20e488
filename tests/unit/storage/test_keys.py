"""Keys, against what file systems and S3 can hold."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.collection.layout import (
    commits_path,
    data_path,
    files_path,
    manifest_path,
    object_key,
    schema_dump_path,
    seal_path,
)
from spanvault.errors import BadInput
from spanvault.storage.keys import check_folder, check_key, is_data, key_flaw


@given(st.lists(st.text("a./-~\u00fc\U0001f600 ", max_size=6), max_size=5).map("/".join))
def test_a_key_without_flaw_is_a_path_below_the_root(key: str) -> None:
    if key_flaw(key) is None:
        path = PurePosixPath("/root") / key
        assert path.is_relative_to("/root")
        assert ".." not in path.parts
        assert str(path.relative_to("/root")) == key


def test_folders_are_empty_or_end_in_a_slash() -> None:
    assert check_folder("") == ""
    assert check_folder("a/b/") == "a/b/"
    for prefix in ("a", "/", "a//", "../"):
        with pytest.raises(BadInput):
            check_folder(prefix)


def test_a_part_of_two_hundred_bytes_fits() -> None:
    assert check_key("\u00fc" * 100)
    with pytest.raises(BadInput, match="longer than"):
        check_key("\u00fc" * 101)


def test_only_data_files_are_data() -> None:
    assert is_data(object_key("2026/11/22-143000.00", data_path(3)))
    for path in (manifest_path(3), files_path(3), commits_path(3, 1), schema_dump_path(3, 1), seal_path(3), "data"):
        assert not is_data(object_key("2026/11/22-143000.00", path))
