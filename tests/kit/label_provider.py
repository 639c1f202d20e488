"""A provider of security labels: a module of some lines of C, compiled against the headers of the wheel's server. It takes every
label, on every kind of object. PostgreSQL's packages bring none that runs without SELinux."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from spanvault.embedded.binaries import tool

PROVIDER = "zoo labels"
_MODULE = f"""
#include "postgres.h"
#include "commands/seclabel.h"
#include "fmgr.h"

PG_MODULE_MAGIC;

static void take(const ObjectAddress *object, const char *label) {{}}

void _PG_init(void) {{ register_label_provider("{PROVIDER}", take); }}
"""


def label_provider(folder: Path) -> dict[str, str]:
    """The settings of a server of the wheel in whose sessions the provider is, compiled into `folder`, which every user may
    enter. Skips the test where no C compiler is installed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NO TEST OF SECURITY LABELS: no C compiler is installed (apt-get install gcc libc6-dev).")
    source, module = folder / "labels.c", folder / "labels.so"
    source.write_text(_MODULE)
    headers = tool("postgres").parents[1] / "include" / "server"
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{headers}", source, "-o", module], check=True)
    module.chmod(0o755)
    return {"session_preload_libraries": str(module)}
