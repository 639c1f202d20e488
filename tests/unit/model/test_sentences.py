"""Lists in sentences."""

from __future__ import annotations

import pytest

from spanvault.model.sentences import counted, few


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more"), (list("abcd"), "a, b and 2 more")],
)
def test_a_few_names_and_how_many_are_left_out(names: list[str], text: str) -> None:
    assert few(names, 2) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 large objects"), (1, "1 large object"), (2, "2 large objects")])
def test_one_thing_is_not_told_in_the_plural(count: int, text: str) -> None:
    assert counted(count, "large object") == text
