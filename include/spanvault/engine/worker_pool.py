"""The processes in which batches are worked on here and now."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end silently at Ctrl-C, whatever they do: every batch may be interrupted anywhere.

    Spawned, not forked: threads of Arrow and asyncio do not survive a fork.
    """
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_at_interrupt)


def _end_at_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
