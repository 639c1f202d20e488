"""What makes a process of ours start sooner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def leave_pandas_out() -> None:
    """Let nothing import pandas here. pyarrow does so, where it is installed, with the first list that it makes an array of
    (python/pyarrow/pandas-shim.pxi), which costs a process half a second of CPU time; nothing of ours uses it.

    Only for processes that no other code shares: Airflow's may need it.
    """
    sys.meta_path.insert(0, _WithoutPandas())


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is left out", name=fullname)
        return None
