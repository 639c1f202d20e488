"""A double of the engine: the command line is tested for what it hands over and what it makes of the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from spanvault.config.clusters import Cluster, cluster_from_url
from spanvault.errors import NotFound
from spanvault.model.progress import Progress
from spanvault.model.result import Result

ANSWER = Result(
    columns=("path", "rows", "full"), rows=(("2026/11/22-143000.00", 12, True), ("2026/11/23-143000.00", None, False))
)


@dataclass
class EngineDouble:
    """Takes every call of the engine's that the command line makes: remembers it, and answers `answer` or raises."""

    answer: Result | BaseException = ANSWER
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    work: Callable[[Progress], None] = lambda progress: progress.note("working")
    progress: Progress | None = None

    def cluster(self, name: str) -> Cluster:
        if name != "shop":
            raise NotFound(f"clusters.yaml has no cluster {name!r}; it has shop.")
        return cluster_from_url("postgresql://backup:hunter2@shop.example/postgres", name="shop")

    def make_context(self, settings: object = None, progress: Progress | None = None, **keys: object) -> EngineDouble:
        self.progress = progress
        return self

    def taking(self, name: str) -> Callable[..., Result]:
        def call(context: object, *arguments: Any, **options: Any) -> Result:
            assert context is self
            assert self.progress is not None
            self.calls.append((name, arguments, options))
            self.work(self.progress)
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


MAINTENANCE = (
    "collection_check",
    "rebuild_index",
    "sweep",
    "restorable",
    "compact_backups",
    "protection_list",
    "protection_release",
    "preflight",
    "uninstall",
)
DDL_LOGS = ("install_ddl_log", "ddl_log_status", "remove_ddl_log")


def install(double: EngineDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the double in the place of the engine's modules."""
    modules: dict[str, dict[str, Any]] = {
        "context": {"make_context": double.make_context},
        "execute": {"execute": double.taking("execute")},
        "maintenance": {name: double.taking(name) for name in MAINTENANCE},
        "storage_check": {"storage_check": double.taking("storage_check")},
        "ddl_logs": {name: double.taking(name) for name in DDL_LOGS},
    }
    for name, functions in modules.items():
        module = ModuleType(f"spanvault.engine.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
