"""`python -m benchmarks`: all benchmarks with their default sizes."""

from __future__ import annotations

import sys

from benchmarks import full_backup, incremental

sys.exit(full_backup.main() or incremental.main())
