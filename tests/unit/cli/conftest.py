"""The command line's tests run against a double of the engine."""

from __future__ import annotations

import pytest

from tests.kit.engine_double import EngineDouble, install


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EngineDouble:
    """What the commands call instead of the engine."""
    double = EngineDouble()
    install(double, monkeypatch)
    return double
