"""`python -m benchmarks`: all benchmarks with their default sizes."""

from __future__ import annotations

import sys

from benchmarks.full_backup import main

sys.exit(main())
