"""Lists in sentences."""

from __future__ import annotations

import pytest

from spanvault.model.sentences import few


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more"), (list("abcd"), "a, b and 2 more")],
)
def test_a_few_names_and_how_many_are_left_out(names: list[str], text: str) -> None:
    assert few(names, 2) == text
