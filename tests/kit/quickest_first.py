"""A plugin of pytest for `make mutants`: the quickest tests first, for a mutant is done with at the first test that fails."""

from __future__ import annotations

import pytest
from mutmut.state import state


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by how long each test took when mutmut ran them all."""
    seconds = state().duration_by_test
    # mutmut asks for tests by name, and pytest finds none again whose name has a backslash.
    config.hook.pytest_deselected(items=[item for item in items if "\\" in item.nodeid])
    items[:] = sorted((item for item in items if "\\" not in item.nodeid), key=lambda item: seconds.get(item.nodeid, 0.0))
