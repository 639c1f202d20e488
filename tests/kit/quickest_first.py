"""A plugin of pytest for `make mutants`: the quickest tests first, for a mutant is done with at the first test that fails."""

from __future__ import annotations

import pytest
from mutmut.state import state


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by how long each test took when mutmut ran them all."""
    seconds = state().duration_by_test
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
