"""Commands and their workers do not pay for libraries that they do not use."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from spanvault.columnar.start import leave_pandas_out
leave_pandas_out()
import pyarrow
assert pyarrow.array([{"a": [1, None]}, None]).to_pylist() == [{"a": [1, None]}, None]
assert pyarrow.table({"a": ["x"]}).schema.field("a").type == pyarrow.string()
assert "pandas" not in sys.modules
"""


def test_arrow_works_without_pandas() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_arrow_would_import_it() -> None:
    """Else there is no reason to keep it out."""
    script = SCRIPT.replace("leave_pandas_out()\n", "").replace('"pandas" not in', '"pandas" in')
    subprocess.run([sys.executable, "-c", script], check=True)
